"""Which names a new class may have: text that a person can read, tell apart and type again.

The statistics of a head take any text, and what was learned under any name stays and can be forgotten. This
is the rule for names that are given, by a call, a folder or a data set, on workstations and devices alike.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence

from everlearn_runtime.heads.checks import check_label, check_labels

JOINERS = "\u200c\u200d"  # parts of Persian words, of Indian letters and of emoji
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format and direction, half a character, ends of lines


def check_name(label: object) -> str:
    """A new class's name as a plain ``str``.

    Raises:
        ValueError: No ``str``, a blank one, or one with a character that cannot be seen: a control character,
            an end of line, half of a surrogate pair, or a mark that turns the direction of what follows. The
            two joiners may be in it, and whatever a newer Unicode has added.

    >>> check_name("naïve 杯 ☕")
    'naïve 杯 ☕'
    """
    name = check_label(label)
    if (found := unseen(name)) is not None:
        raise ValueError(
            f"label {name!r} has a character that cannot be seen, U+{ord(found):04X}; give a name that can "
            "be read and typed"
        )
    return name


def check_names(labels: Sequence[str], known: Callable[[], Iterable[str]]) -> list[str]:
    """Class names as a list of plain ``str``; raises like :func:`check_name`.

    Args:
        labels: One name for each sample.
        known: Gives the names that may be as they are, as they were learned before there was a rule.
    """
    names = check_labels(labels)
    odd = {name for name in names if unseen(name) is not None}
    for name in odd.difference(known()) if odd else ():
        check_name(name)
    return names


def unseen(text: str) -> str | None:
    """The first character that cannot be seen; None where there is none.

    >>> unseen("gum\\u202egnp")
    '\\u202e'
    """
    if text.isprintable():
        return None
    odd = (one for one in text if one not in JOINERS and unicodedata.category(one) in _UNSEEN)
    return next(odd, None)


def shown(text: str) -> str:
    """The text with what cannot be seen spelled out, so that it is one line on every terminal.

    >>> print(shown("mug\\n"))
    mug\\n
    """
    if unseen(text) is None:
        return text
    return "".join(one if unseen(one) is None else repr(one)[1:-1] for one in text)
