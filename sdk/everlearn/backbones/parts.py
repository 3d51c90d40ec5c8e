"""Parts of which features consist: a backbone's own, and tokens that are pooled behind them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

AUTO = "auto"
"""Name of the recommended parts; what it stands for stays as it is, since saved learners name it."""

KINDS = ("cls", "mean", "std")

Depths = str | Sequence[str]
"""``"auto"``, or names of parts such as ``"mean"``, ``"std"``, ``"mean@9"``, ``"cls@-4"``."""


class Part(NamedTuple):
    """One way to pool tokens into a vector as wide as a token.

    Attributes:
        kind: ``"cls"``, or mean or standard deviation over the patch tokens, ``"mean"`` or ``"std"``.
        block: of the tokens behind this block, counted from 0, normalised without weights; None: of those
            behind the last block, after the final norm.
    """

    kind: str
    block: int | None = None

    def __str__(self) -> str:
        return self.kind if self.block is None else f"{self.kind}@{self.block}"

    def of(self, tokens: Tensor, prefix: int) -> Tensor:
        """Pool normalised tokens (B, N, d), the first ``prefix`` of which are no patches: (B, d)."""
        if self.kind == "cls":
            return tokens[:, 0]
        patches = tokens[:, prefix:]
        if self.kind == "mean":
            return patches.mean(1)
        # As in a norm: without the last term it has no gradient where all patches are alike.
        return (patches.var(1, correction=0) + 1e-6).sqrt()


def plain_norm(tokens: Tensor) -> Tensor:
    """Layer normalisation without weights, of tokens (B, N, d)."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def given(depths: Depths) -> str | tuple[str, ...]:
    """``depths`` as a method keeps it; ``ValueError`` when it is neither "auto" nor a list of names."""
    if depths == AUTO:
        return AUTO
    names = isinstance(depths, Sequence) and all(isinstance(name, str) for name in depths)
    if isinstance(depths, str) or not names:
        raise ValueError(f"depths must be {AUTO!r} or a list such as {_EXAMPLE}, got {depths!r}")
    return tuple(depths)


def recommended(depth: int, *, patches: bool) -> tuple[Part, ...]:
    """The parts that ``"auto"`` stands for, in a ViT of so many blocks.

    Mean and standard deviation of the patches, and their means behind five sixths and two thirds of the
    blocks: ``mean, std, mean@9, mean@7`` of twelve. A ViT of one to three blocks has less of them.

    Args:
        depth: number of blocks.
        patches: whether the mean of the patches is to be had, see `Backbone.pooled`.

    >>> [str(part) for part in recommended(12, patches=True)]
    ['mean', 'std', 'mean@9', 'mean@7']
    """
    inner = dict.fromkeys(depth * share // 6 - 1 for share in (5, 4))
    last = (Part("mean"), Part("std")) if patches else (Part("std"),)
    return (*last, *(Part("mean", block) for block in inner if 0 <= block < depth - 1))


def part(name: str, depth: int) -> Part:
    """The part of this name in a ViT of so many blocks; ``ValueError`` when there is none.

    >>> part("mean@-3", 12)
    Part(kind='mean', block=9)
    """
    kind, at, number = name.partition("@")
    digits = number.removeprefix("-")
    if kind not in KINDS or bool(at) != (digits.isascii() and digits.isdigit()):
        raise ValueError(
            f"there is no part {name!r}; write 'cls', 'mean' or 'std', and for one of an inner block its "
            f"number behind it, such as 'mean@{max(depth - 3, 0)}'"
        )
    if not at:
        return Part(kind)
    block = int(number) + (depth if number.startswith("-") else 0)
    if not 0 <= block < depth - 1:
        raise ValueError(
            f"{name!r} is of no inner block: this backbone has {depth}, numbered from 0, and the last one's "
            f"parts are 'cls', 'mean' and 'std'; take a block from 0 to {depth - 2}"
            if depth > 1
            else f"{name!r} is of no inner block: this backbone has one block; take 'cls', 'mean' or 'std'"
        )
    return Part(kind, block)


_EXAMPLE = "['mean', 'std', 'mean@9']"
