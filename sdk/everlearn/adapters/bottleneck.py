"""A bottleneck beside the MLP: NTK-CL's channel view (S2), AdaptFormer's adapter."""

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from everlearn.backbones import Backbone, Part, attend, feed_forward


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


class Bottlenecks(nn.ModuleList):
    """A `Bottleneck` beside the MLP of each block; calling it gives the adapted features.

    Args:
        backbone: the ViT that it is for; ``ValueError`` when it is none.
        hidden, dropout, scale: see `Bottleneck`.

    >>> from everlearn import load_backbone
    >>> backbone = load_backbone()
    >>> bottlenecks = Bottlenecks(backbone, hidden=4)
    >>> bottlenecks(backbone, torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 192])
    """

    def __init__(
        self, backbone: Backbone, *, hidden: int = 64, dropout: float = 0.1, scale: float = 0.1
    ) -> None:
        width = backbone.vit.embed_dim
        super().__init__(
            Bottleneck(width, hidden=hidden, dropout=dropout, scale=scale) for _ in backbone.blocks()
        )

    def forward(self, backbone: Backbone, images: Tensor, parts: Sequence[Part] = ()) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W), as by `Backbone.features`."""
        return torch.cat(backbone.gather(self.run(backbone, images, parts), parts), 1)

    def run(self, backbone: Backbone, images: Tensor, parts: Sequence[Part] = ()) -> Iterator[Tensor]:
        """Tokens behind each block, for `Backbone.gather`."""
        return beside_mlps(backbone, *first_block(backbone, images), self, backbone.wanted(parts))


def first_block(backbone: Backbone, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens before and after the first block's MLP, without any adapter: what all branches share."""
    first, *_ = backbone.blocks()
    tokens = attend(first, backbone.embed(images))
    return tokens, tokens + feed_forward(first, tokens)


def beside_mlps(
    backbone: Backbone,
    tokens: Tensor,
    after: Tensor,
    bottlenecks: nn.Module | None,
    wanted: int | None = None,
) -> Iterator[Tensor]:
    """Run the blocks with bottlenecks beside their MLPs: out = u + MLP(LN2 u) + bottleneck(u).

    Args:
        backbone: a ViT.
        tokens, after: what `first_block` gives, (B, N, d) each.
        bottlenecks: a list of one a block; None runs the blocks as they are.
        wanted: how many of the last tokens, from the front; None: all.

    Yields:
        Tokens behind each block, (B, N, d), the last one's (B, wanted, d).
    """
    last = backbone.depth - 1
    beside = [None] * (last + 1) if bottlenecks is None else bottlenecks.children()
    for index, (block, bottleneck) in enumerate(zip(backbone.blocks(), beside, strict=True)):
        if index:
            tokens = attend(block, after, wanted if index == last else None)
            after = tokens + feed_forward(block, tokens)
        if bottleneck is not None:
            after = after + bottleneck(tokens)
        yield after
