"""What a call has changed, as it is told to users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Version:
    """One change of what a device knows.

    Args:
        number: Counts from 0, the bundle's own head. Every change counts on, also one that takes
            another back.
        time: When, in UTC, by the device's clock. Order is by number; clocks are set back.
        kind: "start", "learn", "forget", "adapt", "purge", "rollback", or "migrate" to another model.
        counts: Samples of each class that were learned or forgotten, or that adapters were trained on.
            Empty for the other kinds; a purge names nothing.
        to: Of a rollback, the number of the version that it went back to.
        form: Of "forget" and "purge", how the class went: "exact", so that the head is one that has
            never seen the class, or "pooled", so that what its samples said about all classes
            together stays. None of other kinds, and of a class that was forgotten before.
    """

    number: int
    time: datetime
    kind: str
    counts: Mapping[str, int]
    to: int | None = None
    form: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that the change was about."""
        return tuple(self.counts)
