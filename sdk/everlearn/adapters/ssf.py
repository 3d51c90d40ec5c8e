"""SSF: scale and shift the outputs of a backbone's layers; it merges into their weights exactly."""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from everlearn.backbones import Backbone

IN_BLOCK = (
    *("norm1", "attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj"),
    *("norm2", "mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"),
)
"""Layers of a ViT's block that are scaled, in the order in which tokens pass them; it has some of them."""

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
"""Kinds of norms, timm's with an activation behind them included: those of any model are scaled."""


class ScaleShift(nn.Module):
    """``scale * layer(x) + shift`` per channel: the layer stays frozen, scale and shift train.

    Of a norm, its own weight and bias are scaled, and what stands behind them in the layer, such as an
    activation, comes after the shift; a batch norm keeps its statistics.

    Args:
        layer: a frozen ``Linear``, ``Conv2d`` or one of `NORMS`, with a weight and maybe a bias.
        spread: standard deviation of the start, scale from N(1, spread), shift from N(0, spread);
            with 0 a fresh one computes what the layer does.

    Attributes:
        scale, shift: (channels,).

    Source: Lian et al., "Scaling & Shifting Your Features", arXiv 2210.08823, section 3.
    """

    def __init__(self, layer: nn.Module, *, spread: float = 0.02) -> None:
        super().__init__()
        if not isinstance(layer, (nn.Linear, nn.Conv2d, *NORMS)):
            raise ValueError(f"SSF scales Linear, Conv2d and norm layers, not {type(layer).__name__}")
        channels = len(layer.weight)
        self.layer = layer
        self.scale = nn.Parameter(torch.normal(1.0, spread, (channels,)).to(layer.weight))
        self.shift = nn.Parameter(torch.normal(0.0, spread, (channels,)).to(layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives for x, every channel scaled and shifted."""
        if isinstance(self.layer, NORMS):
            weight, bias = self._values()
            normal: Tensor = functional_call(self.layer, {"weight": weight, "bias": bias}, (x,))
            return normal
        last = (-1, 1, 1) if isinstance(self.layer, nn.Conv2d) else (-1,)
        scaled: Tensor = self.layer(x) * self.scale.view(last) + self.shift.view(last)
        return scaled

    def merged(self) -> nn.Module:
        """Make a plain layer that computes the same."""
        merged = copy.deepcopy(self.layer)
        with torch.no_grad():
            weight, bias = self._values()
        merged.weight, merged.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
        return merged

    def _values(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the plain layer."""
        weight, bias = (cast(Tensor | None, getattr(self.layer, name)) for name in ("weight", "bias"))
        assert weight is not None
        scaled = weight * self.scale.view(-1, *[1] * (weight.dim() - 1))
        return scaled, self.shift if bias is None else bias * self.scale + self.shift


def insert_ssf(backbone: Backbone, *, spread: float = 0.02) -> dict[str, ScaleShift]:
    """Put a `ScaleShift` around layers of any backbone that has norms.

    Of a ViT around the patch embedding, `IN_BLOCK` of every block, and the final norm; of any other model, a
    CNN or a hybrid, around every norm that has a weight and a bias. A norm is where scale and shift merge
    exactly, before the activation and whatever the convolution's padding.

    Args:
        backbone: a `Backbone.twin`, as it is changed.
        spread: see `ScaleShift`.

    Returns:
        Those that were put in, by the name of their layer, such as ``"blocks.0.attn.qkv"``.

    Raises:
        ValueError: for a model that has no such norm.
    """
    model = backbone.model
    layers = dict(model.named_modules())
    if backbone.has_tokens:
        blocks = [f"blocks.{index}.{name}" for index in range(backbone.depth) for name in IN_BLOCK]
        norm = [] if isinstance(backbone.vit.norm, nn.Identity) else ["norm"]
        names = ["patch_embed.proj", *(name for name in blocks if name in layers), *norm]
    else:
        names = [
            name
            for name, layer in layers.items()
            if isinstance(layer, NORMS) and layer.weight is not None and layer.bias is not None
        ]
    if not names:
        raise ValueError(
            f"backbone {backbone.name!r} ({type(model).__name__}) has no batch, layer or group norm with a "
            "weight and a bias, so there is nothing that could be scaled and shifted; choose another model, "
            "or take Frozen(), which goes with any"
        )
    inserted = {name: ScaleShift(layers[name], spread=spread) for name in names}
    for name, adapter in inserted.items():
        model.set_submodule(name, adapter)
    return inserted
