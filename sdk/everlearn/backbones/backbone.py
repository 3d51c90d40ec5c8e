"""A frozen pretrained model, and what methods need to know about it."""

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from timm.data import resolve_model_data_config
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from everlearn.backbones.parts import AUTO, Depths, Part, given, part, plain_norm, recommended
from everlearn.backbones.vit import AnyBlock, ViT, is_vit, make_blocks_whole, through
from everlearn.choices import BUNDLED
from everlearn_runtime.images import InputSpec


@dataclass(frozen=True)
class BackboneSpec:
    """How a backbone is made again: what a saved learner writes down of it.

    Attributes:
        name: the bundled backbone's name, or any name that timm knows.
        weights: ``"pretrained"`` (the bundled file, or timm's hub), ``"random"`` (seeded, for
            tests and baselines), or the path of a file with timm's keys.
        options: further keyword arguments of the model, such as ``img_size`` or ``depth``.
    """

    name: str = BUNDLED
    weights: str = "pretrained"
    options: dict[str, Any] = field(default_factory=dict)


class Backbone(nn.Module):
    """A frozen pretrained model, and what methods need to know about it.

    Everything is read from the model: image size, normalisation, width, depth, tokens. A model
    that is no plain ViT, such as a CNN, still gives `features`; what needs tokens raises ``ValueError``.

    Args:
        model: a timm model without a classifier (``num_classes=0``).
        spec: how to make it again; without one, a saved learner asks for the backbone on load.

    Attributes:
        input: size and resizing of the images, as the device will apply them.
        width: length of a feature vector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: BackboneSpec | None = None) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.spec = spec
        if isinstance(model, Eva):
            make_blocks_whole(model)
        data = resolve_model_data_config(model)
        height, width = _image_size(model, data)
        crop = data.get("crop_mode") or "center"
        red, green, blue = (round(255 * value) for value in data["mean"])
        self.input = InputSpec(
            height=height,
            width=width,
            resize=int(max(height, width) / data["crop_pct"]),
            interpolation=data["interpolation"],
            crop=crop,
            fill=(red, green, blue) if crop == "border" else (0, 0, 0),
        )
        self.register_buffer("mean", torch.tensor(data["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]).view(1, 3, 1, 1), persistent=False)
        with torch.no_grad():
            self.width = int(model(torch.zeros(1, 3, height, width)).shape[-1])

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: the backbone is frozen, its dropout and its norms too."""
        return super().train(False)

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images (B, H, W, 3) into what the model takes, float32 (B, 3, H, W).

        The exported graph does the same by itself: `everlearn_export` knows no backbone, and takes mean
        and standard deviation as numbers.
        """
        return (images.permute(0, 3, 1, 2).to(torch.float32) / 255.0 - self.mean) / self.std

    def pixels(self, images: Tensor) -> Tensor:
        """Take `normalise` back, exactly: uint8 (B, H, W, 3) from float32 (B, 3, H, W)."""
        return ((images * self.std + self.mean) * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1)

    def features(self, images: Tensor, parts: Sequence[Part] = ()) -> Tensor:
        """Features of normalised images (B, 3, H, W), pooled as the model pools: (B, width).

        The parts, see `parts`, stand behind them: (B, F), of the widths that `sections` gives.
        """
        if not parts:
            return cast(Tensor, self.model(images))
        return torch.cat(self.gather(self.run(images), parts), 1)

    def sections(self, parts: Sequence[Part] = ()) -> tuple[int, ...]:
        """Widths of what `features` consists of: the model's own features, and each of the parts."""
        return (self.width, *(self.vit.embed_dim for _ in parts))

    def parts(self, depths: Depths = (), *, patches: bool = False) -> tuple[Part, ...]:
        """What stands behind the model's own features, by names.

        A name is ``"cls"``, ``"mean"`` (of the patch tokens) or ``"std"`` (their standard deviation, in
        each channel) of the last block's tokens after the final norm; with ``"@9"`` behind it of what
        block 9 gives, through a layer norm without weights. Blocks are counted from 0, negative
        numbers from the end. A model without such tokens, see `has_tokens`, has no parts.

        Args:
            depths: names, or ``"auto"`` for the `recommended` ones, if there are any.
            patches: have ``"mean"`` come first, unless the model itself pools by the mean, as CNNs do.

        Raises:
            ValueError: for a name that is none or there twice, a block that is no inner one, a part that
                the model's own features are already, CLS of a model without one, or no plain ViT.

        >>> from everlearn import load_backbone
        >>> [str(part) for part in load_backbone().parts(["std", "mean@-3"], patches=True)]
        ['mean', 'std', 'mean@9']
        """
        names = given(depths)
        if not names and not patches:
            return ()
        if names in ((), AUTO) and not self.has_tokens:
            return ()
        first = (Part("mean"),) if patches and self.pooled is not None else ()
        if names == AUTO:
            return (*first, *recommended(self.depth, patches=self.pooled is not None)[len(first) :])
        asked = [part(name, self.depth) for name in names]
        twice = [str(one) for one in dict.fromkeys(asked) if asked.count(one) > 1]
        if twice:
            raise ValueError(f"depths has {', '.join(twice)} twice: {list(names)}; name each once")
        own = Part("mean") if self.pooled is None else Part("cls")
        if own in asked:
            raise ValueError(
                f"the features of backbone {self.name!r} are {str(own)!r} already; leave it out of depths"
            )
        if not self.has_cls and any(one.kind == "cls" for one in asked):
            raise ValueError(f"backbone {self.name!r} has no CLS token; leave 'cls' out of depths")
        return (*first, *(one for one in asked if one not in first))

    def twin(self) -> "Backbone":
        """Make another backbone of the same weights, in the same memory, to put modules into.

        >>> from everlearn import load_backbone
        >>> backbone = load_backbone()
        >>> twin = backbone.twin()
        >>> twin.vit.blocks[0].mlp = nn.Identity()
        >>> twin.vit.norm.weight is backbone.vit.norm.weight
        True
        >>> type(backbone.vit.blocks[0].mlp).__name__
        'Mlp'
        """
        return copy.deepcopy(self, self.shared())

    def shared(self) -> dict[int, Any]:
        """The weights and buffers as a memo for ``copy.deepcopy``: copies then hold these very tensors."""
        return {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}

    # The parts of a ViT, for methods that put adapters between them.

    @property
    def has_tokens(self) -> bool:
        """Whether the model is a plain ViT, or an Eva: blocks of tokens that adapters fit between."""
        return is_vit(self.model)

    @property
    def vit(self) -> ViT:
        """The model as a plain ViT, which timm's Eva is, too; ``ValueError`` when it is none."""
        self.require_tokens()
        return self.model

    def require_tokens(self) -> None:
        """``ValueError`` unless the model `has_tokens`."""
        if not self.has_tokens:
            raise ValueError(
                f"backbone {self.name!r} ({type(self.model).__name__}) is no plain Vision Transformer, and "
                "low-rank updates, bottlenecks, prompts and depths are for a ViT's tokens; choose a ViT such "
                f"as {BUNDLED!r} or 'vit_small_patch16_dinov3.lvd1689m', a method that goes with any model "
                "that has norms, which NTKCL(), RanPAC(), APER() and SAFE(adapter='ssf') do, or Frozen(), "
                "which goes with any"
            )

    @property
    def name(self) -> str:
        """The name it was made by."""
        return self.spec.name if self.spec else type(self.model).__name__

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: CLS, distillation token, registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def has_cls(self) -> bool:
        """Whether the first token is CLS; a model may have registers, and no CLS before them."""
        return self.vit.cls_token is not None

    @property
    def tokens(self) -> int:
        """Number of tokens: the prefix and the patches."""
        return self.prefix + int(self.vit.patch_embed.num_patches)

    def embed(self, images: Tensor) -> Tensor:
        """Tokens (B, N, d) that enter the first block, from normalised images (B, 3, H, W)."""
        vit = self.vit
        tokens = vit._pos_embed(vit.patch_embed(images))
        if isinstance(vit, Eva):
            return cast(Tensor, vit.norm_pre(tokens[0]))  # beside them is what each block has as its rope
        return cast(Tensor, vit.norm_pre(vit.patch_drop(tokens)))

    def blocks(self) -> Iterator[AnyBlock]:
        """The blocks, first to last."""
        return iter(self.vit.blocks)

    def run(self, images: Tensor) -> Iterator[Tensor]:
        """Tokens (B, N, d) behind each block, of normalised images (B, 3, H, W)."""
        tokens = self.embed(images)
        for block in self.blocks():
            tokens = through(block, tokens)
            yield tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """Features (B, width) from the last block's tokens, final norm and pooling.

        The tokens are (B, N, d), or the first `pooled` of them.
        """
        return cast(Tensor, self.vit.forward_head(self.vit.norm(tokens), pre_logits=True))

    def gather(self, tokens: Iterable[Tensor], parts: Sequence[Part] = ()) -> list[Tensor]:
        """Features as by `pool`, and each of the parts behind them, in one pass.

        Args:
            tokens: behind each block, first to last, (B, N, d), as `run` or an adapter's own pass gives
                them; of the last block the first `wanted` do.
            parts: see `parts`.

        Returns:
            (B, width), and (B, d) of each part.
        """
        inner = {part.block for part in parts}
        pooled: dict[Part, Tensor] = {}
        for block, last in enumerate(tokens):
            if block in inner:
                normal = plain_norm(last)
                pooled |= {one: one.of(normal, self.prefix) for one in parts if one.block == block}
        normal = self.vit.norm(last)
        features = cast(Tensor, self.vit.forward_head(normal, pre_logits=True))
        if None in inner:
            normal = self.vit.fc_norm(normal)  # a model has one of the two: this, when it pools by the mean
            pooled |= {one: one.of(normal, self.prefix) for one in parts if one.block is None}
        return [features, *(pooled[one] for one in parts)]

    def wanted(self, parts: Sequence[Part] = ()) -> int | None:
        """How many of the last block's tokens, from the front, `gather` reads; None when it is all."""
        return None if any(one.block is None and one.kind != "cls" for one in parts) else self.pooled

    @property
    def pooled(self) -> int | None:
        """Number of tokens, from the front, that `pool` reads: 1 for CLS; None when it reads all."""
        vit = self.vit
        known = (VisionTransformer.forward_head, Eva.forward_head)
        by_cls = vit.global_pool == "token" and type(vit).forward_head in known
        return 1 if by_cls and vit.attn_pool is None else None

    def fuse_attention(self, fused: bool) -> None:
        """Choose the attention kernel: the fused one is several times slower on a CPU."""
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                cast(Any, module).fused_attn = fused

    def fingerprint(self) -> str:
        """Sha256 of the weights, to tell whether a saved learner meets its own backbone."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _image_size(model: nn.Module, data: dict[str, Any]) -> tuple[int, int]:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or data["input_size"][-2:]
    return int(size[0]), int(size[1])
