"""What tells one device's versions from those of another that goes on from a copy of its state.

A copy makes its next version at another moment. So a version is known by its number and when it was made, to
the millisecond: of the images nothing is in that, as it would be in a checksum of the journal, by which a
guess at an image could be confirmed whatever noise is on the sums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from everlearn_runtime.ledger import DIGEST, Mark

if TYPE_CHECKING:
    from everlearn_runtime.state import Version

MOST_PASSED = 256  # versions within a delta of which it says what they are


def stamp(device: str, version: Version) -> Mark:
    """A version of a device's history; version 0 is the bundle's own head, the same for all."""
    if version.number == 0:
        return Mark(0, "")
    said = f"{device} {version.number} {version.time.isoformat(timespec='milliseconds')}"
    return Mark(version.number, hashlib.sha256(said.encode()).hexdigest()[: 2 * DIGEST])


def passed(device: str, history: Sequence[Version], start: int, end: int) -> tuple[Mark, ...]:
    """Versions after one and before another, as far as the history has them: all, or those that are multiples
    of the least power of two that leaves no more than `MOST_PASSED`."""
    step = 1
    while (end - start) // step > MOST_PASSED:
        step *= 2
    inside = (one for one in history if start < one.number < end and one.number % step == 0)
    return tuple(stamp(device, one) for one in inside)


def contradict(marks: Iterable[tuple[int, str]], others: Iterable[Mark]) -> int | None:
    """The first version that two devices, which pass for one, have made each by itself; None without one."""
    known = dict(marks)
    return min(
        (one.version for one in others if known.get(one.version, one.digest) != one.digest), default=None
    )
