"""A backbone and its adapters block by block: what an exported training step is cut from."""

from collections.abc import Iterable

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from everlearn.adapters.bottleneck import Bottleneck
from everlearn.backbones import Backbone, attend, feed_forward


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


class Part(nn.Module):
    """Some blocks of a backbone, one after the other, with what comes before or behind them.

    Parameters that require a gradient are the adapters'. A block keeps its number in their names.

    Args:
        backbone: that the blocks are of.
        blocks: numbers and modules, tokens (B, N, d) to tokens.
        enter: start from normalised images (B, 3, H, W), not from tokens.
        leave: end with features (B, F), not with tokens.
        patches: whether the features have the mean patch behind CLS, as in `Backbone.features`.
    """

    def __init__(
        self,
        backbone: Backbone,
        blocks: Iterable[tuple[int, nn.Module]],
        *,
        enter: bool,
        leave: bool,
        patches: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.blocks = nn.ModuleDict({str(number): block for number, block in blocks})
        self.enter = enter
        self.leave = leave
        self.patches = patches

    def forward(self, x: Tensor) -> Tensor:
        """Images or tokens to tokens or features."""
        tokens = self.backbone.embed(x) if self.enter else x
        for block in self.blocks.values():
            tokens = block(tokens)
        if not self.leave:
            return tokens
        parts = self.backbone.parts(patches=self.patches)
        return torch.cat(self.backbone.gather([tokens], parts), 1)


class Both(nn.Module):
    """A backbone cut in two, as one module that also gives what goes from one part into the other."""

    def __init__(self, trunk: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.tail = tail

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) and tokens (B, N, d) of normalised images (B, 3, H, W)."""
        tokens = self.trunk(images)
        return self.tail(tokens), tokens


def uncut(backbone: Backbone, blocks: Iterable[nn.Module], *, patches: bool) -> Part:
    """A backbone with adapters, from normalised images to features, see `cut`."""
    return Part(backbone, enumerate(blocks), enter=True, leave=True, patches=patches).eval()


def cut(backbone: Backbone, blocks: Iterable[nn.Module], *, last: int, patches: bool) -> tuple[Part, Part]:
    """Cut a backbone with adapters in two: what stays as it is, and the blocks whose adapters go on learning.

    Args:
        backbone: a ViT.
        blocks: all of them, first to last, each with its adapter; parameters that require a gradient are the
            adapters'.
        last: so many blocks behind the cut, all where there are no more.
        patches: see `Part`.

    Returns:
        Normalised images to tokens, and tokens to features.
    """
    numbered = list(enumerate(blocks))
    at = max(len(numbered) - last, 0)
    trunk = Part(backbone, numbered[:at], enter=True, leave=False, patches=patches)
    tail = Part(backbone, numbered[at:], enter=False, leave=True, patches=patches)
    return trunk.eval().requires_grad_(False), tail.eval()
