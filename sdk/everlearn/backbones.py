"""Backbones: timm models by name, local weights, and the bundled ViT."""

import copy
import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from everlearn import _torchvision
from everlearn_runtime.images import InputSpec

_torchvision.make_importable()

import timm  # noqa: E402
from timm.data import resolve_model_data_config  # noqa: E402
from timm.layers import Attention  # noqa: E402
from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

BUNDLED = "everlearn_vit_tiny_p8_64"
_BUNDLED_ARCHITECTURE: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 192,
    "depth": 12,
    "num_heads": 3,
}
_BUNDLED_INPUT: dict[str, Any] = {
    "input_size": (3, 64, 64),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
}


@dataclass(frozen=True)
class BackboneSpec:
    """How a backbone is made again: what a saved learner writes down of it.

    Attributes:
        name: the bundled backbone's name, or any name that timm knows.
        weights: ``"pretrained"`` (the bundled file, or timm's hub), ``"random"`` (seeded, for
            tests and baselines), or the path of a ``.safetensors`` file with timm's keys.
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
        """Turn uint8 images (B, H, W, 3) into what the model takes, float32 (B, 3, H, W)."""
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


def attend(block: Block, tokens: Tensor, first: int | None = None) -> Tensor:
    """First half of a block: the tokens after attention and its residual connection.

    Args:
        block: of a ViT.
        tokens: (B, N, d).
        first: how many of the tokens are wanted, from the front; all of them attend. None: all.

    Returns:
        (B, N, d), or (B, first, d).
    """
    attention, wanted = block.attn, tokens[:, :first]
    normal = block.norm1(tokens)
    if first is None:
        mixed = attention(normal)
    elif _is_plain(attention):
        mixed = _attention_of(attention, normal, first)
    else:
        mixed = attention(normal)[:, :first]
    return cast(Tensor, wanted + block.drop_path1(block.ls1(mixed)))


def _is_plain(attention: nn.Module) -> bool:
    extras = (getattr(attention, "norm", None), getattr(attention, "gate", None))
    return (
        type(attention) is Attention
        and type(attention.qkv) is nn.Linear
        and all(extra is None or isinstance(extra, nn.Identity) for extra in extras)
    )


def _attention_of(attention: Attention, tokens: Tensor, first: int) -> Tensor:
    """What timm's ``Attention`` gives for the first tokens, without the queries of the others."""
    width, heads = attention.num_heads * attention.head_dim, attention.num_heads
    qkv: nn.Linear = attention.qkv
    biases = (None, None) if qkv.bias is None else (qkv.bias[:width], qkv.bias[width:])
    query = F.linear(tokens[:, :first], qkv.weight[:width], biases[0])
    key, value = F.linear(tokens, qkv.weight[width:], biases[1]).chunk(2, dim=-1)
    q, k, v = (torch.unflatten(part, 2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    q, k = attention.q_norm(q), attention.k_norm(k)
    if attention.fused_attn:
        mixed = F.scaled_dot_product_attention(q, k, v)
    else:
        mixed = (q * attention.scale @ k.transpose(2, 3)).softmax(-1) @ v
    return cast(Tensor, attention.proj(mixed.transpose(1, 2).flatten(2)))


def feed_forward(block: Block, tokens: Tensor) -> Tensor:
    """Second half of a block without its residual connection: MLP(LN2 tokens)."""
    return cast(Tensor, block.drop_path2(block.ls2(block.mlp(block.norm2(tokens)))))


def load_backbone(name: str = BUNDLED, *, weights: str | Path = "pretrained", **options: Any) -> Backbone:
    """Make a frozen backbone by name.

    Args:
        name: ``"everlearn_vit_tiny_p8_64"``, which comes with the package, or any timm model.
        weights: ``"pretrained"``, ``"random"``, or the path of a ``.safetensors`` file.
        options: keyword arguments for the timm model, e.g. ``img_size=64``; plain values, so that
            a saved learner can write them down. ``pretrained_cfg_overlay`` replaces timm's input
            settings: ``mean`` and ``std`` of the pixels, ``crop_pct``, ``interpolation``.

    Raises:
        ValueError: for a name that timm does not know, for options that are no plain values, and
            for weights that are missing, unreadable, or of another model.
    """
    try:
        json.dumps(options)
    except TypeError as error:
        raise ValueError(
            f"options must be plain values ({error}); for others make the model with timm, and pass "
            "Backbone(model)"
        ) from error
    spec = BackboneSpec(name, str(weights), dict(options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same ones at every load
        if name == BUNDLED:
            overlay = options.pop("pretrained_cfg_overlay", {})
            model = VisionTransformer(num_classes=0, **_BUNDLED_ARCHITECTURE | options)
            model.pretrained_cfg = _BUNDLED_INPUT | overlay
        elif timm.is_model(name):
            from_hub = spec.weights == "pretrained"
            try:
                model = timm.create_model(name, pretrained=from_hub, num_classes=0, **options)
            except (RuntimeError, OSError) as error:
                raise ValueError(
                    f"backbone {name!r} cannot be made with weights={spec.weights!r}: {error}; check the "
                    "name, or pass weights='random' or the path of a .safetensors file"
                ) from error
        else:
            close = _close(name)
            hint = f"; did you mean one of {close}?" if close else ""
            raise ValueError(
                f"no backbone is named {name!r}; take {BUNDLED!r} or a name from timm.list_models(){hint}"
            )
    if name == BUNDLED and spec.weights == "pretrained":
        with as_file(files("everlearn") / "weights" / f"{BUNDLED}.safetensors") as path:
            _load_weights(model, path)
    elif spec.weights not in ("pretrained", "random"):
        _load_weights(model, Path(weights))
    return Backbone(model, spec)


def _load_weights(model: nn.Module, path: Path) -> None:
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(
            f"weights must be 'pretrained', 'random' or an existing .safetensors file, got {str(path)!r}"
        )
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}); fetch it again") from error
    own = model.state_dict()
    missing = sorted(own.keys() - stored.keys())
    other_shape = sorted(name for name in own.keys() & stored.keys() if own[name].shape != stored[name].shape)
    if missing or other_shape:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: "
            f"missing {missing[:3] or 'nothing'}, other shapes at {other_shape[:3] or 'no tensor'}; "
            "check that name and options are those the weights were saved from"
        )
    # A checkpoint's classifier is left out: the backbone has none.
    model.load_state_dict({name: stored[name].to(own[name].dtype) for name in own})


def _close(name: str) -> list[str]:
    """Names that an incomplete or a mistyped one may have been meant for."""
    wanted = name.split(".")[0]
    known = [BUNDLED, *timm.list_models()]
    longer = [other for other in known if other.startswith(wanted)]
    return longer[:5] or difflib.get_close_matches(wanted, known, 5)


def _image_size(model: nn.Module, data: dict[str, Any]) -> tuple[int, int]:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or data["input_size"][-2:]
    return int(size[0]), int(size[1])
