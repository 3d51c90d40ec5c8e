"""Ridge regression whose lambda comes from a hold-out of each batch, as RanPAC and SAFE release it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Joined, Solution
from everlearn_runtime.heads.ridge import Ridge

FEWEST_ROWS = 5  # the fewest of which a fifth is a row


class HoldoutRidge(Ridge):
    """`Ridge` with an absolute lambda, chosen anew in every update from that update's rows alone.

    The rows are shuffled; on the first 80 % each lambda is fitted, on the rest its squared error
    is measured, and the best one then regularises the sums over all rows ever seen. So the result
    depends on how samples are cut into updates: it is here to reproduce released code. An update of
    fewer than five rows leaves lambda as it was, at first the smallest of the grid. A merged head
    keeps its own lambda, or takes over the other's when it has seen nothing.

    Args:
        grid: positive values of lambda to choose from.
        projection: as in `Ridge`.
        seed: of the projection, and of the shuffling.

    Raises:
        ValueError: An argument out of range.

    Source: SAFE (arXiv 2411.02175) as released, with lambda from 1e3 to 1e8.

    >>> head = HoldoutRidge(grid=[0.1, 10.0])
    >>> head.update(np.repeat(np.eye(2), 10, axis=0), ["a"] * 10 + ["b"] * 10)
    >>> head.ridge
    0.1
    """

    kind: ClassVar[str] = "holdout-ridge"
    exact: ClassVar[bool] = False

    def __init__(
        self,
        grid: Sequence[float] = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8),
        projection: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(projection=projection, seed=seed)
        self._grid = [float(value) for value in grid]
        if not self._grid or not all(0 < value < np.inf for value in self._grid):
            raise ValueError(f"grid is {grid!r}; give positive numbers, for example [1e3, 1e4]")
        self._ridge = min(self._grid)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {"grid": self._grid, "projection": self._projection, "seed": self._seed}

    @property
    def ridge(self) -> float:
        """The lambda that the last update chose."""
        return self._ridge

    def order(self, rows: int) -> NDArray[np.intp]:
        """The order of an update's rows in which the last fifth is held out; a seeded shuffle."""
        return np.random.RandomState([self._seed, self._seen % 2**32]).permutation(rows)

    def _solve(self) -> Solution:
        bias = np.zeros(len(self._counts))
        if self._size == 0:
            return np.zeros((self._gram.width, len(bias))), bias, 1
        return self._running.weights(self._gram, 1.0, self._ridge, self._targets).T, bias, 1

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        order = self.order(len(rows))
        super()._learn_shared(rows, means, codes, joined)
        if len(rows) >= FEWEST_ROWS:
            targets = np.eye(len(self._counts))[codes[order]]
            errors = holdout_errors(self._map(rows[order]), targets, self._grid)
            self._ridge = self._grid[int(errors.argmin())]
            self._settle_shared()  # the running solution is one of the earlier lambda

    def _merge_shared(self, other: Any, joined: Joined) -> None:
        if self._seen == 0:
            self._ridge = other._ridge
        super()._merge_shared(other, joined)

    def _shared_nbytes(self) -> int:
        return super()._shared_nbytes() + 8

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        return {**super()._shared_arrays(), "ridge": np.array([self._ridge])}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return {**super()._shared_shapes(classes, width), "ridge": (1,)}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super()._restore_shared(arrays)
        self._ridge = float(arrays["ridge"][0])
        if self._ridge not in self._grid:
            raise ValueError(f"the state has lambda {self._ridge!r}, which is not in the grid {self._grid}")


def holdout_errors(
    hidden: NDArray[np.float64], targets: NDArray[np.float64], grid: Sequence[float]
) -> NDArray[np.float64]:
    """Squared error, on the last fifth of the rows, of ridge regression on the others.

    Args:
        hidden: (B, M); the first ``int(0.8 B)`` rows are fitted.
        targets: one-hot (B, C).
        grid: values of lambda.

    Returns:
        For each lambda the mean over held-out rows and columns, (len(grid),).
    """
    fitted = int(0.8 * len(hidden))
    first, rest = hidden[:fitted], hidden[fitted:]
    gram, sums = first.T @ first, first.T @ targets[:fitted]
    errors = []
    for ridge in grid:
        weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), sums)
        errors.append(float(np.square(rest @ weights - targets[fitted:]).mean()))
    return np.array(errors)
