"""How long is left of runs of several methods, of which some take a second and others an hour."""

import time
from collections.abc import Callable, Iterable, Mapping

from everlearn.progress import INTERVAL
from everlearn.tables import duration


class Left:
    """Tells how far a benchmark is, and about how long all that is left of it takes.

    A run is expected to take what runs of its method have taken, and the one that goes on what its tasks
    take. One of a method that has not been seen yet is taken for the mean of the others, and that is said.

    Args:
        names: the method of every run that is to be made, in their order.
        known: seconds that runs of a method have taken at another time.
        done: runs before these.
        clock: seconds.

    >>> left = Left(["a", "b", "b"], clock=iter([0.0, 0.0, 10.0, 10.0, 10.0, 15.0]).__next__)
    >>> left.begin("a", tasks=1); left.end()
    >>> left.told()
    'run 1 of 3; 10 s, at a guess 20 s left (2 runs are of methods not timed yet)'
    >>> left.begin("b", tasks=4); left.task(); left.told()
    'run 2 of 3; 15 s, about 35 s left'
    """

    def __init__(
        self,
        names: Iterable[str],
        known: Mapping[str, float] | None = None,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting = list(names)
        self._total = done + len(self._waiting)
        self._took: dict[str, list[float]] = {}
        self._known = dict(known or {})
        self._clock = clock
        self._start = self._said = self._begun = clock()
        self._name: str | None = None

    def begin(self, name: str, tasks: int, done: int = 0) -> None:
        """The next run begins, with a number of tasks, of which some were done before."""
        self._name, self._tasks, self._done, self._told = name, tasks, done, 0
        self._waiting.remove(name)
        self._begun = self._clock()

    def task(self) -> None:
        """A task is told of, those that were done before among them."""
        self._told += 1

    def end(self, *, whole: bool = True) -> None:
        """The run is over; a run that was given up half way says nothing of others."""
        assert self._name is not None
        if whole and not self._done:
            self._took.setdefault(self._name, []).append(self._clock() - self._begun)
        self._name = None

    def told(self) -> str:
        """Which run it is, the time since the first began, and the time left, where that can be said."""
        now = self._said = self._clock()
        where = f"run {self._total - len(self._waiting)} of {self._total}; {duration(now - self._start)}"
        left = self._left(now)
        if left is None:
            return where
        seconds, unseen = left
        if unseen:
            runs = "1 run is of a method" if unseen == 1 else f"{unseen} runs are of methods"
            return f"{where}, at a guess {duration(seconds)} left ({runs} not timed yet)"
        return f"{where}, about {duration(seconds)} left"

    def due(self) -> bool:
        """Whether nothing was told for so long that it is time again."""
        return self._clock() - self._said >= INTERVAL

    def _left(self, now: float) -> tuple[float, int] | None:
        """Seconds, and runs that were guessed; None where nothing is left, or nothing is known yet."""
        times = self._known | {name: sum(took) / len(took) for name, took in self._took.items()}
        rest = 0.0
        if self._name is not None:
            spent, new = now - self._begun, self._told - self._done
            if new > 0:
                rest = spent / new * (self._tasks - self._told)
                if not self._done:
                    times.setdefault(self._name, spent + rest)
            elif self._name in times:
                rest = max(times[self._name] - spent, 0.0)
        elif not self._waiting:
            return None
        if not times:
            return None
        usual = sum(times.values()) / len(times)
        seconds = rest + sum(times.get(name, usual) for name in self._waiting)
        return seconds, sum(name not in times for name in self._waiting)
