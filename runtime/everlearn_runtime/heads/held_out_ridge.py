"""Ridge regression whose strength is chosen on held-out rows, as in RanPAC's released code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Joined, Solution
from everlearn_runtime.heads.ridge import Ridge

# Held-out rows that are enough in any case.
DECISIVE = 20


class HeldOutRidge(Ridge):
    """`Ridge` with lambda by hold-out: to compare with RanPAC. ``Ridge("gcv")`` is the exact one.

    One update is one task. Lambda is the value of a grid for which a ridge fitted to the first
    80 % of the update's rows, shuffled, has the smallest squared error on the rest, against
    one-hot targets. The sums G and Q are those of `Ridge`, and the weights (G + lambda I)^-1 Q,
    with lambda as it is, not relative to G.

    Lambda depends on how the rows are cut into updates and on their order, so the head is not
    ``exact``. As released it also forgets: the newest task alone decides for all classes.
    With ``remember`` the errors of all updates are added up, and the whole stream decides.

    An update that is no task says nothing about lambda and leaves the choice as it was, 1 at
    first; its samples count in G and Q like all others. It is a task if it has two classes or more,
    for of one alone a hold-out shows how well a constant is fitted, and if it holds out twenty rows,
    or half as many as the largest hold-out so far. On trained features of Tiny-ImageNet with 2,000
    random ones, tasks choose 1e5 or 1e6. Parts of them that hold out twenty rows or more came within
    two decades of 1e5 in 120 of 120 draws, ten to nineteen rows in 78 of 96, and fewer in 70 of 264,
    the other 194 being at an end of the grid.

    Args:
        remember: add up the errors of all updates.
        shuffle: in an order drawn from ``seed``; False takes the rows as they come, which is
            right when a loader has shuffled them, and wrong when they come class by class.
        projection: as in `Ridge`.
        seed: as in `Ridge`.
        grid: exponents of ten of the smallest and the largest lambda, one value a decade.

    Raises:
        ValueError: An argument out of range.

    Source: McDonnell et al., "RanPAC: Random Projections and Pre-trained Models for Continual
    Learning", NeurIPS 2023, arXiv 2307.02251, section 4 and its released code.

    >>> head = HeldOutRidge(projection=64, shuffle=False)
    >>> head.update(np.eye(3)[[0, 1, 2, 0, 1, 2]], list("abcabc"))
    >>> head.strength
    1e-08
    """

    kind: ClassVar[str] = "held_out_ridge"
    exact: ClassVar[bool] = False

    def __init__(
        self,
        remember: bool = False,
        shuffle: bool = True,
        projection: int | None = None,
        seed: int = 0,
        grid: Sequence[int] = (-8, 8),
    ) -> None:
        super().__init__(projection=projection, seed=seed)
        for name, value in (("remember", remember), ("shuffle", shuffle)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; give True or False")
        given = tuple(grid)
        if len(given) != 2 or any(type(step) is not int for step in given) or given[0] > given[1]:
            raise ValueError(f"grid is {grid!r}; give the exponents of the smallest and the largest, (-8, 8)")
        self._remember = remember
        self._shuffle = shuffle
        self._exponents = given
        self._grid = np.power(10.0, np.arange(given[0], given[1] + 1), dtype=np.float64)
        self._errors = np.zeros(len(self._grid))
        self._held_out = 0.0  # the most rows so far

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {
            "remember": self._remember,
            "shuffle": self._shuffle,
            "projection": self._projection,
            "seed": self._seed,
            "grid": list(self._exponents),
        }

    @property
    def strength(self) -> float:
        """Lambda."""
        if not self._errors.any():
            return 1.0
        return float(self._grid[self._errors.argmin()])

    def order(self, rows: int) -> NDArray[np.intp]:
        """The order of an update's rows in which the last fifth is held out."""
        if not self._shuffle:
            return np.arange(rows)
        return np.random.RandomState(self._seed).permutation(rows)

    def _solve(self) -> Solution:
        least = float(np.finfo(np.float64).eps) * self._gram.trace  # below it the sum is G as before
        weights = self._solved(1.0, max(self.strength, least))
        return weights.T, np.zeros(len(self._counts)), 1

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        if self._decides(held_out := len(rows) - fitted_rows(len(rows)), len(joined.places)):
            targets = (codes[:, None] == joined.places).astype(np.float64)
            hidden, order = self._map(rows), self.order(len(rows))
            errors = held_out_errors(hidden[order], targets[order], self._grid)
            self._errors = self._errors + errors if self._remember else errors
            self._held_out = max(self._held_out, held_out)
        super()._learn_shared(rows, means, codes, joined)

    def _decides(self, held_out: float, classes: int) -> bool:
        """Whether so many rows of so many classes say anything about lambda."""
        return classes > 1 and held_out >= max(1, min(DECISIVE, self._held_out / 2))

    def _merge_shared(self, other: Ridge, joined: Joined) -> None:
        assert isinstance(other, HeldOutRidge)
        super()._merge_shared(other, joined)
        if self._decides(other._held_out, len(joined.places)):
            self._errors = self._errors + other._errors if self._remember else other._errors.copy()
            self._held_out = max(self._held_out, other._held_out)

    def _shared_nbytes(self) -> int:
        return super()._shared_nbytes() + self._errors.nbytes + 8

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        own = {"errors": self._errors.copy(), "held_out": np.array([self._held_out], np.float64)}
        return {**super()._shared_arrays(), **own}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        own: dict[str, tuple[int, ...]] = {"errors": self._errors.shape, "held_out": (1,)}
        return {**super()._shared_shapes(classes, width), **own}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._errors, self._held_out = arrays["errors"], float(arrays["held_out"][0])
        super()._restore_shared(arrays)


def fitted_rows(rows: int) -> int:
    """How many of so many rows are fitted to, of which the rest is held out."""
    return int(0.8 * rows)


def held_out_errors(
    hidden: NDArray[np.float64], targets: NDArray[np.float64], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Summed squared error on the last fifth of the rows of ridges fitted to those before it.

    Args:
        hidden: (n, M), n at least 2.
        targets: (n, C).
        grid: strengths (K,).

    Returns:
        (K,).
    """
    first = fitted_rows(len(hidden))
    fitted, rest = hidden[:first], hidden[first:]
    # One eigendecomposition for all strengths, of the smaller of the two forms of the same ridge.
    if first < hidden.shape[1]:
        values, vectors = np.linalg.eigh(fitted @ fitted.T)
        left, right = rest @ fitted.T @ vectors, vectors.T @ targets[:first]
    else:
        values, vectors = np.linalg.eigh(fitted.T @ fitted)
        left, right = rest @ vectors, vectors.T @ (fitted.T @ targets[:first])
    values = np.maximum(values, 0.0)
    errors = [
        ((left @ (right / (values + strength)[:, None]) - targets[first:]) ** 2).sum() for strength in grid
    ]
    return np.array(errors)
