"""Who goes first when several threads share a learner."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from everlearn_runtime.errors import StateError

Result = TypeVar("Result")


class Turns:
    """Lets calls from several threads take turns.

    A call that ends in an exception gives its turn back, wherever it was raised. A call from
    within another one's turn, by a signal handler say, is refused: it would find things half done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._taken = False

    def take(self, call: Callable[[], Result]) -> Result:
        """Do something while nobody else does.

        Raises:
            StateError: This thread already is within a call.
        """
        # On one line, so that nothing that is raised "between two lines" parts the two.
        with self._lock: return self._run(call)  # fmt: skip  # noqa: E701

    def _run(self, call: Callable[[], Result]) -> Result:
        # Left set by a call that raised; so look whether there really is one.
        if self._taken and self._within():
            raise StateError("this learner is in the middle of another call of the same thread; wait for it")
        self._taken = True
        result = call()
        self._taken = False
        return result

    def _within(self) -> bool:
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code is Turns._run.__code__ and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False


class RightOfWay:
    """Lets what is short and urgent go before what is long and can wait, on the same cores.

    Both run side by side; but after each part, the long one rests for twice the time that the part took if
    somebody urgent was there meanwhile. So most of the urgent calls find the cores free.
    """

    def __init__(self) -> None:
        self._urgent = 0  # calls so far

    def urgent(self, call: Callable[[], Result]) -> Result:
        """Do what is urgent."""
        self._urgent += 1
        return call()

    @contextmanager
    def part(self) -> Iterator[None]:
        """Do a part of what is long, and then make room."""
        before, start = self._urgent, time.monotonic()
        yield
        if self._urgent != before:
            time.sleep(2 * (time.monotonic() - start))
