"""The one process that learns."""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import StateError
from everlearn_runtime.heads import Head, Judgement
from everlearn_runtime.ledger import DIGEST, Mark
from everlearn_runtime.state.adapted import Adapters, joined, pack_adapted, unpack_adapted
from everlearn_runtime.state.anchor import Anchor, check_companion, check_kind, new_anchor, read_alone
from everlearn_runtime.state.archive import ENTRY_BYTES, Archive, Built, lineage
from everlearn_runtime.state.copies import Backup, clear_leftovers, start_file
from everlearn_runtime.state.database import (
    SCHEMA,
    content_errors,
    damaged,
    sqlite_errors,
    transaction,
    undo_unfinished,
)
from everlearn_runtime.state.file import StateFile
from everlearn_runtime.state.folding import Folding
from everlearn_runtime.state.journal import Event, digest, form_of, learn, now, pack
from everlearn_runtime.state.kept import delete_kept, kept_place, kept_with
from everlearn_runtime.state.looking import Looking
from everlearn_runtime.state.samples import samples_after
from everlearn_runtime.state.schema1 import merge_wal, read_schema1
from everlearn_runtime.state.versions import Version
from everlearn_runtime.state.view import view

Result = TypeVar("Result")

RETENTION = 64 << 20


class Past(NamedTuple):
    """An earlier version, and what came of it.

    Attributes:
        begin: The earlier version.
        end: The one that there is now.
        head: What was known then.
        forgotten: Classes that were forgotten after it, and not by what was taken back.
    """

    begin: Mark
    end: Mark
    head: Head
    forgotten: tuple[str, ...]

    def gone(self, now: Head) -> tuple[str, ...]:
        """Classes that were forgotten since, by the journal or by what is known now."""
        kept = now.kept(self.head, self.forgotten)
        return tuple(dict.fromkeys([*self.forgotten, *(c for c in self.head.classes if c not in kept)]))


class Owner(Looking):
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
        self._model = model
        self._base = base
        self._pid = os.getpid()
        self._anchor = new_anchor(model)
        self._head: Head
        self._adapters = None
        self._rollbacks: dict[int, int] = {}
        self._sure = False
        self._folding = Folding(retention)
        self._backups: weakref.WeakSet[Backup] = weakref.WeakSet()
        file: StateFile | None = None
        try:
            self._file = file = StateFile(path, durable)
            self.path = file.path
            self._open(bundle)
        except BaseException:
            if file is not None:
                self.close()
            raise

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

    @property
    def version(self) -> int:
        """The number of the last change."""
        if not self._sure:
            self._rebuild()
        return self._anchor.version

    @property
    def device(self) -> str:
        """The device's number, 16 hex digits; a backup and a migrated state go on with it."""
        return self._anchor.device.hex()

    def since(self, version: int | None, mark: Mark | None = None) -> Past:
        """What lies between an earlier version and now.

        Args:
            version: The earlier one; None: the bundle's own head, which is version 0 or ``mark``.
            mark: Of the device's versions the last one that the bundle's own head holds already.

        Raises:
            ValueError: The version cannot be reached, a rollback has gone back to before it, or the adapters
                are not the bundle's own.
            StateError: Entries are damaged.
        """
        if self.use(lambda head: self._adapters) is not None:
            raise ValueError(
                "the adapters were trained on this device, and features under those do not add up with the "
                "bundle's; roll back to before adapt"
            )
        with sqlite_errors(self.path), content_errors(self.path):
            archive = self._archive()
            events, runs = archive.events(), list(lineage(self._anchor.seq, self._rollbacks))
        if version is None:
            floor, begin, head = 0, mark or Mark(0, ""), self._base()
        else:
            floor = self._seq_of(events, version)
            if not any(start - 1 <= floor <= end for start, end in runs):
                raise ValueError(f"version {version} was taken back by a rollback; give an earlier one")
            with sqlite_errors(self.path), content_errors(self.path):
                begin = Mark(version, archive.digest(floor).hex()[: 2 * DIGEST] if version else "")
                head = archive.build(floor, self._rollbacks).head
        own = [
            event for seq, event in events if seq > floor and any(start <= seq <= end for start, end in runs)
        ]
        forgotten = dict.fromkeys(event.labels[0] for event in own if event.kind == "forget")
        now = Mark(self._anchor.version, self._anchor.digest.hex()[: 2 * DIGEST])
        return Past(begin, now, head, tuple(forgotten))

    def samples(self, version: int | None) -> dict[str, NDArray[np.float64]]:
        """Features (n, F) of the samples of each class that came after an earlier version and were neither
        taken back nor forgotten, as far as the journal still has them.

        Args:
            version: The earlier one; None: the bundle's own head. It is one that :meth:`since` takes.

        Raises:
            ValueError: The version cannot be reached.
            StateError: Entries are damaged.
        """
        with sqlite_errors(self.path), content_errors(self.path):
            archive = self._archive()
            events = archive.events()
        floor = 0 if version is None else self._seq_of(events, version)
        with sqlite_errors(self.path), content_errors(self.path):
            return samples_after(archive, floor, self._anchor.seq, self._rollbacks, self._head)

    def history(self) -> list[Version]:
        """The versions that can be gone back to, oldest first."""
        with sqlite_errors(self.path), content_errors(self.path):
            return [event.told() for _, event in self._archive().events()]

    # What changes it.

    def learn(
        self,
        features: NDArray[np.floating[Any]],
        labels: Sequence[str],
        judgement: Judgement | None = None,
    ) -> Version:
        """Learn features that the head has checked.

        Args:
            features: float32 or float64 (B, F); kept to the bit.
            labels: B class names.
            judgement: What the head said of them, if it was asked.

        Raises:
            StateError: It could not be written; the state is as it was.
        """
        says, data = pack(features, labels, judgement)
        self._tend(len(data))
        return self._change("learn", lambda head: learn(head, features, labels, judgement), data, **says)

    def forget(self, label: str) -> Version:
        """Drop a class that the head knows; raises like :meth:`learn`."""
        self._tend(0)
        samples = self.use(lambda head: int(head.counts[head.classes.index(label)]))
        form = form_of(self.head, label)
        return self._change(
            "forget", lambda head: head.remove(label), labels=(label,), samples=samples, form=form
        )

    def adapt(self, head: Head, adapters: Adapters, labels: Sequence[str]) -> Version:
        """Go on with other adapters, and the head that goes with them.

        Args:
            head: Of its own, which nobody else looks at.
            adapters: All of them.
            labels: A class for each image that they were trained on.

        Raises:
            StateError: It could not be written; the state is as it was.
        """
        says, data = pack_adapted(head, adapters)
        head, adapters = unpack_adapted(says["head"], data)  # as whoever reads it finds them
        self._tend(len(data))
        return self._change("adapt", Built(head, adapters=adapters), data, labels=tuple(labels), **says)

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
        seq = self._seq_of(events, to)
        with sqlite_errors(self.path), content_errors(self.path):
            built = archive.build(seq, self._rollbacks)
        return self._change("rollback", built, to=to, seq=seq, since=built.since)

    def undo(self) -> Version:
        """Take back the last change that has not been taken back; raises like :meth:`rollback`."""
        with sqlite_errors(self.path), content_errors(self.path):
            before = self._before_last_change()
        if before is None:
            raise ValueError("there is nothing left to undo")
        return self.rollback(before)

    def purge(self, label: str) -> Version:
        """Forget a class, and the history in which its name or features could stand.

        The file is written anew, with the head as it is without the class and nothing else. States
        kept beside it by :meth:`migrate` that name the class are deleted, before the new one is
        in its place: a process that dies between can purge again.

        Raises:
            ValueError: Neither the head nor the history knows the class.
            StateError: It could not be written; the state is as it was.
        """
        head = self.head
        kept = kept_with(self.path, label)
        if label not in head.classes and not kept and not self._archive().mentions(label):
            known = ", ".join(map(repr, head.classes)) or "none"
            raise ValueError(f"no class {label!r} to forget, nor one in the history; known classes: {known}")
        for job in self._backups:
            job.discard()
        form = form_of(head, label) if label in head.classes else ""
        self._sure = False
        if label in head.classes:
            head.remove(label)
        head.settle()
        adapters = self._adapters
        event = Event("purge", self._anchor.version + 1, now(), form=form)
        self._file.close(clean=bool(self._anchor.clean))
        anchor = self._new_anchor(self._anchor.seq + 1)
        new = start_file(self.path, anchor, event, lambda: joined(head.state(), adapters))
        try:
            for path in kept:
                delete_kept(path)
        except BaseException:
            new.discard()
            raise
        self._file.put(new)
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
        anchor = replace(new_anchor(model, self._anchor.device), seq=self._anchor.seq + 1)
        self._sure = False
        self._file.close(clean=bool(self._anchor.clean))
        self._file.put(start_file(self.path, anchor, event, head.state))
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
        job = Backup(self._file.database, self._anchor, self.path, Path(os.path.realpath(path)))
        self._backups.add(job)
        return job

    def close(self) -> None:
        """Give the file back; a forked child leaves it alone. It must not be used afterwards."""
        if os.getpid() != self._pid:
            return
        try:
            self._close()
        except BaseException:  # interrupted; the file shall be whole all the same
            self._close()
            raise
        finally:
            try:
                self._file.release()
            except BaseException:  # likewise, and free for the next one
                self._file.release()
                raise

    # How.

    def _close(self) -> None:
        clean = self._sure and bool(self._anchor.clean)  # after an interrupt the file may say something else
        with suppress(StateError):  # all is safe in the WAL, which the next one to open the file moves
            self._file.close(clean)

    def _seq_of(self, events: list[tuple[int, Event]], version: int) -> int:
        """The last entry of a version, or a ValueError if it cannot be reached."""
        for seq, event in events:
            if event.version == version:
                return seq
        first, last = events[0][1].version, events[-1][1].version
        raise ValueError(f"version {version!r} cannot be gone back to; from {first} to {last} can")

    def _keep_copy(self) -> Path:
        """Copy the state beside its place, unless that was done before."""
        self._archive()
        path = kept_place(self.path, self._anchor.digest)
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
                if archive.event(seq).kind in ("learn", "forget", "adapt"):
                    return archive.event(seq - 1).version
        return None

    def _open(self, bundle: str) -> None:
        clear_leftovers(self.path)
        if self._file.empty:
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
                self._load(self._through(readable))
            else:
                old = read_schema1(readable, self.path, bundle)
        if schema != SCHEMA:
            merge_wal(self.path)
            # Not entry 1, which would follow the bundle's own head.
            self._file.put(start_file(self.path, self._new_anchor(2), Event("start", 0, now()), old.state))
            self._rebuild()
            return
        self._file.connect()
        if not self._anchor.clean:  # its process died
            with suppress(StateError):  # on a full disk one can still predict
                self._file.mark_clean()
                self._anchor = replace(self._anchor, clean=1)
        self._sure = True

    def _create(self) -> None:
        if self._file.companion.exists():
            raise StateError(
                f"{self._file.companion} lies beside a state that is not there; put the file back, or "
                "delete the companion to start anew"
            )
        self._file.put(start_file(self.path, self._new_anchor(1), Event("start", 0, now()), None))

    def _new_anchor(self, seq: int) -> Anchor:
        return replace(new_anchor(self._model, self._anchor.device), seq=seq)

    def _load(self, archive: Archive) -> None:
        """Build the head from the file, and go on with a snapshot that was under way."""
        anchor, rollbacks, unfinished = archive.anchor(), archive.rollbacks(), archive.unfinished()
        built = archive.build(anchor.seq, rollbacks, unfinished and unfinished[1])
        self._folding.restart(archive.database, built, unfinished)
        self._anchor, self._rollbacks = anchor, rollbacks
        self._head, self._adapters = built.head, built.adapters

    def _rebuild(self) -> None:
        """Build the head anew, after something was raised in the middle of a call."""
        with sqlite_errors(self.path), content_errors(self.path):
            self._file.connect()
            undo_unfinished(self._file.database)
            self._load(self._through(self._file.database))
        self._sure = True

    def _archive(self) -> Archive:
        """What reads the file, outside of transactions."""
        if not self._sure:
            self._rebuild()
        undo_unfinished(self._file.database)
        return self._through(self._file.database)

    def _through(self, database: sqlite3.Connection) -> Archive:
        """What reads the file through a connection, as it is."""
        return Archive(database, self.path, self._model, self._base)

    def _begin_session(self) -> None:
        """Before anything is written: the file is the one that is known, and says that it needs its WAL."""
        self._file.check_place()
        self._sure = False
        self._anchor = self._file.begin_session(self._anchor)
        self._sure = True

    def _change(
        self,
        kind: str,
        change: Callable[[Head], None] | Built,
        features: bytes = b"",
        since: int | None = None,
        **says: Any,
    ) -> Version:
        """Write an entry and change the head, both or neither.

        Args:
            kind: Of the event.
            change: Changes the head that it is given; or what takes its place.
            features: Of the event.
            since: Bytes that are replayed to this head; None: this entry's more than before.
            says: The rest of the event.
        """
        head, adapters = self.head, self._adapters
        self._begin_session()
        anchor, database = self._anchor, self._file.database
        version = anchor.version + (kind != "settle")
        event = Event(kind, version, now(), **says)
        text = event.to_json()
        size = len(text) + len(features) + ENTRY_BYTES
        with sqlite_errors(self.path), transaction(database):
            seq, total = anchor.seq + 1, self._through(database).total(anchor.seq) + size
            chain = digest(anchor.digest, seq, total, text, features)
            database.execute(
                "INSERT INTO journal VALUES (?, ?, ?, ?, ?)", (seq, total, chain, text, features)
            )
            after = replace(anchor, seq=seq, version=version, digest=chain)
            after.write(database)
            self._sure = False
            if isinstance(change, Built):
                head, adapters = change.head, change.adapters
            else:
                change(head)
        self._anchor = after
        self._head, self._adapters = head, adapters
        if kind == "rollback":
            self._rollbacks[seq] = event.seq
        self._folding.grew(size)
        if since is not None:
            self._folding.went_back(since)
        self._file.wrote(size)
        self._sure = True
        return event.told()

    def _tend(self, size: int) -> None:
        """Before a change of so many bytes, do a part of what is to be done; failing is no harm."""
        archive, folding = self._archive(), self._folding
        try:
            with sqlite_errors(self.path):
                if folding.due(self._head):
                    self._change("settle", lambda head: head.settle())
                    folding.begin(archive.database, joined(self._head.state(), self._adapters), self._anchor)
                else:
                    self._begin_session()
                    if written := folding.go_on(archive.database, size):
                        self._file.wrote(written)
                    if all(job.done for job in self._backups):
                        folding.tidy(archive.database, archive, self._anchor.seq, self._rollbacks)
                self._file.move_wal()
        except (StateError, MemoryError):
            folding.give_up(self._head)
