"""Arrays that have a row for each class, while classes come and go one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

    from everlearn_runtime.heads.statistics import ClassStatistics

Scalar = TypeVar("Scalar", bound=np.generic)


class GrowingRows(Generic[Scalar]):
    """An array (C, ...) that gains rows of zeros and loses rows.

    There is room for half as many rows again whenever it has to move, and rows that go are only
    noted until somebody looks. So n rows that come one at a time, or go one at a time, cost as much
    as n rows at once, up to a constant.

    Args:
        array: the rows to start with; it is taken over, not copied.

    >>> rows = GrowingRows(np.array([1.0, 2.0, 3.0]))
    >>> rows.grow(1)
    >>> rows.remove(1)
    >>> rows.values
    array([1., 3., 0.])
    """

    def __init__(self, array: NDArray[Scalar]) -> None:
        self._array = array  # rows that are not in use are zero
        self._count = len(array)
        self._kept: list[int] | None = None  # the rows that are left, where some have gone

    def __len__(self) -> int:
        return self._count if self._kept is None else len(self._kept)

    @property
    def values(self) -> NDArray[Scalar]:
        """The array as it is now, to be read and written until rows come or go."""
        if self._kept is not None:
            self._array = self._array[self._kept]
            self._count, self._kept = len(self._array), None
        return self._array[: self._count]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in use."""
        return len(self) * self._array[:1].nbytes if len(self._array) else 0

    def row(self, place: int) -> Any:
        """One row, to be read; rows that have gone are left as they are noted."""
        return self._array[place if self._kept is None else self._kept[place]]

    def grow(self, new: int) -> None:
        """Add rows of zeros at the end."""
        values = self.values
        count = len(values) + new
        if count > len(self._array):
            room = max(count, len(values) + len(values) // 2)
            array = np.zeros((room, *values.shape[1:]), dtype=values.dtype)
            array[: len(values)] = values
            self._array = array
        self._count = count

    def remove(self, place: int) -> None:
        """Take a row out; those after it move up. A row that has not come yet need not go."""
        if self._kept is None:
            self._kept = list(range(self._count))
        del self._kept[place : place + 1]


class PerClass(Generic[Scalar]):
    """Declares an attribute of a head that is an array (C, ...), a row for each class.

    In the body of a head's class ``_sums = PerClass[np.float64]()`` makes ``self._sums`` an array
    that can be read, written in place, and set as a whole. The head gives it a row of zeros for
    each new class and takes out the row of a class that goes. It is to be set once in
    ``__init__``, to an array without rows: ``self._sums = np.zeros((0, width))``.
    """

    def __set_name__(self, owner: type[ClassStatistics], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, head: None, owner: Any = None) -> Self: ...

    @overload
    def __get__(self, head: ClassStatistics, owner: Any = None) -> NDArray[Scalar]: ...

    def __get__(self, head: ClassStatistics | None, owner: Any = None) -> Self | NDArray[Scalar]:
        if head is None:
            return self
        values: NDArray[Scalar] = head._per_class[self._name].values
        return values

    def __set__(self, head: ClassStatistics, array: NDArray[Scalar]) -> None:
        head._per_class[self._name] = GrowingRows(array)
