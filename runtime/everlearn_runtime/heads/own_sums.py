"""Sums of outer products that are kept apart by class, so that a class can be taken out again.

To subtract a class from the sum of all would leave its rounding behind: where the others are small
beside it, or have no scatter at all, that is all there would be. So nothing is subtracted. The sum
of all is that of the parts that are left, which is symmetric to the bit and has no negative
direction, as the parts are and have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.gram import GramSum, packed_size
from everlearn_runtime.heads.sums import groups


class OwnSums:
    """A sum for each class all of whose samples went into it, and one for the rest.

    A class has its own sum from its first sample on. One that was known before, or has met samples
    in a merge that nobody kept apart, has none: what it adds goes to the rest, and stays there.

    >>> sums = OwnSums(1)
    >>> sums.grow(2)
    >>> sums.add(np.array([[2.0], [1.0]]), np.array([0, 1]))
    >>> sums.total().value()
    array([[5.]])
    >>> sums.remove(0)
    >>> sums.total().value()
    array([[1.]])
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.rest = GramSum(width)
        self._own: list[GramSum | None] = []

    def of(self, place: int) -> GramSum | None:
        """The class's own sum, where it has one; there may be no room for the class yet."""
        return self._own[place] if place < len(self._own) else None

    def grow(self, new: int) -> None:
        """Give new classes sums of their own."""
        self._own += [GramSum(self.width) for _ in range(new)]

    def remove(self, place: int) -> None:
        """Drop a class with its own sum; what is in the rest stays."""
        del self._own[place : place + 1]

    def add(self, rows: NDArray[np.float64], places: NDArray[np.intp]) -> None:
        """Add rows (n, width) of the classes at these places (n,)."""
        for numbers in groups(places) if len(places) else ():
            self._where(int(places[numbers[0]])).add(rows[numbers])

    def add_each(self, rows: NDArray[np.float64], places: Sequence[int]) -> None:
        """Add rows (n, width) one after the other, to the same bits however many come at once."""
        for row, place in zip(rows, places, strict=True):
            self._where(place).add(row[None].copy())  # a view would keep all the rows while it waits

    def merge(self, other: OwnSums, places: Sequence[int]) -> None:
        """Add everything other sums have seen, whose classes are at these places here."""
        self.rest.merge(other.rest)
        for place, theirs in zip(places, other._own, strict=True):
            mine = self._own[place]
            if theirs is None and mine is not None:
                self.rest.merge(mine)
                self._own[place] = None
            elif theirs is not None:
                self._where(place).merge(theirs)

    def fold(self) -> None:
        """Fold in what waits."""
        for part in self._parts():
            part.fold()

    def total(self) -> GramSum:
        """The sum of all, in the order of the classes."""
        return GramSum.of_all(self._parts(), self.width)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in :meth:`packed`."""
        return 8 * len(self._own) + 8 * packed_size(self.width) * len(self._parts()[1:])

    def packed(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Which classes have a sum of their own, 1 or 0 (C,), and these sums, packed (k, ...)."""
        own = self._parts()[1:]
        packed = np.empty((len(own), packed_size(self.width)))
        for row, part in zip(packed, own, strict=True):
            row[:] = part.packed()
        return np.array([part is not None for part in self._own], dtype=np.int64), packed

    def restore(self, rest: GramSum, has_own: NDArray[np.int64], packed: NDArray[np.float64]) -> None:
        """Take over what :meth:`packed` gave, and the rest."""
        rows = iter(packed)
        self.rest = rest
        self._own = [GramSum.from_packed(next(rows), self.width) if own else None for own in has_own]

    def put(self, rest: GramSum, own: list[GramSum | None]) -> None:
        """Have these sums from now on, the classes' own and that of the rest."""
        self.rest, self._own = rest, own

    def _where(self, place: int) -> GramSum:
        own = self._own[place]
        return self.rest if own is None else own

    def _parts(self) -> list[GramSum]:
        return [self.rest, *(own for own in self._own if own is not None)]
