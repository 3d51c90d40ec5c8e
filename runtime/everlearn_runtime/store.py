"""What a device has learned, in one SQLite file.

Every call that changes the head is first written to a journal, in one transaction: features and
labels of a ``learn``, the label of a ``forget``; never an image. Once the journal is long it is
folded into a snapshot of the head and emptied, so the file stays bounded. Reading the snapshot
and replaying the journal gives the same head to the bit.

A process that dies at any point leaves the state before or after a call, never between. With
``durable=False`` (SQLite's WAL with synchronous=NORMAL) a crash of the process loses nothing; a
power failure may lose the last calls, but not the file. ``durable=True`` (synchronous=FULL) brings
every call to the disk before it returns. While in use the file has a ``-wal`` companion, which
belongs to it: copy both or, better, close first.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.bundle import dump_arrays, load_arrays
from everlearn_runtime.errors import StateError
from everlearn_runtime.heads import Head, HeadState, from_state

SCHEMA = 1
APPLICATION = 0x45564C4E  # "EVLN", in the header of every state file
FOLD_EVENTS = 256
FOLD_BYTES = 8 << 20


class Store:
    """A state file, held exclusively from :meth:`open` to :meth:`close`.

    Make one with :meth:`open`. It does not lock between threads; its owner does.
    """

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self._database = database
        self._events = 0
        self._bytes = 0

    @classmethod
    def open(cls, path: str | Path, *, bundle: str, head: Head, durable: bool = False) -> tuple[Store, Head]:
        """Open a state file, or start one.

        Args:
            path: The file; its folder must exist.
            bundle: Id of the bundle that the state belongs to.
            head: The bundle's own head, from which a new state starts.
            durable: Survive power failures, not only crashes, at the price of a disk sync a call.

        Returns:
            The store, and the head as the last process left it.

        Raises:
            StateError: The file is damaged, no state file, from a newer version, in use, or
                belongs to another bundle. It is left as it was.
        """
        file = Path(path)
        if file.is_dir() or not file.parent.is_dir():
            raise StateError(f"{file}: a state is one file in a folder that exists")
        with _sqlite_errors(file):
            database = sqlite3.connect(str(file), timeout=0, isolation_level=None, check_same_thread=False)
        store = cls(file, database)
        try:
            with _sqlite_errors(file):
                store._prepare(bundle, head, durable)
                return store, store._load(bundle)
        except BaseException:
            database.close()
            raise

    def learn(self, features: NDArray[np.floating[Any]], labels: Sequence[str]) -> None:
        """Write a ``learn`` to the journal.

        Args:
            features: float32 or float64 (B, F); kept to the bit.
            labels: B class names.

        Raises:
            StateError: It could not be written; the state is as it was.
        """
        dtype = features.dtype.newbyteorder("<")
        event = {"learn": list(labels), "dtype": dtype.str, "width": features.shape[1]}
        self._append(event, np.ascontiguousarray(features, dtype=dtype).tobytes())

    def forget(self, label: str) -> None:
        """Write a ``forget`` to the journal; raises like :meth:`learn`."""
        self._append({"forget": label}, b"")

    @property
    def due(self) -> bool:
        """Whether the journal is so long that it should be folded."""
        return self._events >= FOLD_EVENTS or self._bytes >= FOLD_BYTES

    def fold(self, head: Head) -> Head:
        """Replace snapshot and journal by a snapshot of this head.

        Args:
            head: The state as it is with the whole journal.

        Returns:
            The head to go on with: equal to the one given, and to the bit what a new process
            would read.

        Raises:
            StateError: It could not be written; the state is as it was.
        """
        state = head.state()
        with _sqlite_errors(self.path), self._transaction():
            last = self._database.execute("SELECT coalesce(max(seq), 0) FROM journal").fetchone()[0]
            seq = last or self._database.execute("SELECT seq FROM snapshot").fetchone()[0]
            self._write_snapshot(state, seq)
            self._database.execute("DELETE FROM journal")
        self._events = self._bytes = 0
        return from_state(state)

    def close(self) -> None:
        """Give the file back. It must not be used afterwards."""
        self._database.close()

    def _prepare(self, bundle: str, head: Head, durable: bool) -> None:
        execute = self._database.execute
        application = execute("PRAGMA application_id").fetchone()[0]
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        schema = execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION and (application or tables or schema):
            raise StateError(f"{self.path} is some other SQLite database; give another file for the state")
        if schema > SCHEMA:
            raise StateError(
                f"{self.path} has schema {schema}, this version reads up to {SCHEMA}: "
                "pip install --upgrade everlearn"
            )
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        execute(f"PRAGMA journal_size_limit = {FOLD_BYTES}")
        with self._transaction():
            if not application:
                execute(f"PRAGMA application_id = {APPLICATION}")
                execute(f"PRAGMA user_version = {SCHEMA}")
                execute(
                    "CREATE TABLE snapshot (bundle TEXT, seq INTEGER, head TEXT, arrays BLOB, sha256 TEXT)"
                )
                execute(
                    "CREATE TABLE journal (seq INTEGER PRIMARY KEY, event TEXT, features BLOB, sha256 TEXT)"
                )
                execute("INSERT INTO snapshot (bundle) VALUES (?)", (bundle,))
                self._write_snapshot(head.state(), 0)

    def _load(self, bundle: str) -> Head:
        execute = self._database.execute
        if (verdict := execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise StateError(
                f"{self.path} is damaged ({verdict}); restore a copy, or delete it to start again"
            )
        rows = execute("SELECT bundle, seq, head, arrays, sha256 FROM snapshot").fetchall()
        if len(rows) != 1:
            raise self._damaged(f"{len(rows)} snapshots")
        owner, seq, text, blob, digest = rows[0]
        if owner != bundle:
            raise StateError(
                f"{self.path} belongs to another bundle ({str(owner)[:12]}..., not {bundle[:12]}...); "
                "open it with that one, or give a new file to start from this one"
            )
        if digest != _digest(seq, text, blob):
            raise self._damaged("the snapshot does not match its checksum")
        try:
            data = json.loads(text)
            head = from_state(
                HeadState(data["kind"], tuple(data["classes"]), data["options"], load_arrays(blob))
            )
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(str(error)) from None
        for number, text, blob, digest in execute(
            "SELECT seq, event, features, sha256 FROM journal ORDER BY seq"
        ):
            seq += 1
            if number != seq or digest != _digest(number, text, blob):
                raise self._damaged(f"journal entry {seq} is missing or does not match its checksum")
            replay(head, json.loads(text), blob)
            self._count(blob)
        return head

    def _append(self, event: dict[str, Any], blob: bytes) -> None:
        text = json.dumps(event)
        with _sqlite_errors(self.path), self._transaction():
            seq = self._database.execute(
                "SELECT max((SELECT seq FROM snapshot), (SELECT coalesce(max(seq), 0) FROM journal)) + 1"
            ).fetchone()[0]
            self._database.execute(
                "INSERT INTO journal VALUES (?, ?, ?, ?)", (seq, text, blob, _digest(seq, text, blob))
            )
        self._count(blob)

    def _count(self, blob: bytes) -> None:
        self._events += 1
        self._bytes += len(blob)

    def _write_snapshot(self, state: HeadState, seq: int) -> None:
        text = json.dumps({"kind": state.kind, "classes": state.classes, "options": state.options})
        blob = dump_arrays(state.arrays)
        self._database.execute(
            "UPDATE snapshot SET seq = ?, head = ?, arrays = ?, sha256 = ?",
            (seq, text, blob, _digest(seq, text, blob)),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN EXCLUSIVE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            # A full disk may already have ended the transaction.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _damaged(self, what: str) -> StateError:
        return StateError(f"{self.path} is damaged: {what}; restore a copy, or delete it to start again")


def replay(head: Head, event: dict[str, Any], features: bytes) -> None:
    """Do to a head what a journal entry says."""
    if "forget" in event:
        head.remove(event["forget"])
    else:
        rows = np.frombuffer(features, dtype=event["dtype"]).reshape(-1, event["width"])
        head.update(rows, event["learn"])


def _digest(seq: object, text: object, blob: object) -> str:
    """The checksum of a row; "" for a row that is no such row any more."""
    if not isinstance(text, str) or not isinstance(blob, bytes):
        return ""
    digest = hashlib.sha256(f"{seq}\n{text}\n".encode())
    digest.update(blob)
    return digest.hexdigest()


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    """SQLite's errors, as a StateError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text:
            raise StateError(
                f"{path} is in use by another process or learner; close that one first"
            ) from error
        if any(word in text for word in ("full", "readonly", "unable to open", "I/O")):
            raise StateError(f"{path}: {text}; check the free space and the permissions") from error
        raise StateError(
            f"{path} is damaged or no state file ({text}); restore a copy, or give another file"
        ) from error
