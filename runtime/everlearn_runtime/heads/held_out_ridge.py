"""Ridge regression whose strength is chosen on held-out rows, as in RanPAC's released code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.gram import add_products
from everlearn_runtime.heads.ridge import CHUNK_ROWS, Ridge
from everlearn_runtime.heads.statistics import Solution
from everlearn_runtime.heads.sums import Joined, group_sums

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

    def _learn(self, rows: NDArray[np.float64], places: list[int]) -> None:
        errors, most = self._errors, self._held_out
        held_out = len(rows) - fitted_rows(len(rows))
        if self._decides(held_out, len(set(places))):  # before the rest, while the rows are all in memory
            found = held_out_errors(rows, np.array(places), self._grid, self._map, self.order(len(rows)))
            errors, most = errors + found if self._remember else found, max(most, held_out)
        super()._learn(rows, places)
        self._errors, self._held_out = errors, most

    def _decides(self, held_out: float, classes: int) -> bool:
        """Whether so many rows of so many classes say anything about lambda."""
        # A state of an earlier version does not say how large its tasks were.
        unsaid = self._held_out == 0 and bool(self._errors.any())
        return classes > 1 and held_out >= max(1, DECISIVE if unsaid else min(DECISIVE, self._held_out / 2))

    @property
    def splits(self) -> bool:
        """No: as for ``movable``."""
        return False

    @property
    def movable(self) -> bool:
        """No: the lambda was chosen on samples that were held out."""
        return False

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
    rows: NDArray[np.float64],
    codes: NDArray[np.intp],
    grid: NDArray[np.float64],
    mapped: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda rows: rows,
    order: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """Summed squared error on the last fifth of the rows of ridges fitted to those before it.

    The rows are mapped a few at a time, so that beside them no more is needed than a few matrices
    of the ridge's own size.

    Args:
        rows: (n, F), n at least 2.
        codes: the class of each, (n,); the targets are one-hot.
        grid: strengths (K,).
        mapped: makes of rows (m, F) what the ridge sees, (m, M).
        order: of the rows (n,); None: as they come.

    Returns:
        (K,).
    """
    numbers = np.arange(len(rows)) if order is None else order
    codes = np.unique(codes, return_inverse=True)[1]
    classes = int(codes.max()) + 1
    first = fitted_rows(len(rows))

    def chunks(start: int, end: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.intp]]]:
        for at in range(start, end, CHUNK_ROWS):
            chosen = numbers[at : min(at + CHUNK_ROWS, end)]
            yield mapped(rows[chosen]), codes[chosen]

    # One eigendecomposition for all strengths, of the smaller of the two forms of the same ridge.
    width, fitted = mapped(rows[:1]).shape[1], None
    if first < width:
        fitted = np.concatenate([hidden for hidden, _ in chunks(0, first)])
        targets = np.zeros((first, classes))
        targets[np.arange(first), codes[numbers[:first]]] = 1
        values, vectors = np.linalg.eigh(fitted @ fitted.T)
        right = vectors.T @ targets
    else:
        gram, sums = np.zeros((width, width)), np.zeros((classes, width))
        for hidden, own in chunks(0, first):
            add_products(hidden, gram)
            places, _, found = group_sums(hidden, own)
            sums[places] += found
        values, vectors = np.linalg.eigh(gram)
        del gram
        right = vectors.T @ sums.T
    values = np.maximum(values, 0.0)
    errors = np.zeros(len(grid))
    for hidden, own in chunks(first, len(rows)):
        left = (hidden if fitted is None else hidden @ fitted.T) @ vectors
        for place, strength in enumerate(grid):
            missed = left @ (right / (values + strength)[:, None])
            missed[np.arange(len(own)), own] -= 1
            errors[place] += (missed**2).sum()
    return errors
