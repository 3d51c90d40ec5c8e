"""A sum of outer products, kept cheap while rows trickle in.

The identity is no more than sum_i r_i r_i' = R' R for the rows r_i of R. But an outer product reads
and writes the whole matrix for one row, 4.7 MB at width 768, and the time goes into memory; one
matrix product of 512 rows does so once for all of them, and is many times faster a row. So
rows are kept as they are until there are 512, and whoever asks before gets the sum of both.

What costs care is that sums of floating-point numbers depend on how they are grouped. A device
writes down what it was taught, and has to come to the same head, to the bit, when it reads that
again; but it is not written down who looked when. So looking never folds: only the rows decide when
that happens, and a look works on a copy. For the same reason the trace, which the ridge hangs on,
is summed up row by row, and taken from the matrix itself only where that is written anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.products import LARGE, PIECE, product, row_products, square_sum

# At most this many rows wait, and no more than the matrix has, so that they never take more memory.
FOLD_ROWS = 512
# The largest block whose product with itself goes to numpy in one piece.
BLOCK_WIDTH = 192
# So many rows at once: pieces of 48 columns by 48 are faster than narrower ones of all rows.
DEEP = 112


class GramSum:
    """The symmetric matrix sum_i r_i r_i' over all rows r_i added so far, in float64.

    Rows wait in a small buffer and are folded in with one matrix product, because that is many
    times faster than one outer product a row. When a fold happens depends on the rows added
    alone, never on who looked at the value in between: the same additions give the same bits.

    >>> gram = GramSum(2)
    >>> gram.add(np.array([[1.0, 2.0], [0.0, 1.0]]))
    >>> gram.value()
    array([[1., 2.],
           [2., 5.]])
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._limit = min(FOLD_ROWS, max(width, 64))
        self._folded = np.zeros((width, width))
        self._pending: list[NDArray[np.float64]] = []
        self._rows = 0
        self._power: float | None = None  # of what is folded in, and of the rows looked at since
        self._looked = np.empty((0, width))
        self._powered = self._looked_at = 0
        self._trace = 0.0  # of what is folded in, and of this many of the pending
        self._traced = 0

    def add(self, rows: NDArray[np.float64]) -> None:
        """Add rows (n, width); they are kept by reference and must not change afterwards."""
        if len(rows) == 0:
            return
        self._pending.append(rows)
        self._rows += len(rows)
        if self._rows >= self._limit:
            self.fold()

    def fold(self) -> None:
        """Fold in what waits."""
        if self._rows:
            add_products(np.concatenate(self._pending), self._folded)
            self._restart()

    def merge(self, other: GramSum) -> None:
        """Add everything the other sum has seen."""
        self._folded = self.value() + other.value()
        self._restart()

    def subtract(self, other: GramSum) -> None:
        """Take out what another sum has seen and this one too."""
        self._folded = self.value() - other.value()
        self._restart()

    def transform(self, linear: NDArray[np.float64], gain: NDArray[np.float64] | float = 0.0) -> None:
        """Become the sum over all rows r_i' A, for a map A (width, new width), and a symmetric gain."""
        moved = linear.T @ self.value() @ linear + gain
        self._folded = (moved + moved.T) / 2  # symmetric to the bit, as what is packed has to be
        self.width = len(moved)
        self._restart()

    def scale(self, factor: float) -> None:
        """Become this many times what it is."""
        self._folded = self.value() * factor
        self._restart()

    def _restart(self) -> None:
        self._pending, self._rows, self._traced = [], 0, 0
        self._power, self._powered = None, 0
        self._trace = float(np.trace(self._folded))  # of the matrix as it is kept, to the bit

    def value(self) -> NDArray[np.float64]:
        """The matrix (width, width); to be read, not written."""
        if self._rows == 0:
            return self._folded
        value: NDArray[np.float64] = self._folded.copy()
        add_products(np.concatenate(self._pending), value)
        return value

    def packed(self) -> NDArray[np.float64]:
        """The lower triangle, row by row: (width (width + 1) / 2,)."""
        value = self.value()
        packed = np.empty(packed_size(self.width))
        for row in range(self.width):
            start = packed_size(row)
            packed[start : start + row + 1] = value[row, : row + 1]
        return packed

    @property
    def room(self) -> int:
        """How many more rows may wait; with that many they are folded in."""
        return self._limit - self._rows

    @property
    def trace(self) -> float:
        """The sum of all squares."""
        for rows in self._pending[self._traced :]:
            self._trace += square_sum(rows)
        self._traced = len(self._pending)
        return self._trace

    @property
    def power(self) -> float:
        """The sum of the squares of all entries: with S the matrix, tr(S S).

        A row r adds 2 r' S r + (r' r)^2, with what waits being part of S, so nothing is folded for it.
        """
        if self._power is None:
            self._power = square_sum(self._folded)
            self._looked_at = 0
        if self._powered < len(self._pending):
            new = self._pending[self._powered :]
            rows = new[0] if len(new) == 1 else np.concatenate(new)
            if self._looked.shape != (self._limit, self.width):
                self._looked = np.empty((self._limit, self.width))
            before = self._looked[: self._looked_at]
            self._power += 2 * float(row_products(product(rows, self._folded), rows).sum())
            for others, times in ((before, 2), (rows, 1)):
                products = product(others, rows.T)
                self._power += times * square_sum(products)
            self._looked[self._looked_at : self._looked_at + len(rows)] = rows
            self._looked_at += len(rows)
            self._powered = len(self._pending)
        return self._power

    @classmethod
    def of_all(cls, parts: Iterable[GramSum], width: int) -> GramSum:
        """Everything that several sums have seen, added up in their order."""
        gram = cls(width)
        for part in parts:
            gram._folded += part.value()
        gram._restart()
        return gram

    @classmethod
    def from_packed(cls, packed: NDArray[np.float64], width: int) -> GramSum:
        """The reverse of :meth:`packed`."""
        gram = cls(width)
        for row in range(width):
            start = packed_size(row)
            gram._folded[row, : row + 1] = packed[start : start + row + 1]
            gram._folded[: row + 1, row] = packed[start : start + row + 1]
        gram._restart()
        return gram


def add_products(rows: NDArray[np.float64], total: NDArray[np.float64]) -> None:
    """Add rows' rows (M, M), for rows (n, M), to a symmetric matrix.

    Block by block: numpy multiplies an array by its own transpose with half the arithmetic, but
    mirrors the result slowly where it is large, and by threads, which `everlearn_runtime.products` avoids.
    """
    count, width = rows.shape
    small = count * width * width <= LARGE
    deep = min(count, DEEP) if small else count
    step = max(1, min(width, math.isqrt(PIECE // deep))) if small else BLOCK_WIDTH
    for start in range(0, width, step):
        own = slice(start, start + step)
        for top in range(0, count, deep):
            some = rows[top : top + deep]
            block = some[:, own]
            total[own, own] += block.T @ block
            if start:
                left = block.T
                total[own, :start] += product(left, some[:, :start]) if small else left @ some[:, :start]
        total[:start, own] = total[own, :start].T


def packed_size(width: int) -> int:
    """How many numbers a symmetric matrix of this width needs."""
    return width * (width + 1) // 2
