"""A bottleneck beside the MLP: NTK-CL's channel view (S2), AdaptFormer's adapter."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from everlearn.backbones import Backbone, attend, feed_forward


class Bottleneck(nn.Module):
    """``scale * up(dropout(relu(down(x))))`` on every token, to be added to the MLP's output.

    ``up`` starts at zero, so a fresh adapter leaves the backbone as it is.

    Args:
        width: token width d.
        hidden: bottleneck width.
        dropout: probability of dropping a hidden unit in training.
        scale: constant factor of the output.

    Source: arXiv 2407.17120, section 4 (S2); Chen et al., AdaptFormer, NeurIPS 2022.
    """

    def __init__(self, width: int, *, hidden: int = 16, dropout: float = 0.1, scale: float = 0.1) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, d) to what is added to them (B, N, d)."""
        hidden = self.dropout(self.down(tokens).relu())
        added: Tensor = self.scale * self.up(hidden)
        return added

    def merged(self) -> "Bottleneck":
        """Make one with the scale in its weights: a multiplication less, the same output."""
        folded = copy.deepcopy(self)
        with torch.no_grad():
            folded.up.weight.mul_(self.scale)
            folded.up.bias.mul_(self.scale)
        folded.scale = 1.0
        return folded


def features_beside(backbone: Backbone, adapters: Iterable[nn.Module], images: Tensor) -> Tensor:
    """Features (B, width) of images (B, 3, H, W) with an adapter beside each block's MLP."""
    tokens, last = backbone.embed(images), backbone.depth - 1
    for index, (block, adapter) in enumerate(zip(backbone.blocks(), adapters, strict=True)):
        tokens = attend(block, tokens, backbone.pooled if index == last else None)
        tokens = tokens + feed_forward(block, tokens) + adapter(tokens)
    return backbone.pool(tokens)
