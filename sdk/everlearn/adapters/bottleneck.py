"""A bottleneck beside the MLP: NTK-CL's channel view (S2), AdaptFormer's adapter."""

import copy
import math

import torch
from torch import Tensor, nn


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
