"""Several heads that learn from one method's features, to be compared."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.heads import Head, HeadState, from_state


class SideBySide(Head):
    """Several heads that learn from the same features; the first one speaks for all.

    Args:
        heads: by name, at least one; the first one's classes, scores and prototypes are this head's.

    Attributes:
        seconds: that the others have taken to learn.
    """

    kind: ClassVar[str] = "side by side"

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.heads = dict(heads)
        self.seconds = 0.0
        self._first = next(iter(self.heads.values()))

    @property
    def classes(self) -> tuple[str, ...]:
        """The first head's."""
        return self._first.classes

    @property
    def counts(self) -> NDArray[np.int64]:
        """The first head's."""
        return self._first.counts

    @property
    def prototypes(self) -> NDArray[np.float64]:
        """The first head's."""
        return self._first.prototypes

    @property
    def width(self) -> int | None:
        """The first head's."""
        return self._first.width

    @property
    def options(self) -> dict[str, Any]:
        """What else `state` needs beside the heads' arrays."""
        return {
            "seconds": self.seconds,
            "heads": {
                name: {"kind": head.kind, "classes": list(head.classes), "options": head.options}
                for name, head in self.heads.items()
            },
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all heads."""
        return sum(head.nbytes for head in self.heads.values())

    def check(self, features: ArrayLike, labels: Sequence[str]) -> tuple[NDArray[np.float64], list[str]]:
        """Check by the first head."""
        return self._first.check(features, labels)

    def update(self, features: ArrayLike, labels: Sequence[str]) -> None:
        """Let every head learn."""
        self._each("update", features, labels)

    def remove(self, label: str) -> None:
        """Let every head forget a class."""
        self._each("remove", label)

    def merge(self, other: Head) -> None:
        """Merge each head with its counterpart."""
        if not isinstance(other, SideBySide) or other.heads.keys() != self.heads.keys():
            raise ValueError(
                f"cannot merge {type(other).__name__} into heads {self.kind}; give the same ones"
            )
        for name, head in self.heads.items():
            head.merge(other.heads[name])

    def carry(self, before: ArrayLike, after: ArrayLike) -> None:
        """Let every head move along."""
        self._each("carry", before, after)

    def scores(self, features: ArrayLike) -> NDArray[np.float64]:
        """Score by the first head."""
        return self._first.scores(features)

    def settle(self) -> None:
        """Let every head settle."""
        self._each("settle")

    def state(self) -> HeadState:
        """All heads' states as one."""
        arrays = {
            f"{name}/{key}": array
            for name, head in self.heads.items()
            for key, array in head.state().arrays.items()
        }
        return HeadState(self.kind, self.classes, self.options, arrays)

    @classmethod
    def from_state(cls, state: HeadState) -> "SideBySide":
        """Rebuild all heads; ``ValueError`` when the state is not of heads side by side."""
        if state.kind != cls.kind:
            raise ValueError(f"the state is of a head of kind {state.kind!r}, not of heads {cls.kind}")
        heads = {}
        for name, one in state.options["heads"].items():
            arrays = {
                key.removeprefix(f"{name}/"): array
                for key, array in state.arrays.items()
                if key.startswith(f"{name}/")
            }
            heads[name] = from_state(HeadState(one["kind"], tuple(one["classes"]), one["options"], arrays))
        whole = cls(heads)
        whole.seconds = state.options["seconds"]
        return whole

    def _each(self, call: str, *given: Any) -> None:
        getattr(self._first, call)(*given)
        start = time.perf_counter()
        for head in [*self.heads.values()][1:]:
            getattr(head, call)(*given)
        self.seconds += time.perf_counter() - start

    def _solve(self) -> Any:
        raise AssertionError("scores are the first head's")
