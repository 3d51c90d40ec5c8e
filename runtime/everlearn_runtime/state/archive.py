"""From what a file holds to the head it stands for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everlearn_runtime.errors import BundleError, OtherModel, StateError
from everlearn_runtime.heads import Head, HeadState
from everlearn_runtime.state.adapted import Adapters, joined, parted, unpack_adapted
from everlearn_runtime.state.anchor import Anchor, read_anchor
from everlearn_runtime.state.database import damaged, from_elsewhere, rows, senseless
from everlearn_runtime.state.journal import Event, digest
from everlearn_runtime.state.snapshots import read_snapshot

BATCH = 64  # entries that are in memory together
ENTRY_BYTES = 128  # what an entry takes besides its text and features, about


@dataclass
class Built:
    """A head, and how it came about.

    Args:
        head: It.
        since: Bytes of the journal that were replayed.
        seen: The state at the entry that was asked for, if it was passed.
        bad: Snapshots that could not be read.
        adapters: What goes with the head; None: the bundle's own.
    """

    head: Head
    since: int = 0
    seen: HeadState | None = None
    bad: list[int] = field(default_factory=list)
    adapters: Adapters | None = None

    def replay(self, event: Event, data: bytes) -> None:
        """Do what an event says.

        Raises:
            ValueError: It does not go with what there is.
        """
        if event.kind == "adapt":
            self.head, self.adapters = unpack_adapted(event.head, data)
        else:
            event.replay(self.head, data)

    def state(self) -> HeadState:
        """A copy of all that is known."""
        return joined(self.head.state(), self.adapters)


@dataclass(frozen=True)
class Plan:
    """One way to a head: a snapshot, and runs of entries to replay after it, first and last.

    ``snapshot`` None is the bundle's own head.
    """

    snapshot: int | None
    runs: list[tuple[int, int]]


class Archive:
    """Reads a state through a connection.

    Args:
        database: The connection; the archive does not close it.
        path: The file, for messages.
        model: What the state must go with.
        base: Makes the bundle's own head, version 0.
    """

    def __init__(
        self, database: sqlite3.Connection, path: Path, model: str, base: Callable[[], Head]
    ) -> None:
        self.database = database
        self._path = path
        self._model = model
        self._base = base

    def anchor(self) -> Anchor:
        """Where the file ends.

        Raises:
            StateError: The file is damaged, or belongs to another graph or head.
        """
        anchor = read_anchor(self.database, self._path)
        if anchor.model != self._model:
            raise OtherModel(
                f"{self._path} belongs to another bundle, with another graph or head "
                f"({anchor.model[:12]}..., not {self._model[:12]}...); "
                "open it with that one, or give a new file to start from this one",
                anchor.model,
            )
        last = anchor.seq
        if last < 1 or self.digest(last) != anchor.digest or self.event(last).version != anchor.version:
            raise self.damaged("the journal does not match the anchor")
        return anchor

    def build(self, seq: int, rollbacks: Mapping[int, int], watch: int | None = None) -> Built:
        """The head as it was after an entry.

        Args:
            seq: The entry; 0 is the bundle's own head.
            rollbacks: As of :meth:`rollbacks`.
            watch: An entry at which the head's state is to be kept, if it comes by.

        Raises:
            StateError: No snapshot that it could start from is whole, or an entry is not.
        """
        bad: list[int] = []
        problem = "no snapshot is left to start from"
        for plan in self._plans(seq, rollbacks):
            try:
                built = self._start(plan)
            except BundleError:
                raise
            except Exception as error:  # whatever a checksum that is right cannot rule out
                if (other := from_elsewhere(error)) is not None:
                    raise other  # noqa: B904 - it is what was raised first
                problem = str(error) if plan.snapshot is None else f"snapshot {plan.snapshot}: {error}"
                if plan.snapshot is not None:
                    bad.append(plan.snapshot)
                continue
            built.bad = bad
            for first, last in plan.runs:
                self.replay(built, first, last, watch)
            return built
        raise self.damaged(problem)

    def replay(self, built: Built, first: int, last: int, watch: int | None = None) -> None:
        """Replay a run of entries, after checking them.

        Raises:
            StateError: One is missing, changed, or does not go with the head.
        """
        before, expected = self.digest(first - 1), first
        for start in range(first, last + 1, BATCH):
            for number, total, found, text, features in rows(
                self.database,
                "SELECT seq, total, digest, event, features FROM journal "
                "WHERE seq BETWEEN ? AND ? ORDER BY seq",
                start,
                min(start + BATCH - 1, last),
            ):
                if number != expected or not _sound(before, number, total, found, text, features):
                    raise self._not_sound(expected)
                try:
                    built.replay(Event.from_json(text), features)
                except Exception as error:  # whatever a checksum that is right cannot rule out
                    what = f"journal entry {number} makes no sense ({type(error).__name__}: {error})"
                    raise senseless(self._path, what, error) from error
                before, expected = found, expected + 1
                built.since += len(text) + len(features) + ENTRY_BYTES
                if number == watch:
                    built.seen = built.state()
        if expected != last + 1:
            raise self._not_sound(expected)

    def events(self) -> list[tuple[int, Event]]:
        """Versions that can be gone back to, oldest first, each with its last entry.

        A version's last entry is its own, or that of a "settle" after it.
        """
        floor, expected = self.floor(), 0
        found: dict[int, tuple[int, Event]] = {}
        for seq, text in rows(
            self.database, "SELECT seq, event FROM journal WHERE seq >= ? ORDER BY seq", floor - 1
        ):
            if seq != (expected or seq):
                raise self.damaged(f"journal entry {expected} is missing")
            expected, event = seq + 1, self._event(text)
            if seq == floor:  # what is before belongs to this version, or cannot be gone back to
                found = {number: kept for number, kept in found.items() if number == event.version}
            own = found[event.version][1] if event.version in found else event
            found[event.version] = seq, own
        return list(found.values())

    def floor(self) -> int:
        """The oldest entry that can be gone back to; 0 is the bundle's own head."""
        first = self.database.execute("SELECT min(seq) FROM journal").fetchone()[0]
        if first in (None, 1):
            return 0
        oldest: int | None = self.database.execute(
            "SELECT min(seq) FROM snapshot WHERE digest IS NOT NULL"
        ).fetchone()[0]
        return first if oldest is None else oldest

    def event(self, seq: int) -> Event:
        """What an entry says.

        Raises:
            StateError: There is no such entry.
        """
        row = self.database.execute("SELECT event FROM journal WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise self.damaged(f"journal entry {seq} is missing")
        return self._event(row[0])

    def mentions(self, label: str) -> bool:
        """Whether the journal or a snapshot names a class."""
        return mentions(self.database, self._path, label)

    def snapshots(self) -> dict[int, int]:
        """Whole snapshots: the entry after which each was taken, and its number."""
        found = rows(
            self.database, "SELECT seq, number FROM snapshot WHERE digest IS NOT NULL ORDER BY number"
        )
        if any(type(seq) is not int for seq, _ in found):
            raise self.damaged("a snapshot is of no entry")
        return dict(found)

    def damaged(self, what: str) -> StateError:
        """The error for a file whose content is wrong."""
        return damaged(self._path, what)

    def unfinished(self) -> tuple[Any, Any, Any] | None:
        """Number, entry, and the entry's checksum, of the snapshot that is under way."""
        found = rows(
            self.database,
            "SELECT number, seq, chain FROM snapshot WHERE digest IS NULL ORDER BY number DESC LIMIT 1",
        )
        return found[0] if found else None

    def rollbacks(self) -> dict[int, int]:
        """The entries that go back, and the entries after which they go on.

        Raises:
            StateError: One was changed. They are never replayed, so that it must be seen here.
        """
        oldest = self.database.execute("SELECT min(seq) FROM journal").fetchone()[0]
        found: dict[int, int] = {}
        for seq, total, own, text, features in rows(
            self.database,
            "SELECT seq, total, digest, event, features FROM journal "
            "WHERE length(features) = 0 AND event LIKE '%rollback%' ORDER BY seq",
        ):
            event = self._event(text)
            if event.kind == "rollback":
                if event.seq >= seq:
                    raise self.damaged(f"journal entry {seq} goes back to a later one")
                # Where the oldest one goes back to is gone, and the entry before it may be.
                if seq != oldest and not _sound(self.digest(seq - 1), seq, total, own, text, features):
                    raise self._not_sound(seq)
                found[seq] = event.seq
        return found

    def _plans(self, seq: int, rollbacks: Mapping[int, int]) -> Iterator[Plan]:
        """Ways to a head, the shortest first."""
        snapshots, runs = self.snapshots(), list[tuple[int, int]]()
        first = self.database.execute("SELECT min(seq) FROM journal").fetchone()[0] or 1
        for start, end in lineage(seq, rollbacks, first):
            for after in sorted((at for at in snapshots if start - 1 <= at <= end), reverse=True):
                yield Plan(snapshots[after], _runs(after + 1, end, runs))
            runs = _runs(start, end, runs)
            seq = start - 1
        if seq == 0:
            yield Plan(None, runs)

    def _start(self, plan: Plan) -> Built:
        if plan.snapshot is None:
            return Built(self._base())
        state, _ = read_snapshot(self.database, plan.snapshot)
        head, adapters = parted(state)
        return Built(head, adapters=adapters)

    def digest(self, seq: int) -> bytes:
        """The checksum of an entry, which may be gone if a snapshot was taken after it."""
        if seq == 0:
            return b""
        row = self.database.execute("SELECT digest FROM journal WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            row = self.database.execute("SELECT chain FROM snapshot WHERE seq = ?", (seq,)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise self._not_sound(seq)
        return row[0]

    def total(self, seq: int) -> int:
        """Bytes of the journal up to an entry.

        Raises:
            StateError: There is no such entry, or it does not say.
        """
        row = self.database.execute("SELECT total FROM journal WHERE seq = ?", (seq,)).fetchone()
        if row is None or type(row[0]) is not int:
            raise self._not_sound(seq)
        return int(row[0])

    def _not_sound(self, seq: int) -> StateError:
        return self.damaged(f"journal entry {seq} is missing or does not match its checksum")

    def _event(self, text: object) -> Event:
        return _event(text, self._path)


def mentions(database: sqlite3.Connection, path: Path, label: str) -> bool:
    """Whether the journal or a snapshot of the state at a path names a class; of whatever model it is."""
    events = (_event(text, path) for (text,) in rows(database, "SELECT event FROM journal"))
    if any(event.names(label) for event in events):
        return True
    heads = rows(database, "SELECT head FROM snapshot")
    return any(json.dumps(label, ensure_ascii=False) in str(text) for (text,) in heads)


def _sound(before: bytes, seq: int, total: object, own: object, text: object, features: object) -> bool:
    """Whether an entry is what its checksum says that it is."""
    if type(total) is not int or not isinstance(text, str) or not isinstance(features, bytes):
        return False
    return digest(before, seq, total, text, features) == own


def _event(text: object, path: Path) -> Event:
    try:
        return Event.from_json(text)
    except (ValueError, TypeError) as error:
        raise senseless(path, str(error), error) from None


def lineage(seq: int, rollbacks: Mapping[int, int], first: int = 1) -> Iterator[tuple[int, int]]:
    """What a head goes back on: runs of entries, first and last, the newest run first.

    What was rolled back is passed over; a run may be empty, with its last before its first.

    Args:
        seq: The head's last entry.
        rollbacks: The entries that go back, and the entries after which they go on.
        first: The oldest entry that is there.

    >>> list(lineage(9, {7: 3}))
    [(8, 9), (1, 3)]
    """
    for number in sorted(rollbacks, reverse=True):
        if first <= number <= seq:
            yield number + 1, seq
            seq = rollbacks[number]
    if seq >= first - 1:
        yield first, seq


def _runs(first: int, last: int, later: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """A run before later ones, unless it is empty."""
    return [(first, last), *later] if first <= last else list(later)
