"""The order of classes, owned by one object."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from everlearn_runtime.heads.checks import check_label


class Classes:
    """Class names in the order of first appearance, and the place of each.

    Whatever keeps a row, a column or a list entry for each class asks this object where it stands,
    and nothing else keeps numbers of its own. Places run from 0 without gaps: when a class is taken
    out, those after it move up by one, so whoever keeps rows deletes the one at its place.

    A place is found in O(log C), and a class is added or taken out without a look at the others.

    Args:
        names: to start with; each once, if it is there more than once.

    Raises:
        ValueError: a name that is no non-empty ``str``.

    >>> classes = Classes(["mug", "pen"])
    >>> classes.places(["pen", "cup", "pen"])
    [1, 2, 1]
    >>> classes.remove("pen"), classes.place("cup"), classes.names
    (1, 1, ('mug', 'cup'))
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        # Each name gets a number when it comes, and keeps it. The numbers of the classes that are
        # still here are in ascending order, and a class's place is that of its number among them.
        self._names: list[str] = []
        self._numbers: list[int] = []
        self._number: dict[str, int] = {}
        self._next = 0
        self.places(names)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        return tuple(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._number

    def __getitem__(self, place: int) -> str:
        return self._names[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Classes) and self._names == other._names

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Classes({self._names!r})"

    def copy(self) -> Classes:
        """The same names in the same order, to go on by itself."""
        return Classes(self._names)

    def place(self, name: str) -> int:
        """Where a class stands.

        Raises:
            ValueError: no such class.
        """
        number = self._number.get(name)
        if number is None:
            known = ", ".join(map(repr, self._names)) or "none"
            raise ValueError(f"no class {name!r}; known classes: {known}")
        return bisect_left(self._numbers, number)

    def places(self, names: Iterable[str]) -> list[int]:
        """Where these classes stand, those that are new being added at the end, in their order.

        Raises:
            ValueError: a new name that is no non-empty ``str``; then none is added.
        """
        wanted = list(names)
        numbers = self._number
        new = [check_label(name) for name in wanted if name not in numbers]
        for name in dict.fromkeys(new) if new else ():
            numbers[name] = self._next
            self._numbers.append(self._next)
            self._names.append(name)
            self._next += 1
        kept = self._numbers
        return [bisect_left(kept, numbers[name]) for name in wanted]

    def remove(self, name: str) -> int:
        """Take a class out; returns the place that it had.

        Raises:
            ValueError: no such class.
        """
        place = self.place(name)
        del self._number[name], self._numbers[place], self._names[place]
        return place
