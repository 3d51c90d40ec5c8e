"""Looking at a head that changes while it is looked at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from everlearn_runtime.heads import Head
from everlearn_runtime.state.adapted import Adapters

Result = TypeVar("Result")


class Looking(ABC):
    """Keeps a head, and notes while it may be half done.

    Attributes:
        _sure: Whether the head is what it should be; ``head`` sees to it that it is, or raises.
    """

    _sure: bool
    _adapters: Adapters | None

    @property
    def adapters(self) -> Adapters | None:
        """What goes with the head as it was when it was last looked at; None: the bundle's own."""
        return self._adapters

    @property
    @abstractmethod
    def head(self) -> Head:
        """The head; to be read, not changed."""

    def check_writable(self) -> None:  # noqa: B027 - most are
        """Raise a StateError if nothing may be changed."""

    def use(self, look: Callable[[Head], Result]) -> Result:
        """Look at the head in ways that may work in what waits in it, such as scores or counts.

        An interrupt in the middle of that leaves the head half done, as one in a change would.
        """
        head = self.head
        self._sure = False
        result = look(head)
        self._sure = True
        return result
