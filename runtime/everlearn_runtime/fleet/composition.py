"""What several files with noise tell together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from everlearn_runtime.errors import DeltaError
from everlearn_runtime.fleet.delta import Delta
from everlearn_runtime.ledger import Span


class Privacy(NamedTuple):
    """An (epsilon, delta): infinite and 1 where there is no noise."""

    epsilon: float
    delta: float


def together(places: Iterable[str]) -> Privacy | None:
    """What files of one device tell of one of its images at most, if several tell of the same one.

    Their epsilons and their deltas add up (basic composition: Dwork and Roth 2014, theorem 3.16), over the
    files of which an image's version may be part. Copies of one file tell nothing more than one.

    Args:
        places: The files.

    Returns:
        None if no two of them are of the same versions, or none has noise.

    Raises:
        DeltaError: A file is no delta.
    """
    found: dict[str, tuple[Span, Privacy]] = {}
    for place in places:
        delta = Delta.peek(place)
        if delta.noise is None:
            told = Privacy(math.inf, 1.0)
        else:
            told = Privacy(delta.epsilon or 0.0, delta.noise.target_delta)
        try:
            found[hashlib.sha256(Path(place).read_bytes()).hexdigest()] = delta.span, told
        except OSError as error:
            raise DeltaError(f"{place} cannot be read ({error.strerror})") from None
    worst: Privacy | None = None
    for span, _ in found.values():  # the most are over a version after which one of them begins
        first = span.start.version
        over = [told for one, told in found.values() if one.start.version <= first < one.end.version]
        if len(over) > 1 and any(math.isfinite(told.epsilon) for told in over):
            sums = Privacy(sum(told.epsilon for told in over), min(sum(told.delta for told in over), 1.0))
            worst = sums if worst is None else max(worst, sums)
    return worst


def of_each(places: Mapping[str, Iterable[str]]) -> dict[str, Privacy]:
    """The same for the files of each of several devices, by their numbers."""
    found = {device: together(own) for device, own in places.items()}
    return {device: told for device, told in found.items() if told is not None}
