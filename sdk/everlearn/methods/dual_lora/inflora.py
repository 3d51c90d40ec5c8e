"""InfLoRA's released rules: which directions are read, and which are kept clear of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from everlearn.backbones import Backbone
from everlearn.methods.dual_lora.rule import Rule
from everlearn.methods.dual_lora.subspaces import Subspace, orthogonal_complement

if TYPE_CHECKING:
    from everlearn.methods.dual_lora.method import DualLoRA


class InfLoRA(Rule):
    """Moments of all tokens, A from left singular vectors, Psi by `dual_gpm`, without a cap on its size.

    The threshold never reaches its end, as the release counts the tasks before.
    """

    residual: ClassVar[bool] = False

    def check(self, backbone: Backbone) -> None:
        """Take any ViT, as all tokens are read."""

    def capacity(self, method: DualLoRA, width: int) -> int:
        """All directions."""
        return width

    def tokens(self, given: Tensor) -> Tensor:
        """All tokens (B, N, d)."""
        return given

    def threshold(self, method: DualLoRA) -> float:
        """A share of the squared eigenvalues, by equal steps, one task late."""
        low, high = method.energy
        return low + (high - low) * min(method.index / method.tasks, 1)

    def down(self, moment: Tensor, psi: Subspace, rank: int) -> Tensor:
        """A, see `released_down`."""
        return released_down(moment, psi, rank)

    def take_in(self, method: DualLoRA, moment: Tensor, psi: Subspace, own: Tensor, room: int) -> Subspace:
        """Psi after the task, see `dual_gpm`."""
        return dual_gpm(moment, psi if method.index else None, method.threshold)


def released_down(moment: Tensor, before: Subspace, rank: int) -> Tensor:
    """InfLoRA's A (rank, d): left singular vectors of (I - P) M over sqrt(3), as released.

    They are not the principal directions of the inputs outside the subspace, which diagonalise
    (I - P) M (I - P): first directions agree, further ones turn away.
    """
    left: Tensor = torch.linalg.svd(before.outside(moment)).U
    return left[:, :rank].T / math.sqrt(3)


def dual_gpm(moment: Tensor, before: Subspace | None, threshold: float) -> Subspace:
    """Take a task's inputs into the subspace as InfLoRA's released code does.

    Its rule counts the squared eigenvalues of M, which are squared energies. The first task stops
    strictly below the threshold, so with one direction fewer than the fewest that reach it; later
    ones take the fewest. Once more than half of all directions are used, the free ones are kept
    in their place ('retain'), and tasks take directions out of them.

    Args:
        moment: M (d, d) of the task's inputs after its training.
        before: what the tasks before have left; None for the first task.
        threshold: share of the squared eigenvalues.

    Raises:
        ValueError: when the first task takes more than half of the directions. The released code
            then calls the used directions free and stops at an assertion; at exactly half it goes on,
            and so does this.

    Source: Liang and Li, "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning",
    arXiv 2404.00228, and its code; DualGPM is of arXiv 2308.11537.
    """
    width = len(moment)
    total = torch.linalg.svdvals(moment).square().sum()
    if before is None:
        left, singular, _ = torch.linalg.svd(moment)
        count = max(int((singular.square().cumsum(0) / total < threshold).sum()), 1)
        if 2 * count > width:
            raise ValueError(
                f"the first task takes {count} of {width} directions at threshold {threshold:g}, and the "
                "released rule ends there; lower the threshold, or take the energy rule"
            )
        return Subspace(left[:, :count].T, free=2 * count >= width)
    left, singular, _ = torch.linalg.svd(before.outside(moment))
    shares = (singular.square() / total).tolist()
    left_out, count = sum(shares), 0
    if before.free:
        while count < len(before.basis) and left_out >= 1 - threshold:
            left_out -= shares[count]
            count += 1
        if not count:
            return before
        taken, columns = left[:, :count], before.basis.T
        rest = torch.linalg.svd(columns - taken @ (taken.T @ columns)).U
        return Subspace(rest[:, : columns.shape[1] - count].T, free=True)
    covered = 1 - left_out
    while count < width and covered < threshold:
        covered += shares[count]
        count += 1
    basis = torch.cat([before.basis, left[:, :count].T])
    if 2 * len(basis) > width:
        return Subspace(orthogonal_complement(basis), free=True)
    return Subspace(basis)
