"""One call at a time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
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
