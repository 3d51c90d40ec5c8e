"""How far it is: a bar on a terminal, now and then a line where there is none (a file, Docker, CI)."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from logging import getLogger
from typing import Any, Protocol, TypeVar

from tqdm.auto import tqdm

from everlearn.tables import duration

INTERVAL = 10.0
"""Seconds between two lines, at least."""

Item = TypeVar("Item", covariant=True)
_log = getLogger("everlearn.progress")


class SizedIterable(Sized, Iterable[Item], Protocol[Item]):
    """What has a length and can be gone through."""


class Pace:
    """How long is left of steps that take about the same time each.

    Args:
        total: steps.
        done: of them, before now.
        clock: seconds.

    >>> pace = Pace(10, done=2, clock=iter([0.0, 4.0]).__next__)
    >>> pace.step(); pace.step()
    >>> pace.told()
    '4 s, about 12 s left'
    """

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = self.begun = done
        self.clock = clock
        self._start = clock()

    def step(self) -> None:
        """One step is done."""
        self.done += 1

    def told(self) -> str:
        """The time since the start, and the time left."""
        seconds, done = self.clock() - self._start, self.done - self.begun
        if not done or self.done >= self.total:
            return duration(seconds)
        left = seconds / done * (self.total - self.done)
        return f"{duration(seconds)}, about {duration(left)} left"


class Lines(Iterable[Item]):
    """Goes through items, and every `INTERVAL` seconds says how far it is, on stderr and to the log.

    Args:
        items: to go through.
        name: what is being done.
        unit: of an item.
        pace: of more than these items, where there are more.
        show: print the lines; in the log they are anyway, as ``everlearn.progress``.
    """

    def __init__(
        self, items: SizedIterable[Item], name: str, unit: str, pace: Pace | None, *, show: bool
    ) -> None:
        self._items = items
        self._name = name
        self._unit = unit
        self._pace = pace or Pace(len(items))
        self._show = show
        self._figures = ""

    def set_postfix(self, figures: Mapping[str, str], refresh: bool = True) -> None:
        """Figures for the next line; as `tqdm` has it."""
        self._figures = "".join(f", {name} {value}" for name, value in figures.items())

    def __iter__(self) -> Iterator[Item]:
        said = self._pace.clock()
        for number, item in enumerate(self._items, 1):
            yield item
            self._pace.step()
            now = self._pace.clock()
            if now - said >= INTERVAL:
                said = now
                where = f"{self._unit} {number}/{len(self._items)}"
                say(f"{self._name}, {where}{self._figures}; {self._pace.told()}", show=self._show)


def say(line: str, *, show: bool) -> None:
    """A line for the log, and on stderr if it is to be shown and the log does not show it already."""
    _log.info("%s", line)
    if show and not (_log.isEnabledFor(20) and _log.hasHandlers()):
        print(line, file=sys.stderr, flush=True)


def track(
    items: SizedIterable[Item], name: str, unit: str, *, show: bool | None, pace: Pace | None = None
) -> Any:
    """Give the items one after the other, and say how far it is.

    Args:
        items: with a length.
        name: what is being done.
        unit: of an item.
        show: True: a bar on a terminal and in notebooks, lines elsewhere. None: a bar on a terminal.
            False: nothing.
        pace: of more than these items, for the time left on lines.
    """
    bars = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    if bars or show is False:
        quiet = None if show is None else not show
        return tqdm(items, desc=name, total=len(items), unit=unit, disable=quiet, leave=False)
    return Lines(items, name, unit, pace, show=bool(show))
