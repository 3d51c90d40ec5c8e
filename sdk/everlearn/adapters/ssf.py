"""SSF: scale and shift the outputs of a backbone's layers; it merges into their weights exactly."""

import copy

import torch
from torch import Tensor, nn

from everlearn.backbones import Backbone

IN_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
"""Layers of a block that are scaled, in the order in which the tokens pass them."""


class ScaleShift(nn.Module):
    """``scale * layer(x) + shift`` per channel: the layer stays frozen, scale and shift train.

    Args:
        layer: a frozen ``Linear``, ``LayerNorm`` or ``Conv2d``, with a weight and maybe a bias.
        spread: standard deviation of the start, scale from N(1, spread), shift from N(0, spread);
            with 0 a fresh one computes what the layer does.

    Attributes:
        scale, shift: (channels,).

    Source: Lian et al., "Scaling & Shifting Your Features", arXiv 2210.08823, section 3.
    """

    def __init__(self, layer: nn.Module, *, spread: float = 0.02) -> None:
        super().__init__()
        if not isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
            raise ValueError(f"SSF scales Linear, LayerNorm and Conv2d layers, not {type(layer).__name__}")
        channels = len(layer.weight)
        self.layer = layer
        self.scale = nn.Parameter(torch.normal(1.0, spread, (channels,)).to(layer.weight))
        self.shift = nn.Parameter(torch.normal(0.0, spread, (channels,)).to(layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives for x, every channel scaled and shifted."""
        last = (-1, 1, 1) if isinstance(self.layer, nn.Conv2d) else (-1,)
        scaled: Tensor = self.layer(x) * self.scale.view(last) + self.shift.view(last)
        return scaled

    def merged(self) -> nn.Module:
        """Make a plain layer that computes the same."""
        merged = copy.deepcopy(self.layer)
        with torch.no_grad():
            scale = self.scale.view(-1, *[1] * (merged.weight.dim() - 1))
            merged.weight.mul_(scale)
            bias = self.shift if merged.bias is None else merged.bias * self.scale + self.shift
            merged.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return merged


def insert_ssf(backbone: Backbone, *, spread: float = 0.02) -> dict[str, ScaleShift]:
    """Put a `ScaleShift` around the patch embedding, `IN_BLOCK` of every block, and the final norm.

    Args:
        backbone: a `Backbone.twin`, as it is changed.
        spread: see `ScaleShift`.

    Returns:
        Those that were put in, by the name of their layer, such as ``"blocks.0.attn.qkv"``.

    Raises:
        ValueError: for a backbone that is no ViT, or has other layers in these places.
    """
    vit = backbone.vit
    blocks = [f"blocks.{index}.{name}" for index in range(backbone.depth) for name in IN_BLOCK]
    norm = [] if isinstance(vit.norm, nn.Identity) else ["norm"]
    names = ["patch_embed.proj", *blocks, *norm]
    inserted = {name: ScaleShift(vit.get_submodule(name), spread=spread) for name in names}
    for name, adapter in inserted.items():
        vit.set_submodule(name, adapter)
    return inserted
