"""Subspaces of a layer's inputs: the directions that earlier tasks use, and those that are free.

All of it is computed from second moments M = sum x x^T / n of the inputs, not centred, in float64.
Directions are the rows of a matrix (r, d).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subspace:
    """A subspace of R^d in which earlier tasks' inputs lie.

    Attributes:
        basis: orthonormal rows (r, d).
        free: True when they span what is left free, and not what is used.
    """

    basis: Tensor
    free: bool = False

    def outside(self, moment: Tensor) -> Tensor:
        """The part of a moment (d, d), or of columns (d, n), outside what is used; from the left only."""
        inside = self.basis.T @ (self.basis @ moment)
        return inside if self.free else moment - inside


def orthogonal_complement(basis: Tensor) -> Tensor:
    """Orthonormal rows (d - r, d) that are orthogonal to the orthonormal rows (r, d) of a basis.

    >>> orthogonal_complement(torch.tensor([[1.0, 0.0]])).abs()
    tensor([[0., 1.]])
    """
    turned: Tensor = torch.linalg.qr(basis.T, mode="complete").Q
    return turned[:, len(basis) :].T


def principal(moment: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions of inputs without their part in a subspace.

    Args:
        moment: M (d, d).
        used: orthonormal rows (r, d) of the subspace.

    Returns:
        The energy x^T M x of each direction, descending (d - r,), and the directions (d - r, d):
        orthonormal, and orthogonal to ``used`` however little energy is left.
    """
    free = orthogonal_complement(used)
    values, vectors = torch.linalg.eigh(free @ moment @ free.T)  # ascending
    return values.flip(0).clamp(min=0), vectors.flip(1).T @ free


def fewest_directions(moment: Tensor, used: Tensor, energy: float) -> Tensor:
    """The fewest directions beside ``used`` that bring the covered share of the energy to ``energy``.

    Args:
        moment: M (d, d).
        used: orthonormal rows (r, d) that are covered already.
        energy: share of the trace of M, in (0, 1].

    Returns:
        Orthonormal rows (n, d), strongest first, orthogonal to ``used``; none when ``used`` is enough.
        Directions with less than 1e-9 of the energy are rounding, and are never taken.

    >>> fewest_directions(torch.diag(torch.tensor([6.0, 3.0, 1.0])), torch.zeros(0, 3), 0.9).abs()
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    values, directions = principal(moment, used)
    total = moment.trace()
    # What would still be missing before each direction is taken.
    missing = values.sum() - (values.cumsum(0) - values) - (1 - energy) * total
    wanted = (missing > 1e-12 * total) & (values > 1e-9 * total)
    return directions[: int(wanted.sum())]


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
