"""What a state file can do without."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from everlearn_runtime.state.archive import Archive, lineage
from everlearn_runtime.state.database import rows
from everlearn_runtime.state.snapshots import SHIFT

ROWS = 8  # a call, so that none takes long


def prune(
    database: sqlite3.Connection,
    archive: Archive,
    seq: int,
    rollbacks: Mapping[int, int],
    retention: int,
) -> None:
    """Give up the oldest generations if there is more than is to be kept; inside a transaction.

    From then on nobody goes back to them; :func:`sweep` deletes what they consist of.

    Args:
        database: The connection.
        archive: Reads through it.
        seq: The journal's last entry.
        rollbacks: As of :meth:`Archive.rollbacks`.
        retention: Bytes to keep.
    """
    floor = _floor(database, archive, seq, rollbacks, retention)
    if floor > archive.floor():
        database.execute("DELETE FROM snapshot WHERE seq < ?", (floor,))
        # Without the first entry nobody starts from the bundle's own head.
        database.execute("DELETE FROM journal WHERE seq = 1")


def sweep(database: sqlite3.Connection, archive: Archive) -> bool:
    """Delete some of what nobody goes back to; inside a transaction. Returns whether there may be more."""
    floor = archive.floor()
    first = database.execute("SELECT min(seq) FROM journal").fetchone()[0]
    if first < floor - 1:
        database.execute("DELETE FROM journal WHERE seq < ?", (min(first + ROWS, floor - 1),))
        return True
    return _sweep_pieces(database)


def _floor(
    database: sqlite3.Connection,
    archive: Archive,
    seq: int,
    rollbacks: Mapping[int, int],
    retention: int,
) -> int:
    """The oldest entry to keep: that of a snapshot, from which the rest can be built."""
    snapshots, floor = archive.snapshots(), archive.floor()
    runs = lineage(seq, rollbacks)
    own = [at for first, last in runs for at in sorted(snapshots, reverse=True) if first <= at <= last]
    if len(own) < 2:
        return floor
    sizes = dict(rows(database, "SELECT seq, size FROM snapshot"))
    for candidate in sorted(at for at in snapshots if floor < at <= own[1]):
        kept = _journal_bytes(database, floor, seq) + sum(sizes[at] for at in snapshots if at >= floor)
        if kept <= retention:
            break
        if not _goes_below(candidate, rollbacks):
            floor = candidate
    return floor


def _goes_below(floor: int, rollbacks: Mapping[int, int]) -> bool:
    """Whether an entry after this one goes back to before it."""
    return any(at > floor > target for at, target in rollbacks.items())


def _journal_bytes(database: sqlite3.Connection, first: int, last: int) -> int:
    """Bytes of the journal after one entry, up to another."""
    totals = database.execute(
        "SELECT max(total) - min(total) FROM journal WHERE seq IN (?, ?)", (max(first, 1), last)
    ).fetchone()
    return int(totals[0] or 0)


def _sweep_pieces(database: sqlite3.Connection) -> bool:
    """Delete pieces of snapshots that are gone. Returns whether there may be more."""
    kept = {number for (number,) in rows(database, "SELECT number FROM snapshot")}
    key = 0
    while True:
        found = database.execute("SELECT min(key) FROM piece WHERE key >= ?", (key,)).fetchone()[0]
        if found is None:
            return False
        number = found >> SHIFT
        if number not in kept:
            database.execute("DELETE FROM piece WHERE key BETWEEN ? AND ?", (found, found + ROWS - 1))
            return True
        key = (number + 1) << SHIFT
