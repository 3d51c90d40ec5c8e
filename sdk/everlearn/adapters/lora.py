"""LoRA: a low-rank update beside a frozen linear layer, which merges into its weights exactly."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everlearn.backbones import Backbone

LAYERS: dict[str, tuple[tuple[str, int | None], ...]] = {
    "query": (("attn.qkv", 0), ("attn.q_proj", None)),
    "key": (("attn.qkv", 1), ("attn.k_proj", None)),
    "value": (("attn.qkv", 2), ("attn.v_proj", None)),
    "proj": (("attn.proj", None),),
    "fc1": (("mlp.fc1", None), ("mlp.fc1_g", None), ("mlp.fc1_x", None)),
    "fc2": (("mlp.fc2", None),),
}
"""Linear layers of a block by name: where each may lie, and which third of the outputs it is.

A block has ``qkv`` or three layers in its place; its MLP has ``fc1`` or, gated, ``fc1_g`` and ``fc1_x``."""


class LoRA(nn.Module):
    """``linear(x) + scale * up(down(x))``: the layer stays frozen, ``down`` and ``up`` train.

    ``up`` starts at zero, so a fresh one computes what the layer does.

    Args:
        linear: the frozen layer, d_in to d_out.
        rank: r, rows of ``down``.
        scale: constant factor of the update.
        parts: which parts of the outputs are updated, each with factors of its own: for ``qkv``
            of three parts (0, 2) are query and value.
        of: how many equal parts the outputs have.

    Attributes:
        down: (parts, r, d_in).
        up: (parts, d_out / of, r).

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        rank: int = 8,
        scale: float = 1.0,
        parts: Sequence[int] = (0,),
        of: int = 1,
    ) -> None:
        super().__init__()
        like = linear.weight
        self.linear = linear
        self.scale = scale
        self.parts = tuple(parts)
        self.of = of
        self.down = nn.Parameter(like.new_empty(len(self.parts), rank, linear.in_features))
        self.up = nn.Parameter(like.new_zeros(len(self.parts), linear.out_features // of, rank))
        for rows in self.down.detach():
            nn.init.kaiming_uniform_(rows, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        down, up = self.factors()
        added: Tensor = self.linear(x) + self.scale * F.linear(F.linear(x, down), up)
        return added

    def delta(self) -> Tensor:
        """Give what is added to the layer's weights, (d_out, d_in)."""
        down, up = self.factors()
        return self.scale * up @ down

    def merged(self) -> nn.Linear:
        """Make a plain layer that computes the same."""
        return _moved(self.linear, self.delta())

    def follow(self, other: "LoRA", share: float) -> None:
        """Move both factors by this share of the way to another's."""
        with torch.no_grad():
            self.down.lerp_(other.down, share)
            self.up.lerp_(other.up, share)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Give both factors as one matrix each: (parts r, d_in), and (d_out, parts r) with zeros."""
        none = self.up.new_zeros(self.up.shape[1], 0)
        blocks = [self.up[self.parts.index(i)] if i in self.parts else none for i in range(self.of)]
        return self.down.flatten(0, 1), torch.block_diag(*blocks)  # type: ignore[no-untyped-call]


class Shift(nn.Module):
    """A frozen linear layer whose weights are shifted by a matrix: the average of `LoRA` updates.

    Attributes:
        delta: (d_out, d_in), zero at first.
    """

    delta: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("delta", torch.zeros_like(linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        return F.linear(x, self.linear.weight + self.delta, self.linear.bias)

    def merged(self) -> nn.Linear:
        """Make a plain layer that computes the same."""
        return _moved(self.linear, self.delta)

    def follow(self, other: LoRA, share: float) -> None:
        """Move by this share of the way to a LoRA's update."""
        with torch.no_grad():
            self.delta.lerp_(other.delta(), share)


def _moved(linear: nn.Linear, delta: Tensor) -> nn.Linear:
    """A layer of its own, with weights moved by delta (d_out, d_in)."""
    moved = copy.deepcopy(linear)
    with torch.no_grad():
        moved.weight += delta
    return moved


def insert_lora(
    backbone: Backbone, *, layers: Sequence[str] = ("query", "value"), rank: int = 8, scale: float = 1.0
) -> list[LoRA]:
    """Put a `LoRA` around linear layers of every block.

    Args:
        backbone: a `Backbone.twin`, as it is changed.
        layers: names from `LAYERS`.
        rank, scale: see `LoRA`.

    Returns:
        Those that were put in, block by block.

    Raises:
        ValueError: for a name that is none of `LAYERS`, or a backbone that is no ViT.
    """
    unknown = [name for name in layers if name not in LAYERS]
    if unknown or not layers:
        raise ValueError(f"layers must be some of {', '.join(LAYERS)}, got {', '.join(layers) or 'none'}")
    thirds: dict[str, list[int]] = {}
    for path, third in (place for name in layers for place in LAYERS[name]):
        thirds.setdefault(path, []).extend([] if third is None else [third])
    inserted: list[LoRA] = []
    for block in backbone.blocks():
        there = {path for path, _ in block.named_modules()}
        for path, parts in thirds.items():
            if path not in there:
                continue
            options: dict[str, Any] = {"parts": sorted(set(parts)), "of": 3} if parts else {}
            adapter = LoRA(block.get_submodule(path), rank=rank, scale=scale, **options)
            block.set_submodule(path, adapter)
            inserted.append(adapter)
    return inserted
