"""A learner without a state file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import StateError
from everlearn_runtime.heads import Head, Judgement
from everlearn_runtime.state.adapted import Adapters
from everlearn_runtime.state.journal import Event, form_of, learn, now
from everlearn_runtime.state.looking import Looking
from everlearn_runtime.state.versions import Version

Result = TypeVar("Result")


class Memory(Looking):
    """A head that is kept in memory only: its versions are counted, and none is kept.

    Args:
        base: Makes the bundle's own head.
    """

    def __init__(self, base: Callable[[], Head]) -> None:
        self._head = base()
        self._adapters = None
        self._version = 0
        self._sure = True

    @property
    def head(self) -> Head:
        """The head; to be read, not changed.

        Raises:
            StateError: A call was interrupted half way.
        """
        if not self._sure:
            raise StateError(
                "a call was interrupted half way, and without a state file there is nothing to go back to; "
                "open the bundle again"
            )
        return self._head

    @property
    def version(self) -> int:
        """The number of changes."""
        return self._version

    def learn(
        self,
        features: NDArray[np.floating[Any]],
        labels: Sequence[str],
        judgement: Judgement | None = None,
    ) -> Version:
        """Learn features that the head has checked."""
        return self._change(
            "learn", lambda head: learn(head, features, labels, judgement), labels=tuple(labels)
        )

    def forget(self, label: str) -> Version:
        """Drop a class that the head knows."""
        samples = self.use(lambda head: int(head.counts[head.classes.index(label)]))
        form = form_of(self.head, label)
        return self._change(
            "forget", lambda head: head.remove(label), labels=(label,), samples=samples, form=form
        )

    def adapt(self, head: Head, adapters: Adapters, labels: Sequence[str]) -> Version:
        """Go on with other adapters, and the head that goes with them."""
        event = Event("adapt", self._version + 1, now(), labels=tuple(labels))
        self._sure = False
        self._head, self._adapters, self._version = head, adapters, event.version
        self._sure = True
        return event.told()

    def purge(self, label: str) -> Version:
        """Drop a class; there is no history in which it could stand."""
        form = self.forget(label).form or ""
        return Event("purge", self._version, now(), form=form).told()

    def history(self) -> list[Version]:
        """None: nothing can be gone back to."""
        return []

    def rollback(self, to: int) -> NoReturn:
        """Refuse; raises a ValueError."""
        raise ValueError("without a state file no version is kept; open the bundle with state=...")

    def undo(self) -> NoReturn:
        """Refuse; raises a ValueError."""
        self.rollback(0)

    def backup(self, path: str | Path) -> NoReturn:
        """Refuse; raises a ValueError."""
        raise ValueError("without a state file there is nothing to copy; open the bundle with state=...")

    def close(self) -> None:
        """Nothing to give back."""

    def _change(self, kind: str, apply: Callable[[Head], None], **says: Any) -> Version:
        head, version = self.head, self._version + 1
        event = Event(kind, version, now(), **says)
        self._sure = False
        apply(head)
        self._version = version
        self._sure = True
        return event.told()
