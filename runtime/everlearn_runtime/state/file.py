"""A state file in the hands of its one owner: its lock, its connection, and its WAL."""

from __future__ import annotations

import os
import sqlite3
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from everlearn_runtime.errors import StateError
from everlearn_runtime.state.anchor import Anchor
from everlearn_runtime.state.copies import NewFile
from everlearn_runtime.state.database import (
    PAGE_BYTES,
    WAL_BYTES,
    Connection,
    checkpoint,
    connect,
    is_closed,
    prepare,
    sqlite_errors,
    transaction,
    undo_unfinished,
)
from everlearn_runtime.state.lock import FileLock
from everlearn_runtime.state.view import companion, os_errors

# The WAL goes into the file when it has about this much, or, where somebody always reads, so many
# times as much.
CHECKPOINT_BYTES = 8 << 20
PATIENCE = 4
# Where a file says which one it is, and how far it goes: its header and the anchor.
START_BYTES = 2 * PAGE_BYTES


class StateFile:
    """Locks a file, and opens it.

    A session goes from the first change to the close. While it lasts the file itself says that it is not
    whole without its WAL.

    Args:
        path: The file, made if it is not there; its folder must exist.
        durable: Bring every change to the disk.

    Raises:
        StateError: It is in use, or cannot be written.
    """

    def __init__(self, path: str | Path, durable: bool) -> None:
        if str(path) == ":memory:":
            raise StateError("':memory:' would keep nothing; give a file, or state=None")
        self.path = Path(os.path.realpath(path))
        self.companion = companion(self.path)
        with os_errors(self.path):
            self.companion.exists()  # or its name is too long
            if not self.path.parent.is_dir() or (self.path.exists() and not self.path.is_file()):
                raise StateError(f"{path}: a state is one ordinary file in a folder that exists")
        self._durable = durable
        self._database: Connection | None = None
        self._wal: os.stat_result
        self._wal_size = 0
        self._start: tuple[int, bytes] | None = None  # what the file itself must still be; None: as it is now
        self._wal_bytes = 0
        self._prepared = False
        self._session = False
        _FILES.add(self)
        self._next_lock = self._lock = _take(self.path)  # last, for nobody could give it up but itself

    @property
    def database(self) -> sqlite3.Connection:
        """The connection, outside of transactions that an interrupt has left open."""
        assert self._database is not None
        return self._database

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it yet."""
        return os.fstat(self._lock.fileno()).st_size == 0

    def connect(self) -> None:
        """Open what is at the path, unless it is open; also after a replacement that was interrupted."""
        if self._prepared:
            return
        if not self._lock.holds(self.path):
            self._lock.release()
            self._lock = self._next_lock
        with sqlite_errors(self.path):
            # Never a second connection beside one that is open: when it closes, it takes the WAL along.
            if self._database is None or is_closed(self._database):
                self._database = connect(self.path, "rw")
            prepare(self._database, self._durable)
            self._wal = os.stat(self.companion)
        self._start, self._wal_size = self._lock.start(START_BYTES), self._wal.st_size
        self._session = False
        self._prepared = True

    def put(self, file: NewFile) -> None:
        """Put a new file into the place of this one, which is closed."""
        self._next_lock = file.lock  # so that it is known which one is held, wherever an interrupt comes
        file.place()
        self._lock.release()
        self._lock = file.lock

    def begin_session(self, anchor: Anchor) -> Anchor:
        """Before a change: see that the file says that it is not whole without its WAL.

        Args:
            anchor: As it is in the file.

        Returns:
            As it is now.

        Raises:
            StateError: It could not be written.
        """
        if self._session and not anchor.clean:
            return anchor
        with sqlite_errors(self.path):
            if anchor.clean:
                anchor = replace(anchor, epoch=os.urandom(16), previous=anchor.epoch, clean=0)
                with transaction(self.database):
                    anchor.write(self.database)
            self._checkpoint()
        self._session = True
        return anchor

    def mark_clean(self) -> None:
        """Say in the file itself that it is whole without a WAL, and make it so.

        Raises:
            StateError: There is no room.
        """
        with sqlite_errors(self.path):
            undo_unfinished(self.database)
            self._checkpoint()  # so that what follows needs no more room
            with transaction(self.database):
                self.database.execute("UPDATE anchor SET clean = 1")
            self._checkpoint()

    def check_place(self) -> None:
        """That file and WAL are still where they were, and what they were; what is written elsewhere is lost.

        Raises:
            StateError: They are not.
        """
        try:
            wal = os.stat(self.companion)
            same = os.path.samestat(self._wal, wal) and self._lock.holds(self.path)
            size, start = self._lock.start(START_BYTES) if same else (0, b"")
        except OSError:
            same = False
        if not same:
            raise StateError(
                f"{self.path} or its companion {self.companion.name} was moved, replaced or deleted "
                "while in use; put it back, or open the learner again"
            )
        # A WAL that was longer SQLite cuts to so much; the file itself never gets shorter.
        known = self._start or (size, start)
        if wal.st_size < min(self._wal_size, WAL_BYTES) or size < known[0] or start != known[1]:
            raise StateError(
                f"{self.path} or its companion {self.companion.name} was cut short or written over while in "
                "use; close the learner, and put a copy in its place"
            )
        self._start, self._wal_size = known, wal.st_size

    def _checkpoint(self) -> None:
        """Move the WAL into the file, and note how that begins from then on."""
        self._start = None
        checkpoint(self.database)
        self._start = self._lock.start(START_BYTES)

    def wrote(self, size: int) -> None:
        """Note a transaction of so many bytes in the WAL; readers may come in again."""
        self._wal_bytes += size + 3 * PAGE_BYTES
        with suppress(OSError):  # gone: the next change will say so
            self._wal_size = os.stat(self.companion).st_size
        self._lock.let_read()

    def move_wal(self) -> None:
        """Move the WAL into the file if it is long and nobody reads; a change must follow at once.

        That change begins the WAL anew, over what a reader may still look at.
        """
        if self._wal_bytes <= CHECKPOINT_BYTES:
            return
        if self._lock.try_alone() or self._wal_bytes > PATIENCE * CHECKPOINT_BYTES:
            self._wal_bytes = CHECKPOINT_BYTES // 2  # when to try again, if it fails
            self._checkpoint()
            self._wal_bytes = 0

    def close(self, clean: bool) -> None:
        """Close it, whole without a WAL.

        Args:
            clean: It says that it is already.

        Raises:
            StateError: There is no room to say so; then it is left as after a crash.
        """
        self._prepared = False
        if self._database is None or is_closed(self._database):
            return
        try:
            if not clean:
                self.mark_clean()
        except StateError:
            self._database = None  # closing it would delete a WAL that the file says it needs
            raise
        self._database.close()

    def release(self) -> None:
        """Give the lock up, and what could not be closed: it stays as it is after a crash."""
        self._database = None
        if hasattr(self, "_lock"):  # a child may be forked while it is waited for
            self._lock.release()
            self._next_lock.release()  # another one, if `put` was interrupted


def _take(path: Path) -> FileLock:
    """Lock the file that is at a path, made if it is not there."""
    lock: FileLock | None = None
    try:
        while True:
            lock = FileLock(path, create=True)
            if lock.holds(path):
                return lock
            lock.release()  # it was replaced in between
    except OSError as error:
        raise StateError(
            f"{path}: {error.strerror}; check the permissions, or open it with read_only=True"
        ) from error
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _release_all() -> None:
    for file in list(_FILES):
        file.release()


_FILES: weakref.WeakSet[StateFile] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # a child that lives on does not hold what its parent leaves
    os.register_at_fork(after_in_child=_release_all)
