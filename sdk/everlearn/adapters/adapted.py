"""A backbone and its adapters block by block: what an exported training step is cut from."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from everlearn.adapters.bottleneck import Bottleneck
from everlearn.backbones import Backbone, Block, Part, attend, feed_forward


class Beside(nn.Module):
    """A ViT's block with a bottleneck beside its MLP: out = u + MLP(LN2 u) + bottleneck(u).

    Args:
        block: of the ViT.
        bottleneck: its adapter.
        first: how many tokens are wanted, from the front; None: all.
    """

    def __init__(self, block: Block, bottleneck: Bottleneck, first: int | None = None) -> None:
        super().__init__()
        self.block = block
        self.bottleneck = bottleneck
        self.first = first

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, d) to those behind the block, (B, N, d) or (B, first, d)."""
        attended = attend(self.block, tokens, self.first)
        behind: Tensor = attended + feed_forward(self.block, attended) + self.bottleneck(attended)
        return behind


class Trunk(nn.Module):
    """Blocks of a backbone one after the other, from images or tokens to features.

    Parameters that require a gradient are the adapters'. A block keeps its number in their names.

    Args:
        backbone: that the blocks are of.
        blocks: all of them, first to last, each with its adapter, tokens (B, N, d) to tokens.
        parts: that stand behind the backbone's own features, see `Backbone.parts`.
        start: the first block that is run, on the tokens (B, N, d) that enter it, which give no parts of
            blocks before; None: all are run, on normalised images (B, 3, H, W).
        also: give the tokens that enter this block, too.
    """

    def __init__(
        self,
        backbone: Backbone,
        blocks: Iterable[nn.Module],
        parts: Sequence[Part],
        *,
        start: int | None = None,
        also: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.blocks = nn.ModuleDict(
            {str(number): block for number, block in enumerate(blocks) if number >= (start or 0)}
        )
        self.parts = tuple(parts)
        self.start = start
        self.also = also

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Features (B, F), and the tokens (B, N, d) that were asked for, too."""
        entering = [self.backbone.embed(x) if self.start is None else x]
        for block in self.blocks.values():
            entering.append(block(entering[-1]))
        features = torch.cat(self.backbone.gather(entering[1:], self.parts), 1)
        return features if self.also is None else (features, entering[self.also])
