"""New state files: written beside their place, whole on the disk before they are put there."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from everlearn_runtime.errors import StateError
from everlearn_runtime.files import sync_folder
from everlearn_runtime.heads import HeadState
from everlearn_runtime.state.anchor import Anchor, new_id
from everlearn_runtime.state.database import (
    PAGE_BYTES,
    Connection,
    checkpoint,
    connect,
    create_tables,
    prepare,
    rows,
    sqlite_errors,
    transaction,
)
from everlearn_runtime.state.journal import Event, digest
from everlearn_runtime.state.lock import FileLock
from everlearn_runtime.state.snapshots import SHIFT, SnapshotWriter
from everlearn_runtime.state.view import companion, os_errors

MARK = "-new-"  # between the name of a file and what makes the one beside it another
ROWS = 64  # a transaction, and a step


class NewFile:
    """A state file that is being written, beside its place under a name of its own.

    Args:
        path: Its place.
        like: The file whose rights it gets, where that is there: who could not read that cannot read this.

    Raises:
        StateError: The disk does not let it.
    """

    def __init__(self, path: Path, like: Path) -> None:
        self.path = path
        self._like = like
        self._beside = path.with_name(f"{path.name}{MARK}{os.urandom(8).hex()}")
        self._lock: FileLock | None = None
        self._database: Connection | None = None
        with sqlite_errors(path):
            try:
                self._begin()
            except BaseException:
                self.discard()
                raise

    def _begin(self) -> None:
        try:
            self._lock = FileLock(self._beside, create=True)
            _same_rights(self._lock.fileno(), self._like)
        except OSError as error:
            raise StateError(f"{self.path}: {error.strerror}; check the space and the permissions") from error
        self._database = connect(self._beside, "rw")
        self._database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        prepare(self._database, durable=False)
        self._database.execute("PRAGMA synchronous = OFF")  # all of it in the end
        with transaction(self._database):
            create_tables(self._database)

    @property
    def lock(self) -> FileLock:
        """The lock on it, which goes with it to its place."""
        assert self._lock is not None
        return self._lock

    @property
    def database(self) -> Connection:
        """What writes it."""
        assert self._database is not None
        return self._database

    def finish(self, anchor: Anchor) -> None:
        """Write the anchor; then the file is whole, and on the disk.

        Raises:
            StateError: There is no room.
        """
        with sqlite_errors(self.path):
            with transaction(self.database):
                self.database.execute("INSERT INTO anchor (seq) VALUES (0)")
                replace(anchor, clean=1).write(self.database)
            self.database.close()
        os.fsync(self.lock.fileno())

    def place(self) -> None:
        """Put it into its place, with the lock on it."""
        os.replace(self._beside, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._database is not None:
            self._database.close()
        with suppress(OSError):  # then the next one who opens the state does it, see `clear_leftovers`
            companion(self._beside).unlink(missing_ok=True)
            self._beside.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()


def clear_leftovers(path: Path) -> None:
    """Delete what writers that died have left beside this place."""
    # Nothing less: "device.db-new-york" is somebody's state.
    name = re.compile(f"({re.escape(path.name + MARK)}[0-9a-f]{{16}})(-wal|-journal)?")
    with suppress(OSError):
        matches = (name.fullmatch(beside.name) for beside in path.parent.iterdir())
        for beside in {path.with_name(match[1]) for match in matches if match}:
            with suppress(StateError, OSError):  # of one that lives, or of somebody else
                lock = FileLock(beside, create=True)
                try:
                    for ending in ("-wal", "-journal", ""):
                        Path(f"{beside}{ending}").unlink(missing_ok=True)
                finally:
                    lock.release()


def _same_rights(file: int, like: Path) -> None:
    """Give an open file the rights of another, and its owner where that is allowed."""
    try:
        known = os.stat(like)
    except FileNotFoundError:
        return
    if hasattr(os, "fchown"):  # and so fchmod; where there are none, rights are the folder's
        with suppress(OSError):  # of a file system without any, or an owner that is another
            os.fchmod(file, stat.S_IMODE(known.st_mode) & 0o777)
            os.fchown(file, known.st_uid, known.st_gid)


def start_file(path: Path, anchor: Anchor, event: Event, state: Callable[[], HeadState] | None) -> NewFile:
    """Write a state file that begins with one event.

    Args:
        path: Its place.
        anchor: Names the file; ``seq`` is the event's.
        event: "start", "purge" or "migrate".
        state: Makes what is known after it, with a settled head; None: the bundle's own head.

    Returns:
        The file, whole, to be put into its place.

    Raises:
        StateError: It could not be written; nothing is left of it.
    """
    text = event.to_json()
    total = len(text)
    chain = digest(b"", anchor.seq, total, text, b"")
    file = NewFile(path, like=path)
    try:
        with sqlite_errors(path):
            with transaction(file.database):
                file.database.execute(
                    "INSERT INTO journal VALUES (?, ?, ?, ?, ?)", (anchor.seq, total, chain, text, b"")
                )
            if state is not None:
                writer = SnapshotWriter(1, anchor.seq, chain, state())
                with transaction(file.database):
                    writer.begin(file.database)
                done = False
                while not done:
                    with transaction(file.database):
                        done = writer.write(file.database, ROWS)
                    checkpoint(file.database)
        file.finish(replace(anchor, version=event.version, digest=chain))
    except BaseException:
        file.discard()
        raise
    return file


class Backup:
    """A copy of a state as it is now, made in steps between which it goes on being changed.

    Entries and snapshots do not change once they are written; the owner deletes none while a
    backup of it is under way.

    Args:
        database: A connection to the state.
        anchor: Where it ends now.
        of: The state's own file.
        path: The copy's place; nothing may be there.

    Raises:
        ValueError: Something is there, or no folder for it.
        StateError: It cannot be written.
    """

    def __init__(self, database: sqlite3.Connection, anchor: Anchor, of: Path, path: Path) -> None:
        with os_errors(path):
            for there in (path, companion(path)):  # a WAL that lies there would be taken for the copy's
                if there.exists() or there.is_symlink():
                    raise ValueError(f"{there} exists; give another path for the backup")
            if not path.parent.is_dir():
                raise ValueError(f"{path}: no such folder as {path.parent}; make it first")
        self._database = database
        self._anchor = replace(anchor, id=new_id(anchor.device))
        self._whole = [
            number for (number,) in rows(database, "SELECT number FROM snapshot WHERE digest IS NOT NULL")
        ]
        clear_leftovers(path)
        self._file = NewFile(path, like=of)
        self._seq = -1
        self._key = -1
        self.done = False

    def step(self) -> bool:
        """Copy some more. Returns whether the copy is whole and in its place.

        Raises:
            StateError: It cannot be written, or the state was purged; nothing is left of it.
        """
        if self.done:
            raise StateError(f"{self._file.path} was not written: the state was purged while it was copied")
        try:
            with sqlite_errors(self._file.path):
                with transaction(self._file.database):
                    more = self._journal() or self._pieces()
                    if not more:
                        self._snapshots()
                checkpoint(self._file.database)
            if not more:
                self._file.finish(self._anchor)
                self._file.place()
                self._file.lock.release()
                self.done = True
        except BaseException:
            self.discard()
            raise
        return self.done

    def discard(self) -> None:
        """Leave nothing of it."""
        if not self.done:
            self.done = True
            self._file.discard()

    def _journal(self) -> bool:
        entries = rows(
            self._database,
            "SELECT * FROM journal WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
            self._seq,
            self._anchor.seq,
            ROWS,
        )
        if entries:
            self._seq = entries[-1][0]
            self._file.database.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?)", entries)
        return bool(entries)

    def _pieces(self) -> bool:
        pieces = rows(
            self._database, "SELECT key, data FROM piece WHERE key > ? ORDER BY key LIMIT ?", self._key, ROWS
        )
        if pieces:
            self._key = pieces[-1][0]
            own = [piece for piece in pieces if piece[0] >> SHIFT in self._whole]
            self._file.database.executemany("INSERT INTO piece VALUES (?, ?)", own)
        return bool(pieces)

    def _snapshots(self) -> None:
        for number in self._whole:
            row = self._database.execute("SELECT * FROM snapshot WHERE number = ?", (number,)).fetchone()
            self._file.database.execute("INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?)", row)
