"""The solution of a linear system that grows by a row at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.gram import FOLD_ROWS, GramSum

# From about as many new rows on, solving anew costs less than working them in.
FEW_ROWS = 32


class One(NamedTuple):
    """One sample: the row (M,) that G gained, and a class whose target was ``before`` (M,) and
    grew by ``gain`` times the row."""

    row: NDArray[np.float64]
    place: int
    before: NDArray[np.float64]
    gain: float


class Several(NamedTuple):
    """Rows (k, M), perhaps none, that G gained, and targets of some classes, (m, M), before and after."""

    rows: NDArray[np.float64]
    places: NDArray[np.intp]
    before: NDArray[np.float64]
    after: NDArray[np.float64]


class RunningSolution:
    """W = T (w G + r I)^-1, (C, M), while G gains rows, and T and the classes change.

    Steps are only noted, and worked in when somebody asks. With P the inverse, one row v is

        P+ = P - g g',  g = sqrt(w / (1 + w v' P v)) P v,  W+ = W - (T g) g'

    (Sherman and Morrison 1950), so O(M^2 + C M) in place of a solution from scratch; P is kept as
    the inverse at the last :meth:`restart` less G'G of the rows g since. Several rows at once
    are Woodbury's identity. P is never carried further than ``FOLD_ROWS`` rows, so rounding does
    not build up, and the operations depend on the steps alone, never on who asked in between.
    """

    def __init__(self) -> None:
        self._steps: list[One | Several] = []
        self._classes = 0
        self._forget()

    def _forget(self) -> None:
        self._done = 0
        self._rows = 0
        self._weights: NDArray[np.float64] | None = None
        self._targets = np.zeros((0, 0))
        self._inverse: NDArray[np.float64] | None = None
        self._gone = np.zeros((0, 0))
        self._scratch = np.zeros((0, 0))

    def __len__(self) -> int:
        """Steps since the last restart."""
        return len(self._steps)

    def restart(self, classes: int) -> None:
        """Begin anew from what G and T are now: everything is folded in, with this many classes."""
        self._steps = []
        self._classes = classes
        self._forget()

    def note(self, step: One | Several) -> None:
        """Note what :meth:`weights` is to work in; fewer than ``FOLD_ROWS`` rows between restarts."""
        self._steps.append(step)

    def weights(
        self, gram: GramSum, weight: float, ridge: float, targets: Callable[[], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """W (C, M); to be read, not written.

        Args:
            gram: G, with what is folded in as it was at the last restart.
            weight: w, the same since then.
            ridge: r, the same since then.
            targets: gives T (C, M) as they are now.
        """
        if self._weights is None:
            start = targets()[: self._classes].copy()
            for step in reversed(self._steps):
                if isinstance(step, Several):
                    old = step.places < self._classes
                    start[step.places[old]] = step.before[old]
                elif step.place < self._classes:
                    start[step.place] = step.before
            self._targets = start
            solved: NDArray[np.float64] = np.linalg.solve(regularised(gram.folded, weight, ridge), start.T)
            self._weights = solved.T.copy()
        for step in self._steps[self._done :]:
            if self._inverse is None:
                matrix = regularised(gram.folded, weight, ridge)
                self._inverse = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
                self._gone = np.empty((FOLD_ROWS, gram.width))
            if isinstance(step, One):
                self._work_in_one(step, weight)
            else:
                self._work_in_several(step, weight)
        self._done = len(self._steps)
        return self._weights

    def _apply(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows (..., M) times P."""
        assert self._inverse is not None
        gone = self._gone[: self._rows]
        value: NDArray[np.float64] = rows @ self._inverse - (rows @ gone.T) @ gone
        return value

    def _work_in_one(self, step: One, weight: float) -> None:
        row, place, before, gain = step
        weights = self._make_room(place)
        applied = self._apply(row)
        growth = 1 + weight * float(row @ applied)
        gone = applied * math.sqrt(weight / growth)
        if self._scratch.shape != weights.shape:
            self._scratch = np.empty_like(weights)
        # A new array of this size for every sample would cost more than the arithmetic.
        weights -= np.multiply((self._targets @ gone)[:, None], gone, out=self._scratch)
        weights[place] += applied * (gain / growth)
        self._targets[place] = before + gain * row
        self._gone[self._rows] = gone
        self._rows += 1

    def _work_in_several(self, step: Several, weight: float) -> None:
        rows, places, before, after = step
        weights = self._make_room(int(places.max()))
        count = len(rows)
        if count:
            applied = self._apply(rows)
            middle = np.eye(count) + weight * (applied @ rows.T)
            solved_rows = np.linalg.solve(np.linalg.cholesky(middle), math.sqrt(weight) * applied)
            several = np.asarray(solved_rows, dtype=np.float64)
            weights -= (self._targets @ several.T) @ several
            self._gone[self._rows : self._rows + count] = several
            self._rows += count
        weights[places] += self._apply(after - before)
        self._targets[places] = after

    def _make_room(self, place: int) -> NDArray[np.float64]:
        """W, with a row for the class at this place."""
        assert self._weights is not None
        new = place + 1 - len(self._targets)
        if new > 0:
            empty = np.zeros((new, self._targets.shape[1]))
            self._targets = np.concatenate([self._targets, empty])
            self._weights = np.concatenate([self._weights, empty])
        return self._weights


def regularised(gram: NDArray[np.float64], weight: float, ridge: float) -> NDArray[np.float64]:
    """w G + r I, as a new array."""
    matrix: NDArray[np.float64] = weight * gram
    matrix[np.diag_indices(len(matrix))] += ridge
    return matrix


def rung(size: float, ladder: float = 10.0) -> float:
    """The nearest of a ladder of numbers that rises by a factor exp(1 / ladder) from rung to rung.

    A ridge that is relative to the trace of a growing matrix moves with every sample, and then
    no step is of low rank. On a rung it stays where it is until the trace has grown by a tenth.
    The rung follows from the trace alone, so it does not depend on the order of the samples.

    >>> round(rung(1.04), 3), round(rung(1.06), 3)
    (1.0, 1.105)
    """
    return math.exp(round(ladder * math.log(size)) / ladder)
