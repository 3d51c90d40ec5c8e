"""The solution of a linear system that grows by a few rows at a time.

A device that learns an image and is asked at once would solve a system of M equations for each
image: O(M^3), tens of milliseconds at M = 768. But one image changes the matrix w G + r I by one outer
product v v', and then its inverse P changes by one outer product too (Sherman and Morrison 1950):

    (A + w v v')^-1 = P - g g'    with  P = A^-1,  g = sqrt(w / (1 + w v' P v)) P v.

The weights W = T P of the classes, T their targets, lose (T g) g' in the same way, and a class whose
target gains t gains the row t P. That is O(M^2 + C M) for an image, some 0.3 ms. Several rows V (k, M)
at once are Woodbury's identity, the same with a k x k matrix in place of the number under the root:

    (A + w V' V)^-1 = P - w P V' (I + w V P V')^-1 V P.

Three things make it safe and cheap. The identity needs r to stay as it is, so whoever asks takes an
r that rests while G grows by a tenth (:func:`rung`). Each step adds rounding, so after
``CARRY_ROWS`` rows all is solved anew. And it is only worth while if somebody asks every so many
rows: steps are noted, not done, until then, and with more than :func:`few_rows` of them all is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.gram import GramSum
from everlearn_runtime.heads.growing import GrowingRows
from everlearn_runtime.products import inverse, product, row_products, square_sum

# Up to this width the first who asks gets the inverse made as well, which one thread can do.
WIDE = 512
# Rows that are worked in at once, at most.
PART_ROWS = 48
# Rows that wait to be subtracted from the inverse with one matrix product.
BLOCK_ROWS = 24
# Rows after which all is solved anew, so that rounding does not build up.
CARRY_ROWS = 2048


class Step(NamedTuple):
    """One update: rows (k, M), perhaps none, that G gained, and classes whose targets changed.

    ``gain``: if that is one row and one class, and its target grew by a multiple of the row, the
    multiple.
    """

    rows: NDArray[np.float64]
    places: list[int]
    gain: float | None = None


class RunningSolution:
    """W = T (w G + r I)^-1, (C, M), while G gains rows, and T and the classes change.

    The first who asks gets W solved from scratch, and where G is wide no inverse is made: it may be the
    only question. With the second, a few rows later, the inverse P is made and kept, and from then on P
    and W follow row by row, as the module says. Where w or r changes, and every ``CARRY_ROWS``
    rows, P is made anew. When more than :func:`few_rows` come without a question all is dropped,
    and learning alone costs nothing here.

    P itself follows in blocks. To subtract g g' from it reads and writes M^2 numbers, so up to
    ``BLOCK_ROWS`` vectors g wait in ``_gone``, and P is what ``_inverse`` is less their outer products;
    then one matrix product takes them all.
    """

    def __init__(self) -> None:
        self.solves = 0  # how often all was solved anew
        self.drop()

    def drop(self) -> None:
        """Solve anew when somebody asks next."""
        self._steps: list[Step] | None = None
        self._system = (0.0, 0.0)
        self._new_rows = 0
        self._carried = 0
        self._keep(np.zeros((0, 0)), np.zeros((0, 0)))
        self._inverse: NDArray[np.float64] | None = None
        self._trace = 0.0
        self._gone = np.zeros((0, 0))
        self._rows = 0

    def _keep(self, weights: NDArray[np.float64], targets: NDArray[np.float64]) -> None:
        """Take over W and T; from here on they follow."""
        self._weights = GrowingRows(weights)
        self._targets = GrowingRows(targets)
        self._products = GrowingRows(row_products(targets, weights))
        self._scratch = GrowingRows(np.zeros((0, 0)))

    @property
    def follows(self) -> bool:
        """Whether somebody asked a few rows ago, so that steps are to be noted."""
        return self._steps is not None

    def ready(self, weight: float, ridge: float) -> bool:
        """Whether :meth:`weights` would have a few rows to work in, and nothing to solve."""
        if self._steps is None or self._inverse is None:
            return False
        return self._system == (weight, ridge) and self._carried <= CARRY_ROWS

    def note(self, step: Step) -> None:
        """Note what :meth:`weights` is to work in."""
        if self._steps is None:
            return
        self._new_rows += len(step.rows)
        few = few_rows(self._weights.values.shape[1])
        if self._new_rows > few or len(self._steps) >= few:
            self.drop()
        else:
            self._steps.append(step)

    def weights(
        self,
        gram: GramSum,
        weight: float,
        ridge: float,
        targets: Callable[[], NDArray[np.float64]],
        targets_at: Callable[[list[int]], NDArray[np.float64]],
        apply: bool = False,
    ) -> NDArray[np.float64]:
        """W (C, M); to be read, not written.

        Args:
            gram: G.
            weight: w.
            ridge: r.
            targets: gives T (C, M).
            targets_at: gives some rows of T (m, M), as a new array.
            apply: make P as well, whoever asked before; then :meth:`apply` can be asked.
        """
        steps = self._steps
        if steps is None and not apply and gram.width > WIDE:
            self.solves += 1
            system = regularised(gram.value(), weight, ridge)
            solved: NDArray[np.float64] = np.linalg.solve(system, targets().T)
            self._weights = GrowingRows(solved.T)
            self._products = GrowingRows(row_products(targets(), solved.T))
        elif self._inverse is None or self._system != (weight, ridge) or self._carried > CARRY_ROWS:
            self.solves += 1
            self._invert(regularised(gram.value(), weight, ridge), targets())
        elif steps and len(steps) == 1 and steps[0].gain is not None:
            self._work_in_one(steps[0], steps[0].gain, weight, targets_at(steps[0].places))
        elif steps:
            self._work_in(steps, weight, targets_at)
        self._system = (weight, ridge)
        self._steps = []
        self._new_rows = 0
        return self._weights.values

    @property
    def products(self) -> NDArray[np.float64]:
        """For each class its target times its weights, (C,), as of the last :meth:`weights`; to be
        read, not written."""
        return self._products.values

    @property
    def trace(self) -> float:
        """The trace of P, as of the last :meth:`weights`, which was asked for P."""
        return self._trace

    @property
    def applies(self) -> bool:
        """Whether P is at hand, for :meth:`apply`."""
        return self._inverse is not None

    def _invert(self, system: NDArray[np.float64], targets: NDArray[np.float64]) -> None:
        self._inverse = inverse(system)
        self._trace = float(np.trace(self._inverse))
        self._keep(product(targets, self._inverse), targets.copy())
        self._gone = np.empty((BLOCK_ROWS, len(system)))
        self._rows = self._carried = 0

    def apply(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows (..., M) times P, as of the last :meth:`weights`, which was asked for P."""
        assert self._inverse is not None
        gone = self._gone[: self._rows]
        value: NDArray[np.float64] = product(rows, self._inverse) - product(product(rows, gone.T), gone)
        return value

    def _work_in_one(self, step: Step, gain: float, weight: float, target: NDArray[np.float64]) -> None:
        place, row = step.places[0], step.rows[0]
        self._make_room(place)
        weights, targets, products = self._weights.values, self._targets.values, self._products.values
        if len(self._scratch) != len(weights):
            self._scratch = GrowingRows(np.empty_like(weights))
        applied = self.apply(row)
        growth = 1 + weight * float(row @ applied)
        gone = applied * math.sqrt(weight / growth)
        along = product(targets, gone)
        # A new array of this size for every sample would cost more than the arithmetic.
        weights -= np.multiply(along[:, None], gone, out=self._scratch.values)
        products -= along * along
        own = weights[place]
        own += applied * (gain / growth)
        targets[place] = target[0]
        products[place] = target[0] @ own
        self._subtract(gone[None])

    def _work_in(
        self,
        steps: list[Step],
        weight: float,
        targets_at: Callable[[list[int]], NDArray[np.float64]],
    ) -> None:
        places = sorted({place for step in steps for place in step.places})
        self._make_room(places[-1])
        weights, targets, products = self._weights.values, self._targets.values, self._products.values
        rows = np.concatenate([step.rows for step in steps])
        for start in range(0, len(rows), PART_ROWS):
            some = rows[start : start + PART_ROWS]
            applied = self.apply(some)
            middle = np.eye(len(some)) + weight * product(applied, some.T)
            factor: NDArray[np.float64] = np.linalg.inv(np.linalg.cholesky(middle))
            gone = product(factor, math.sqrt(weight) * applied)
            along = product(targets, gone.T)
            weights -= product(along, gone)
            products -= row_products(along, along)
            self._subtract(gone)
        after = targets_at(places)
        weights[places] += self.apply(after - targets[places])
        targets[places] = after
        products[places] = row_products(after, weights[places])

    def _make_room(self, place: int) -> None:
        """Give W and T a row for the class at this place."""
        new = place + 1 - len(self._targets)
        if new > 0:
            for kept in (self._weights, self._targets, self._products, self._scratch):
                kept.grow(new)

    def _subtract(self, gone: NDArray[np.float64]) -> None:
        """Subtract the outer products of rows (k, M) from P."""
        assert self._inverse is not None
        if self._rows + len(gone) > BLOCK_ROWS:
            waiting = np.concatenate([self._gone[: self._rows], gone])
            # A copy, for numpy's product of an array with itself is the slower one at this size.
            self._inverse -= product(waiting.T, waiting.copy())
            self._rows = 0
        else:
            self._gone[self._rows : self._rows + len(gone)] = gone
            self._rows += len(gone)
        self._trace -= square_sum(gone)
        self._carried += len(gone)


def few_rows(width: int) -> int:
    """With more new rows than this between two questions, all is solved anew.

    That takes less arithmetic from some 45 rows on at width 192, 75 at 384, 130 at 768 (100 classes).
    But LAPACK solves in threads, which get into the way of a graph's, and cost more than these rows do.
    """
    return max(PART_ROWS, width // 2)


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
