"""Prompts generated from the tokens themselves: NTK-CL's patch view (S1)."""

import math

import torch
from torch import Tensor, nn


class PromptGenerator(nn.Module):
    """A linear map over the token axis, N tokens to Q prompts, then a LayerNorm.

    Args:
        tokens: number of tokens N it reads, the prefix included.
        width: token width d.
        prompts: number of prompts Q.
        gain: start value of the LayerNorm's gain.
        zero_start: start everything at zero, the gain too, as the authors' code does. No gradient
            ever reaches weights or gain then, only the LayerNorm's bias learns.

    Source: arXiv 2407.17120, section 4 (S1). By default the map starts as an ordinary linear
    layer with a small gain, so that it trains; a choice of ours.
    """

    def __init__(
        self, tokens: int, width: int, *, prompts: int = 10, gain: float = 0.1, zero_start: bool = False
    ) -> None:
        super().__init__()
        self.mix = nn.Linear(tokens, prompts)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.kaiming_uniform_(self.mix.weight, a=math.sqrt(5))
        nn.init.zeros_(self.mix.bias)
        nn.init.constant_(self.norm.weight, gain)
        if zero_start:
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.norm.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Make prompts (B, Q, d) from tokens (B, N, d)."""
        prompts: Tensor = self.norm(self.mix(tokens.transpose(1, 2)).transpose(1, 2))
        return prompts


def insert(tokens: Tensor, prompts: Tensor, at: int) -> Tensor:
    """Put prompts (B, Q, d) behind the first ``at`` tokens of (B, N, d)."""
    return torch.cat([tokens[:, :at], prompts, tokens[:, at:]], dim=1)


def strip(tokens: Tensor, count: int, at: int) -> tuple[Tensor, Tensor]:
    """Take ``count`` prompts from behind the first ``at`` tokens: (the tokens, the prompts)."""
    return torch.cat([tokens[:, :at], tokens[:, at + count :]], dim=1), tokens[:, at : at + count]
