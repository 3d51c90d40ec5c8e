"""The samples that a journal still has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads import Head
from everlearn_runtime.state.archive import Archive, Built, lineage
from everlearn_runtime.state.journal import Event


class Samples(Built):
    """What a replay brings, kept as it is in place of being learned.

    Args:
        head: Any; it is left as it is.
    """

    def __init__(self, head: Head) -> None:
        super().__init__(head)
        self._rows: dict[str, list[NDArray[np.float64]]] = {}

    def replay(self, event: Event, data: bytes) -> None:
        """Keep what is learned, and drop what is forgotten after it."""
        if event.kind == "learn":
            for label, row in zip(event.labels, event.rows(data).astype(np.float64), strict=True):
                self._rows.setdefault(label, []).append(row)
        elif event.kind == "forget":
            self._rows.pop(event.labels[0], None)

    @property
    def rows(self) -> dict[str, NDArray[np.float64]]:
        """Features (n, F) of each class, in the order in which they were learned."""
        return {label: np.stack(rows) for label, rows in self._rows.items()}


def samples_after(
    archive: Archive, floor: int, last: int, rollbacks: Mapping[int, int], head: Head
) -> dict[str, NDArray[np.float64]]:
    """Features (n, F), float64, of each class that was learned after an entry and neither taken back nor
    forgotten, as far as the journal has them.

    Args:
        archive: Reads the file.
        floor: The entry.
        last: The journal's last entry.
        rollbacks: As of `Archive.rollbacks`.
        head: What goes with the state.

    Raises:
        StateError: Entries are damaged.
    """
    # Of the oldest entry the one before is gone, by which it would be checked.
    oldest: int = archive.database.execute("SELECT min(seq) FROM journal").fetchone()[0]
    floor = max(floor, oldest)
    samples = Samples(head)
    for start, end in reversed(list(lineage(last, rollbacks))):
        if end > floor:
            archive.replay(samples, max(start, floor + 1), end)
    return samples.rows
