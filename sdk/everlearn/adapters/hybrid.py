"""The hybrid view: NTK-CL's fusion of the channel view and the patch view."""

import torch.nn.functional as F
from torch import Tensor, nn


class Hybrid(nn.Module):
    """``z_m = 0.5 Attention(Q = z_p, K = V = z_c) + z_c + 0.1 z_p`` over the feature sections.

    The sections of a view (PTM, pre, cur) are the tokens of the attention, so that it has
    something to choose from. In the authors' code the whole view is one token: its softmax is
    1, so z_m = 0.5 V(z_c) + z_c + 0.1 z_p, and queries and keys never learn. Both are this
    module, with sections of width d or one of the view's whole width.

    Args:
        width: width d of a token; a multiple of ``heads``.
        heads: attention heads.
        dropout: probability of dropping an attention weight in training.
        zero_values: start the values at zero, so that a fresh fusion adds nothing random to the
            views; a choice of ours, whose worth has not been measured alone.

    Source: arXiv 2407.17120, section 4.
    """

    def __init__(self, width: int, *, heads: int = 8, dropout: float = 0.1, zero_values: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"the feature width {width} is no multiple of heads={heads}; pass heads that divide it"
            )
        self.width = width
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        if zero_values:
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)

    def forward(self, channel: Tensor, patch: Tensor) -> Tensor:
        """Fuse the views z_c and z_p, (B, S, d) each, into z_m (B, S, d)."""
        query, key, value = (
            layer(view).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, view in ((self.query, patch), (self.key, channel), (self.value, channel))
        )
        weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        weights = F.dropout(weights, self.dropout, self.training)
        attended: Tensor = (weights @ value).transpose(1, 2).flatten(2)
        return 0.5 * attended + channel + 0.1 * patch
