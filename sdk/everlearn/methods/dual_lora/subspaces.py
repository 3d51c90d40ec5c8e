"""Subspaces of a layer's inputs: the directions that earlier tasks use, and those that are free.

All of it is computed from second moments M = sum x x^T / n of the inputs, not centred, in float64.
Directions are the rows of a matrix (r, d).
"""

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
