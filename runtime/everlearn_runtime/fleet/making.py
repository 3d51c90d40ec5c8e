"""What a device hands in: from its head, now and at an earlier version, to a delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.fleet.delta import Delta
from everlearn_runtime.fleet.stamps import passed, stamp
from everlearn_runtime.heads import Head
from everlearn_runtime.heads.registry import make
from everlearn_runtime.identity import graph_of, model_of
from everlearn_runtime.ledger import Span
from everlearn_runtime.manifest import Manifest
from everlearn_runtime.words import plural

if TYPE_CHECKING:
    from everlearn_runtime.state import Version
    from everlearn_runtime.state.owner import Past


def make_delta(
    head: Head,
    past: Past,
    device: str,
    manifest: Manifest,
    min_count: int,
    history: Sequence[Version],
    samples: Mapping[str, NDArray[np.float64]],
) -> Delta:
    """What has come to a head since it was an earlier one.

    Args:
        head: What is known now; left as it is.
        past: The earlier version.
        device: The device's number.
        manifest: Of its bundle.
        min_count: Classes with fewer new samples are left out.
        history: The device's versions, as far as they are there.
        samples: With a ``min_count`` above 1, features (n, F) of what was learned since, by class, as far as
            they are there: looked at where sums that all classes share hold more than what is handed in.

    Raises:
        ValueError: Nothing has, the head keeps more than sums of features, or features are not there any more
            without which classes cannot be left out.
    """
    own = head.since(past.head, past.forgotten)
    forgotten = past.gone(head)
    few = [name for name, count in zip(own.classes, own.counts.tolist(), strict=True) if count < min_count]
    pooled = min_count > 1 and _holds_more(own)
    for name in few:
        pooled = pooled or not own.removes_exactly(name)
        own.remove(name)
    if pooled:
        own = _anew(own, samples)
    own.settle()
    start, end = past.begin.version, past.end.version
    if start == end or not (own.classes or few or forgotten):
        raise ValueError(f"nothing was learned or forgotten since version {start}")
    stamps = {one.number: stamp(device, one) for one in history if one.number in (start, end)}
    return Delta(
        graph_of(manifest),
        model_of(manifest),
        device,
        Span(stamps.get(start, past.begin), stamps[end]),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        own.state(),
        forgotten,
        len(few),
        passed=passed(device, history, start, end),
    )


def _holds_more(head: Head) -> bool:
    """Whether sums that all classes share hold samples of classes that were forgotten."""
    seen = head.state().arrays.get("seen")
    return seen is not None and int(seen[0]) > int(head.counts.sum())


def _anew(own: Head, samples: Mapping[str, NDArray[np.float64]]) -> Head:
    """A head that has seen the samples of these classes and nothing else: of a class that is left out, or was
    forgotten, the sums that all classes share would tell an image's features as well as its mean does."""
    found = make(own.kind, own.options)
    for name, count in zip(own.classes, own.counts.tolist(), strict=True):
        rows = samples.get(name, np.zeros((0, 0)))
        if len(rows) != count:
            raise ValueError(
                f"of {plural(count, 'sample')} of {name!r} the state has the features of {len(rows)} only, "
                "by which it is told from classes that are not handed in: hand in before the device takes a "
                "new bundle, or with min_count=1"
            )
        found.update(rows, [name] * count)
    return found
