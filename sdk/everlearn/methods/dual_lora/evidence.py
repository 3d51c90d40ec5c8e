"""How much an image looks like each task, by the gates of the residual branch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from everlearn.adapters.gated import GatedLinear

if TYPE_CHECKING:
    from everlearn.methods.dual_lora.method import DualLoRA

# Least standard deviation of omega that evidence is measured by: that of one image is zero, and a
# smaller one would make of float32's rounding what the exported graph may not show.
SPREAD = 0.01
# How far the largest share has to be ahead for the head to look at it: of 0, 0.3 and 0.6 the last did
# the least harm on held-out training images.
MARGIN = 0.6


def note_usual(method: DualLoRA, omega: list[list[Tensor]]) -> None:
    """Take down mean and spread of omega on the current task's own images, given it by block and batch."""
    own = torch.stack([torch.cat(parts) for parts in omega]).mean(0)[:, method.index]
    method.usual[method.index] = own.mean()
    method.spread[method.index] = own.std(correction=0).clamp(min=SPREAD)


def with_shares(method: DualLoRA, images: Tensor) -> Tensor:
    """Features, and behind them the share of each task, (B, F + tasks)."""
    features, omega = with_omega(method, images)
    known = method.spread > 0
    standard = (omega - method.usual) / method.spread.clamp(min=1e-6)
    shares = torch.where(known, standard, torch.full_like(standard, -1e4)).softmax(1)
    return torch.cat([features, shares * known], 1)


def with_omega(method: DualLoRA, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features without evidence, and the mean of omega over the blocks, (B, tasks)."""
    twin = method.twin
    omega: list[Tensor] = []

    def run() -> Iterator[Tensor]:
        tokens = twin.embed(images)
        for block in twin.blocks():
            layer = block.attn.qkv
            if isinstance(layer, GatedLinear):  # one in which nothing is stored may be merged away
                omega.append(layer.omega(block.norm1(tokens[:, 0])))
            tokens = block(tokens)
            yield tokens

    features = torch.cat(twin.gather(run(), method.parts), 1)
    total = sum(omega, start=method.usual.new_zeros(1, method.tasks))
    return features, total / method.backbone.depth
