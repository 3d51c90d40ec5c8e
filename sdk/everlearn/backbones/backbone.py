"""A frozen pretrained model, and what methods need to know about it."""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from everlearn_runtime.images import InputSpec

BUNDLED = "everlearn_vit_tiny_p8_64"
"""Name of the backbone that comes with the package."""


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
    that is no plain ViT still gives `features`; what needs tokens raises ``ValueError``.

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

    def features(self, images: Tensor, *, patches: bool = False) -> Tensor:
        """Features of normalised images (B, 3, H, W), pooled as the model pools: (B, width).

        With ``patches`` the mean of the patch tokens stands behind them, see `both`: (B, F), in the
        parts that `sections` gives.
        """
        if not patches:
            return cast(Tensor, self.model(images))
        tokens = self.embed(images)
        for block in self.blocks():
            tokens = block(tokens)
        return self.both(tokens).flatten(1)

    def sections(self, patches: bool = False) -> tuple[int, ...]:
        """Widths of the parts that `features` consists of."""
        return (self.width,) * (2 if patches and self.pooled is not None else 1)

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
    def vit(self) -> VisionTransformer:
        """The model as a plain ViT; ``ValueError`` when it is none."""
        if not isinstance(self.model, VisionTransformer) or not all(
            type(block) is Block for block in self.model.blocks
        ):
            raise ValueError(
                f"backbone {self.name!r} ({type(self.model).__name__}) is no plain Vision Transformer, and "
                "this method puts adapters between a ViT's tokens; choose a ViT such as "
                f"{BUNDLED!r} or 'vit_base_patch16_224.augreg_in21k', or use Frozen(), "
                "which needs features only"
            )
        return self.model

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
        return cast(Tensor, vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images)))))

    def blocks(self) -> Iterator[Block]:
        """The blocks, first to last."""
        return iter(self.vit.blocks)

    def pool(self, tokens: Tensor) -> Tensor:
        """Features (B, width) from the last block's tokens, final norm and pooling.

        The tokens are (B, N, d), or the first `pooled` of them.
        """
        return cast(Tensor, self.vit.forward_head(self.vit.norm(tokens), pre_logits=True))

    def both(self, tokens: Tensor) -> Tensor:
        """Features as by `pool`, and behind them the mean of the patch tokens after the final norm.

        From all tokens of the last block, (B, N, d) to (B, 2, d). Where `pool` already takes that
        mean (`pooled` is None), there is nothing to put behind: (B, 1, d).
        """
        normal = self.vit.norm(tokens)
        features = cast(Tensor, self.vit.forward_head(normal, pre_logits=True))
        if self.pooled is None:
            return features[:, None]
        return torch.stack([features, normal[:, self.prefix :].mean(1)], 1)

    @property
    def pooled(self) -> int | None:
        """Number of tokens, from the front, that `pool` reads: 1 for CLS; None when it reads all."""
        vit = self.vit
        by_cls = vit.global_pool == "token" and type(vit).forward_head is VisionTransformer.forward_head
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
