"""Few words for many things, for what is printed."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are.

    >>> some(["mug", "pen"]), some(list("abcdefg"), 3)
    ("'mug', 'pen'", "'a', 'b', 'c' and 4 more")
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def plural(count: int, noun: str) -> str:
    """A number and its noun.

    >>> plural(1, "image"), plural(2000, "image"), plural(2, "class")
    ('1 image', '2,000 images', '2 classes')
    """
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"
