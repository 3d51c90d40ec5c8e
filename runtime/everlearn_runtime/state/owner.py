"""The one process that learns."""

from __future__ import annotations

import math
import os
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import StateError
from everlearn_runtime.heads import Head
from everlearn_runtime.state.anchor import Anchor, check_companion, check_kind, new_anchor, read_alone
from everlearn_runtime.state.archive import ENTRY_BYTES, Archive, lineage
from everlearn_runtime.state.copies import Backup, start_file
from everlearn_runtime.state.database import (
    PAGE_BYTES,
    SCHEMA,
    checkpoint,
    connect,
    content_errors,
    damaged,
    leave,
    prepare,
    sqlite_errors,
    transaction,
    undo_unfinished,
)
from everlearn_runtime.state.journal import Event, digest, now, pack
from everlearn_runtime.state.lock import FileLock
from everlearn_runtime.state.pruning import prune, sweep
from everlearn_runtime.state.schema1 import merge_wal, read_schema1
from everlearn_runtime.state.snapshots import PIECE_BYTES, SHIFT, SnapshotWriter, sizes_written
from everlearn_runtime.state.versions import Version
from everlearn_runtime.state.view import companion, view

Result = TypeVar("Result")

RETENTION = 64 << 20
# A change that finds a snapshot under way writes this much of it for each byte of its own.
HASTE = 4
# The WAL goes into the file when it has about this much, or, where somebody always reads, so many
# times as much.
CHECKPOINT_BYTES = 4 << 20
PATIENCE = 4
LEAST_FOLD_BYTES = 64 << 10


def fold_bytes(head_bytes: int) -> int:
    """How long the journal grows before the head goes into a snapshot.

    A snapshot is written twice, to the WAL and to its place, so that it costs a change
    2 / 1.5 times its own bytes for small heads; large ones are written more often, because
    replaying takes them long, and because three snapshots and two journals must find room.
    """
    return max(LEAST_FOLD_BYTES, min(head_bytes * 3 // 2, head_bytes // 8 + (6 << 20)))


class Owner:
    """A head and the file that it is kept in, changed as one.

    A change is written to the journal, made to the head, and committed; whatever is raised
    between leaves the file as it was, and the head is then built from it anew before anybody
    sees it. It does not lock between threads; the learner does.

    Args:
        path: The file, made if it is not there; its folder must exist.
        model: sha256 of the graph and the head that the state goes with.
        bundle: Id of the bundle, which is what states of the first schema go with.
        base: Makes the bundle's own head, version 0.
        durable: Survive power failures, not only crashes, at the price of a disk sync a change.
        retention: Bytes of journal and snapshots that are kept to go back to. The newest two
            snapshots and what follows the older one are kept in any case.

    Raises:
        StateError: The file is damaged, no state file, from a newer version, in use, or goes with
            something else. It is left as it was.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: str,
        bundle: str,
        base: Callable[[], Head],
        durable: bool = False,
        retention: int = RETENTION,
    ) -> None:
        if str(path) == ":memory:":
            raise StateError("':memory:' would keep nothing; give a file, or state=None")
        self.path = Path(os.path.realpath(path))
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise StateError(f"{path}: a state is one file in a folder that exists")
        self._companion = companion(self.path)
        self._model = model
        self._base = base
        self._durable = durable
        self._retention = retention
        self._pid = os.getpid()
        self._database: sqlite3.Connection | None = None
        self._anchor: Anchor
        self._head: Head
        self._wal: os.stat_result
        self._session = False
        self._sure = False
        self._backups: weakref.WeakSet[Backup] = weakref.WeakSet()
        self._fold: SnapshotWriter | None = None
        self._folded = 0
        self._due = 0  # after a snapshot that failed: when to try again
        self._wal_bytes = 0
        self._lock = self._take(create=True)
        try:
            self._open(bundle)
        except BaseException:
            with suppress(StateError):
                self._close_database()
            self._lock.release()
            raise
        _OWNERS.add(self)

    # What is known.

    @property
    def head(self) -> Head:
        """The head as the file has it; to be read, not changed.

        Raises:
            StateError: The head had to be built anew, and the file cannot be read.
        """
        if not self._sure:
            self._rebuild()
        return self._head

    def use(self, look: Callable[[Head], Result]) -> Result:
        """Look at the head in ways that may work in what waits in it, such as scores or counts.

        An interrupt in the middle of that leaves the head half done, as one in a change would.
        """
        head = self.head
        self._sure = False
        result = look(head)
        self._sure = True
        return result

    @property
    def version(self) -> int:
        """The number of the last change."""
        if not self._sure:
            self._rebuild()
        return self._anchor.version

    def history(self) -> list[Version]:
        """The versions that can be gone back to, oldest first."""
        with sqlite_errors(self.path), content_errors(self.path):
            return [event.told() for _, event in self._archive().events()]

    # What changes it.

    def learn(self, features: NDArray[np.floating[Any]], labels: Sequence[str]) -> Version:
        """Learn features that the head has checked.

        Args:
            features: float32 or float64 (B, F); kept to the bit.
            labels: B class names.

        Raises:
            StateError: It could not be written; the state is as it was.
        """
        says, data = pack(features, labels)
        self._tend(len(data))
        return self._change("learn", lambda head: head.update(features, labels), data, **says)

    def forget(self, label: str) -> Version:
        """Drop a class that the head knows; raises like :meth:`learn`."""
        self._tend(0)
        samples = self.use(lambda head: int(head.counts[head.classes.index(label)]))
        return self._change("forget", lambda head: head.remove(label), labels=(label,), samples=samples)

    def rollback(self, to: int) -> Version:
        """Go back to a version.

        Args:
            to: Its number.

        Raises:
            ValueError: It cannot be reached.
            StateError: Its entries are damaged, or the change could not be written.
        """
        with sqlite_errors(self.path), content_errors(self.path):
            archive = self._archive()
            events = archive.events()
            seq = next((seq for seq, event in events if event.version == to), None)
            built = None if seq is None else archive.build(self._anchor, seq, self._rollbacks)
        if built is None:
            first, last = events[0][1].version, events[-1][1].version
            raise ValueError(f"version {to!r} cannot be gone back to; from {first} to {last} can")
        return self._change("rollback", lambda _: built.head, to=to, seq=seq, since=built.since)

    def undo(self) -> Version:
        """Take back the last change that has not been taken back; raises like :meth:`rollback`."""
        with sqlite_errors(self.path), content_errors(self.path):
            before = self._before_last_change()
        if before is None:
            raise ValueError("there is nothing left to undo")
        return self.rollback(before)

    def purge(self, label: str) -> Version:
        """Forget a class, and the history in which its name or features could stand.

        The file is written anew, with the head as it is without the class and nothing else.

        Raises:
            ValueError: Neither the head nor the history knows the class.
            StateError: It could not be written; the state is as it was.
        """
        head = self.head
        if label not in head.classes and not self._archive().mentions(label):
            known = ", ".join(map(repr, head.classes)) or "none"
            raise ValueError(f"no class {label!r} to forget, nor one in the history; known classes: {known}")
        for job in self._backups:
            job.discard()
        self._sure = False
        if label in head.classes:
            head.remove(label)
        head.settle()
        event = Event("purge", self._anchor.version + 1, now())
        self._close_database()
        self._lock = start_file(self.path, self._new_anchor(self._anchor.seq + 1), event, lambda: head)
        self._rebuild()
        return event.told()

    def migrate(self, model: str, base: Callable[[], Head], head: Head) -> Path:
        """Go on with another model, and keep what there is now as a file beside.

        A process that dies on the way leaves this state as it was, or the new one.

        Args:
            model: sha256 of the new graph and head.
            base: Makes the new bundle's own head.
            head: What is known from now on, settled.

        Returns:
            The old state's place: named after what it says, so that another try finds it.

        Raises:
            StateError: It could not be written; the state is as it was.
        """
        kept = self._keep_copy()
        for job in self._backups:
            job.discard()
        event = Event("migrate", self._anchor.version + 1, now())
        anchor = replace(new_anchor(model), seq=self._anchor.seq + 1)
        self._sure = False
        self._close_database()
        self._lock = start_file(self.path, anchor, event, lambda: head)
        self._model, self._base = model, base
        self._rebuild()
        return kept

    def backup(self, path: str | Path) -> Backup:
        """Begin a copy of the state as it is now; its steps may come between changes.

        Raises:
            ValueError: Something is at the path.
            StateError: The copy cannot be written.
        """
        self._archive()
        job = Backup(self._working(), self._anchor, Path(os.path.realpath(path)))
        self._backups.add(job)
        return job

    def close(self) -> None:
        """Give the file back; a forked child leaves it alone. It must not be used afterwards."""
        if os.getpid() != self._pid:
            return
        try:
            with suppress(StateError):  # all is safe in the WAL, which the next one to open the file moves
                self._close_database()
        finally:
            self._lock.release()

    # How.

    def _keep_copy(self) -> Path:
        """Copy the state beside its place, unless that was done before."""
        self._archive()
        path = self.path.with_name(f"{self.path.name}.before-{self._anchor.digest.hex()[:12]}")
        if path.exists():
            there = read_alone(path)
            if there is None or there.digest != self._anchor.digest:
                raise StateError(f"{path} is in the way of a copy of {self.path}; move it elsewhere")
            return path
        job = self.backup(path)
        try:
            while not job.step():
                pass
        finally:
            job.discard()
        return path

    def _before_last_change(self) -> int | None:
        """The version before the last change that has not been taken back, if it can be reached."""
        archive = self._archive()
        floor = archive.floor()
        for first, last in lineage(self._anchor.seq, self._rollbacks):
            for seq in range(last, max(first - 1, floor), -1):
                if archive.event(seq).kind in ("learn", "forget"):
                    return archive.event(seq - 1).version
        return None

    def _take(self, *, create: bool) -> FileLock:
        """Lock the file that is at the path."""
        while True:
            try:
                lock = FileLock(self.path, create=create)
            except OSError as error:
                raise StateError(
                    f"{self.path}: {error.strerror}; check the permissions, or open it with read_only=True"
                ) from error
            if lock.holds(self.path):
                return lock
            lock.release()  # it was replaced in between

    def _open(self, bundle: str) -> None:
        if os.fstat(self._lock.fileno()).st_size == 0:
            try:
                self._create()
            except BaseException:
                self.path.unlink()
                raise
        else:
            check_companion(self.path)
        with sqlite_errors(self.path), view(self.path) as readable, content_errors(self.path):
            schema = check_kind(readable, self.path)
            if (verdict := readable.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise damaged(self.path, str(verdict))
            if schema == SCHEMA:
                self._load(readable)
            else:
                old = read_schema1(readable, self.path, bundle)
        if schema == SCHEMA:
            self._connect()
            if not self._anchor.clean:  # its process died
                with suppress(StateError):  # on a full disk one can still predict
                    self._mark_clean(self._working())
                    self._anchor = replace(self._anchor, clean=1)
            self._sure = True
            return
        merge_wal(self.path)
        # Not entry 1, which would follow the bundle's own head.
        self._lock = start_file(self.path, self._new_anchor(2), Event("start", 0, now()), lambda: old)
        self._rebuild()

    def _create(self) -> None:
        if self._companion.exists():
            raise StateError(
                f"{self._companion} lies beside a state that is not there; put the file back, or "
                "delete the companion to start anew"
            )
        self._lock = start_file(self.path, self._new_anchor(1), Event("start", 0, now()), None)

    def _new_anchor(self, seq: int) -> Anchor:
        return replace(new_anchor(self._model), seq=seq)

    def _connect(self) -> None:
        with sqlite_errors(self.path):
            database = connect(self.path, "rw")
            prepare(database, self._durable)
        self._wal = os.stat(self._companion)
        self._session = False
        self._database = database

    def _load(self, database: sqlite3.Connection) -> None:
        """Build the head from the file, and go on with a snapshot that was under way."""
        archive = Archive(database, self.path, self._model, self._base)
        anchor = archive.anchor()
        unfinished = database.execute(
            "SELECT number, seq, chain FROM snapshot WHERE digest IS NULL ORDER BY number DESC LIMIT 1"
        ).fetchone()
        rollbacks = archive.rollbacks()
        built = archive.build(anchor, anchor.seq, rollbacks, unfinished and unfinished[1])
        self._fold = None
        if unfinished and built.seen is not None:
            number, seq, chain = unfinished
            writer = SnapshotWriter(number, seq, chain, built.seen)
            writer.skip(sizes_written(database, number))
            self._fold = writer
        self._anchor = anchor
        self._head = built.head
        self._since = built.since
        self._folded = 0
        self._bad = built.bad
        self._rollbacks = rollbacks
        self._unpruned = self._unswept = True

    def _rebuild(self) -> None:
        """Build the head anew, after something was raised in the middle of a change."""
        if self._database is None:  # in the middle of a purge, before or after the file was replaced
            self._lock.release()
            self._lock = self._take(create=False)
            self._connect()
        database = self._working()
        with sqlite_errors(self.path), content_errors(self.path):
            undo_unfinished(database)
            self._load(database)
        self._sure = True

    def _archive(self) -> Archive:
        """What reads the file, outside of transactions."""
        if not self._sure:
            self._rebuild()
        undo_unfinished(self._working())
        return Archive(self._working(), self.path, self._model, self._base)

    def _working(self) -> sqlite3.Connection:
        assert self._database is not None
        return self._database

    def _change(
        self,
        kind: str,
        apply: Callable[[Head], Head | None],
        features: bytes = b"",
        since: int | None = None,
        **says: Any,
    ) -> Version:
        """Write an entry and change the head, both or neither.

        Args:
            kind: Of the event.
            apply: Changes the head that it is given, or hands back another.
            features: Of the event.
            since: Bytes that are replayed to this head; None: this entry's more than before.
            says: The rest of the event.
        """
        head = self.head
        self._begin_session()
        anchor, database = self._anchor, self._working()
        version = anchor.version + (kind != "settle")
        event = Event(kind, version, now(), **says)
        text = event.to_json()
        size = len(text) + len(features) + ENTRY_BYTES
        with sqlite_errors(self.path), transaction(database):
            self._check_place()
            row = database.execute("SELECT total FROM journal WHERE seq = ?", (anchor.seq,)).fetchone()
            seq, total = anchor.seq + 1, row[0] + size
            chain = digest(anchor.digest, seq, total, text, features)
            database.execute(
                "INSERT INTO journal VALUES (?, ?, ?, ?, ?)", (seq, total, chain, text, features)
            )
            after = replace(anchor, seq=seq, version=version, digest=chain)
            after.write(database)
            self._sure = False
            head = apply(head) or head
        self._anchor = after
        self._head = head
        if kind == "rollback":
            self._rollbacks[seq] = event.seq
        self._folded += size
        if since is None:
            self._since += size
        else:  # a snapshot under way is of what was gone back on
            self._since, self._fold = since, None
        self._wal_bytes += size + 6 * PAGE_BYTES
        self._lock.let_read()
        self._sure = True
        return event.told()

    def _begin_session(self) -> None:
        """Before the first change: say in the file itself that it is not whole without its WAL."""
        if self._session:
            return
        database = self._working()
        anchor = replace(self._anchor, epoch=os.urandom(16), previous=self._anchor.epoch, clean=0)
        with sqlite_errors(self.path):
            with transaction(database):
                self._check_place()
                self._sure = False
                anchor.write(database)
            checkpoint(database)
        self._anchor = anchor
        self._session = True
        self._sure = True

    def _mark_clean(self, database: sqlite3.Connection) -> None:
        """Say in the file itself that it is whole without a WAL."""
        with sqlite_errors(self.path):
            checkpoint(database)  # so that what follows needs no more room
            with transaction(database):
                database.execute("UPDATE anchor SET clean = 1")
            checkpoint(database)

    def _check_place(self) -> None:
        """That file and WAL are still where they were; what is written elsewhere is lost."""
        try:
            same = os.path.samestat(self._wal, os.stat(self._companion))
        except OSError:
            same = False
        if not (same and self._lock.holds(self.path)):
            raise StateError(
                f"{self.path} or its companion {self._companion.name} was moved, replaced or deleted "
                "while in use; put it back, or open the learner again"
            )

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is None:
            return
        try:
            if not self._anchor.clean:
                undo_unfinished(database)
                self._mark_clean(database)
        except BaseException:
            leave(database)  # closing it would delete a WAL that the file says it needs
            raise
        database.close()

    # Snapshots, beside the caller's work.

    def _tend(self, size: int) -> None:
        """Before a change of so many bytes, do a part of what is to be done; failing is no harm."""
        if not self._sure:
            self._rebuild()
        try:
            with sqlite_errors(self.path):
                if self._fold is not None:
                    self._go_on(self._fold, size)
                elif (self._unpruned or self._unswept) and all(job.done for job in self._backups):
                    self._tidy()
                elif self._since >= max(fold_bytes(self._head.nbytes), self._due):
                    self._begin_fold()
                if self._wal_bytes > CHECKPOINT_BYTES and (
                    self._lock.try_alone() or self._wal_bytes > PATIENCE * CHECKPOINT_BYTES
                ):
                    self._wal_bytes = CHECKPOINT_BYTES // 2  # when to try again, if it fails
                    checkpoint(self._working())
                    self._wal_bytes = 0  # and the change that follows begins the WAL anew
        except (StateError, MemoryError):
            self._fold = None
            self._unpruned = True
            self._due = self._since + fold_bytes(self._head.nbytes) // 8

    def _begin_fold(self) -> None:
        self._change("settle", lambda head: head.settle())
        database, anchor = self._working(), self._anchor
        row = database.execute(
            "SELECT max(coalesce((SELECT max(number) FROM snapshot), 0), "
            "coalesce((SELECT max(key) FROM piece), 0) >> ?) + 1",
            (SHIFT,),
        ).fetchone()
        fold = SnapshotWriter(row[0], anchor.seq, anchor.digest, self._head.state())
        with transaction(database):
            fold.begin(database)
        self._folded = 0
        self._fold = fold

    def _go_on(self, fold: SnapshotWriter, size: int) -> None:
        pieces = max(1, math.ceil(HASTE * size / PIECE_BYTES))
        self._fold = None  # unless all goes well: what is in the writer and in the file would differ
        self._begin_session()
        with transaction(self._working()):
            done = fold.write(self._working(), pieces)
        self._wal_bytes += pieces * (PIECE_BYTES + PAGE_BYTES)
        if done:
            self._since, self._due = self._folded, 0
            self._unpruned = True
        else:
            self._fold = fold

    def _tidy(self) -> None:
        """Delete some of what is not needed any more."""
        self._begin_session()
        archive, database = self._archive(), self._working()
        with transaction(database):
            if self._unpruned:
                for number in self._bad:
                    database.execute("DELETE FROM snapshot WHERE number = ?", (number,))
                database.execute("DELETE FROM snapshot WHERE digest IS NULL")
                prune(database, archive, self._anchor.seq, self._rollbacks, self._retention)
            more = sweep(database, archive)
        self._unpruned, self._unswept, self._bad = False, more, []


def _release_all() -> None:
    for owner in list(_OWNERS):
        owner._lock.release()


_OWNERS: weakref.WeakSet[Owner] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # a child that lives on does not hold what its parent leaves
    os.register_at_fork(after_in_child=_release_all)
