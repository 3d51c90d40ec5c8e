"""A look at every image before anything is learned from them, so that nothing is found out hours later."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger

import PIL.Image
from tqdm.auto import tqdm

from everlearn import processes
from everlearn.tables import aligned
from everlearn_runtime.decoding import no_bombs

ON_ERROR = ("raise", "skip", "later")
"""What to do about images that cannot be read: refuse them all by name, leave them out, or not to look."""

Say = Callable[[str], None]

_NAMES = 10  # of the files in one row of a table
_ROWS = 20
_log = getLogger("everlearn.data")


@dataclass(frozen=True)
class Left:
    """Something that is not used.

    Attributes:
        name: of the file or folder, below the one that was looked at.
        why: it is not used.
        state: ``"ignored"``, or ``"broken"`` where it is an image that cannot be read.
        loss: whether somebody may miss it: a picture, or what should be one.
    """

    name: str
    why: str
    state: str = "ignored"
    loss: bool = False


def check_on_error(on_error: str) -> None:
    """Raise ``ValueError`` for what is none of `ON_ERROR`."""
    if on_error not in ON_ERROR:
        raise ValueError(
            f"on_error is {on_error!r}; expected 'raise' (refuse images that cannot be read), 'skip' (leave "
            "them out) or 'later' (do not look; the image raises when it is asked for)"
        )


def broken(read: Callable[[int], object], count: int) -> dict[int, str]:
    """Read every image, and give the position of each that cannot be read with the reason.

    Args:
        read: reads image i, and raises ``ValueError`` where it cannot; called by several threads at once.
        count: number of images.
    """

    def reason(index: int) -> str | None:
        try:
            read(index)
        except ValueError as error:
            return str(error)
        return None

    PIL.Image.init()  # all formats, before several threads ask for them
    found: dict[int, str] = {}
    with no_bombs(), ThreadPoolExecutor(_threads()) as pool:
        try:
            told = pool.map(reason, range(count))
            quiet = None if processes.is_main() else True  # None: quiet without a terminal
            bar = tqdm(told, "looking at images", count, unit="image", disable=quiet, leave=False, delay=1)
            for index, why in enumerate(bar):
                if why is not None:
                    found[index] = why
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def table(left: Sequence[Left]) -> str:
    """What is not used, as text: a row for each reason, with the number of files and the first names.

    >>> print(table([Left("a/1.png", "cut short", "broken"), Left("a/2.png", "cut short", "broken")]))
    broken  2  cut short  a/1.png, a/2.png
    """
    rows: dict[tuple[str, str], list[str]] = {}
    for one in sorted(left, key=lambda one: (one.state, one.why)):
        rows.setdefault((one.state, one.why), []).append(one.name)
    shown = [[state, str(len(names)), why, some(names)] for (state, why), names in rows.items()]
    more = sum(int(row[1]) for row in shown[_ROWS:])
    if more:
        shown = [*shown[:_ROWS], ["and", str(more), "more for other reasons", ""]]
    return printable(aligned(shown, left=(0, 2, 3)))


def refuse(left: Sequence[Left], count: int, where: str) -> None:
    """Raise ``ValueError`` that names the broken images among ``count``, if there are any."""
    bad = [one for one in left if one.state == "broken"]
    if bad:
        named = some([f"{one.name} ({one.why})" for one in bad])
        raise ValueError(
            printable(
                f"{len(bad)} of {count} images in '{where}' cannot be read: {named}; mend or remove them, or "
                "leave them out with on_error='skip'"
            )
        )


def tell(left: Sequence[Left], where: str, say: Say | None) -> None:
    """Say what is not used: all of it to ``say``; without one, a ``UserWarning`` of what may be missed."""
    if say is not None:
        if left:
            say(f"{printable(where)}: not used are\n{table(left)}")
        return
    missed = [one for one in left if one.loss]
    if missed:
        warnings.warn(f"{printable(where)}: not used are\n{table(missed)}", stacklevel=3)
    if left:
        _log.info("%s: not used are\n%s", printable(where), table(left))


def say_or_log(say: Say | None) -> Say:
    """``say``, or else Python's logging under ``everlearn``."""
    return _log.info if say is None else say


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold, as in names of files in another encoding, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def some(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _threads() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # neither macOS nor Windows has it
        return os.cpu_count() or 1
