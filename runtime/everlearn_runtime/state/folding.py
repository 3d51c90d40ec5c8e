"""Folding the journal into snapshots, a little with every change, and deleting what they replace."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from typing import Any

from everlearn_runtime.heads import Head, HeadState
from everlearn_runtime.state.anchor import Anchor
from everlearn_runtime.state.archive import Archive, Built
from everlearn_runtime.state.database import transaction
from everlearn_runtime.state.pruning import prune, sweep
from everlearn_runtime.state.snapshots import PIECE_BYTES, SHIFT, SnapshotWriter, sizes_written

# A change that finds a snapshot under way writes this much of it for each byte of its own.
HASTE = 4
LEAST_FOLD_BYTES = 64 << 10


def fold_bytes(head_bytes: int) -> int:
    """How long the journal grows before the head goes into a snapshot.

    A snapshot is written twice, to the WAL and to its place, so that it costs a change
    2 / 1.5 times its own bytes for small heads; large ones are written more often, because
    replaying takes them long, and because three snapshots and two journals must find room.
    """
    return max(LEAST_FOLD_BYTES, min(head_bytes * 3 // 2, head_bytes // 8 + (6 << 20)))


class Folding:
    """What is under way, and what is due.

    A snapshot begins with a copy of the head in memory, which is given back array by array as it is
    written. One that a process leaves unfinished is gone on with by the next.

    Args:
        retention: Bytes of journal and snapshots to keep.
    """

    def __init__(self, retention: int) -> None:
        self._retention = retention
        self._writer: SnapshotWriter | None = None
        self._since = 0  # bytes of the journal that are replayed when it is opened
        self._folded = 0  # and of those, what comes after the snapshot that is under way
        self._due = 0  # after one that failed: how long the journal gets before the next
        self._bad: list[int] = []
        self._unpruned = self._unswept = True

    def restart(self, database: sqlite3.Connection, built: Built, unfinished: Any) -> None:
        """Begin where a file leaves off.

        Args:
            database: A connection to it.
            built: The head that it gave, with the state at the entry of an unfinished snapshot.
            unfinished: That snapshot's number, entry and the entry's checksum, or None.
        """
        self._writer = None
        if unfinished and built.seen is not None:
            number, seq, chain = unfinished
            writer = SnapshotWriter(number, seq, chain, built.seen)
            if writer.skip(sizes_written(database, number)):
                self._writer = writer
        self._since, self._folded, self._bad = built.since, 0, built.bad
        self._unpruned = self._unswept = True

    def grew(self, size: int) -> None:
        """Note that the journal did, by so many bytes."""
        self._since += size
        self._folded += size

    def went_back(self, since: int) -> None:
        """Note that the head is another, which takes so many bytes of journal to replay."""
        self._since, self._writer = since, None  # a snapshot under way is of what was gone back on

    def due(self, head: Head) -> bool:
        """Whether the head should go into a snapshot now."""
        busy = self._writer is not None or self._unpruned or self._unswept
        return not busy and self._since >= max(fold_bytes(head.nbytes), self._due)

    def begin(self, database: sqlite3.Connection, state: HeadState, anchor: Anchor) -> None:
        """Begin a snapshot of what is known after the last entry, with a head that has settled."""
        number = database.execute(
            "SELECT max(coalesce((SELECT max(number) FROM snapshot), 0), "
            "coalesce((SELECT max(key) FROM piece), 0) >> ?) + 1",
            (SHIFT,),
        ).fetchone()[0]
        writer = SnapshotWriter(number, anchor.seq, anchor.digest, state)
        with transaction(database):
            writer.begin(database)
        self._folded = 0
        self._writer = writer

    def go_on(self, database: sqlite3.Connection, size: int) -> int:
        """Write some pieces, as a change of so many bytes should. Returns the bytes written."""
        writer, self._writer = self._writer, None  # unless all goes well it and the file would differ
        if writer is None:
            return 0
        pieces = max(1, math.ceil(HASTE * size / PIECE_BYTES))
        with transaction(database):
            done = writer.write(database, pieces, PIECE_BYTES)
        if done:
            self._since, self._due, self._unpruned = self._folded, 0, True
        else:
            self._writer = writer
        return pieces * PIECE_BYTES

    def tidy(
        self, database: sqlite3.Connection, archive: Archive, seq: int, rollbacks: Mapping[int, int]
    ) -> None:
        """Delete some of what is not needed any more.

        Args:
            database: The connection.
            archive: Reads through it.
            seq: The journal's last entry.
            rollbacks: As of :meth:`Archive.rollbacks`.
        """
        if self._writer is not None or not (self._unpruned or self._unswept):
            return
        with transaction(database):
            if self._unpruned:
                for number in self._bad:
                    database.execute("DELETE FROM snapshot WHERE number = ?", (number,))
                database.execute("DELETE FROM snapshot WHERE digest IS NULL")
                prune(database, archive, seq, rollbacks, self._retention)
            more = sweep(database, archive)
        self._unpruned, self._unswept, self._bad = False, more, []

    def give_up(self, head: Head) -> None:
        """After an error: leave the journal as it is, and try again when it has grown."""
        self._writer, self._unpruned = None, True
        self._due = self._since + fold_bytes(head.nbytes) // 8
