"""SQLite as a state file uses it: how it is opened, and what its errors mean.

The file is in WAL mode, and its one writer keeps the WAL's index in its own memory (exclusive
locking mode) and lets SQLite take no locks (the VFS "unix-none"): SQLite's POSIX locks vanish when any
part of the process closes the file, after a copy for example, and do not survive a fork.
Who owns the file is :mod:`everlearn_runtime.state.lock`'s business, and readers need no lock, see
:mod:`everlearn_runtime.state.reader`.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from everlearn_runtime.errors import BundleError, StateError

SCHEMA = 2
APPLICATION = 0x45564C4E  # "EVLN", in the header of every state file
VFS = "win32-none" if sys.platform == "win32" else "unix-none"
# A change writes a handful of pages besides its own bytes, so small pages wear the disk least.
PAGE_BYTES = 1024
WAL_BYTES = 16 << 20  # what is left of the WAL file after it was longer

TABLES = {
    # First, so that it is on page 2: one row, written with every change.
    "anchor": "CREATE TABLE anchor (id BLOB, epoch BLOB, previous BLOB, clean INTEGER, seq INTEGER, "
    "version INTEGER, digest BLOB, model TEXT)",
    "journal": "CREATE TABLE journal (seq INTEGER PRIMARY KEY, total INTEGER, digest BLOB, event TEXT, "
    "features BLOB)",
    "snapshot": "CREATE TABLE snapshot (number INTEGER PRIMARY KEY, seq INTEGER, size INTEGER, chain BLOB, "
    "head TEXT, digest BLOB)",
    "piece": "CREATE TABLE piece (key INTEGER PRIMARY KEY, data BLOB)",
}

# What content that makes no sense makes its readers raise. Anything else comes from elsewhere: of a signal
# handler, say, that ends what takes too long.
SENSELESS = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, LookupError, RecursionError, TypeError),
    *(ValueError, np.linalg.LinAlgError, sqlite3.Error, struct.error),
)

_IN_USE = {"SQLITE_BUSY", "SQLITE_LOCKED"}
_ENVIRONMENT = {
    "SQLITE_FULL",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_IOERR",
    "SQLITE_PERM",
    "SQLITE_AUTH",
    "SQLITE_NOLFS",
}
# Python 3.10 hands on SQLite's words only.
_WORDS = {
    "is locked": "SQLITE_BUSY",
    "disk is full": "SQLITE_FULL",
    "readonly database": "SQLITE_READONLY",
    "unable to open": "SQLITE_CANTOPEN",
    "disk I/O": "SQLITE_IOERR",
    "access permission": "SQLITE_PERM",
    "too big": "SQLITE_TOOBIG",
    "not a database": "SQLITE_NOTADB",
}


class Connection(sqlite3.Connection):
    """One that only :meth:`close` closes, once it has been left.

    SQLite tidies up when it closes: it moves the WAL into the file and deletes it, though the file may say
    that it needs one, or somebody else write to it by now: a forked child's parent, or the next
    learner after a close that was interrupted. So what has a WAL must not be closed by the collector, by
    the end of the process, or in a child.
    """

    left = False

    def leave(self) -> None:
        """From now on nothing but a call of :meth:`close` closes it."""
        if not self.left:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
            self.left = True  # last, for an interrupt between the two must not take away what was not given

    def close(self) -> None:
        """Close it, and let SQLite tidy up."""
        super().close()
        if self.left:
            self.left = False
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(self))


def connect(path: Path, mode: str) -> Connection:
    """Open a file that exists.

    Args:
        path: The file.
        mode: "rw"; "ro", which reads file and WAL together and writes nothing; or "main", which
            reads the file without its WAL.
    """
    query = {"rw": f"mode=rw&vfs={VFS}", "ro": f"mode=ro&vfs={VFS}", "main": "mode=ro&immutable=1"}[mode]
    database = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?{query}",
        uri=True,
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    if mode != "main":
        database.leave()
    database.execute("PRAGMA trusted_schema = OFF")
    if mode != "main":
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
    return database


def is_closed(database: sqlite3.Connection) -> bool:
    """Whether a connection was closed."""
    try:
        database.total_changes  # noqa: B018 - it raises if so
    except sqlite3.ProgrammingError:
        return True
    return False


def prepare(database: sqlite3.Connection, durable: bool) -> None:
    """Set up a connection that writes."""
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    database.execute("PRAGMA secure_delete = OFF")  # zeros are written too; see `rewrite` for what must go
    database.execute("PRAGMA wal_autocheckpoint = 0")  # its errors would look like those of a commit
    database.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    # The WAL is there from the first look on, in a file too that somebody has taken out of WAL mode.
    database.execute("PRAGMA schema_version")


def create_tables(database: sqlite3.Connection) -> None:
    """Make an empty file a state file; the caller begins and commits."""
    database.execute(f"PRAGMA application_id = {APPLICATION}")
    database.execute(f"PRAGMA user_version = {SCHEMA}")
    for statement in TABLES.values():
        database.execute(statement)


def rows(database: sqlite3.Connection, question: str, *values: object) -> list[tuple[Any, ...]]:
    """All rows of an answer.

    Never one by one: if whoever reads is interrupted, the answer stays open as long as the traceback
    lives, and so does the view of the file that it reads from.
    """
    return database.execute(question, values).fetchall()


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    undo_unfinished(database)
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        undo_unfinished(database)
        raise


def checkpoint(database: sqlite3.Connection) -> None:
    """Move the WAL into the file, all of it, and bring it to the disk."""
    busy, frames, moved = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    if busy or frames != moved:
        raise sqlite3.OperationalError(f"{moved} of {frames} pages moved into the file: disk I/O error")


def undo_unfinished(database: sqlite3.Connection) -> None:
    """End a transaction that was interrupted; a full disk may have ended it already."""
    if database.in_transaction:
        database.execute("ROLLBACK")


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """SQLite's errors, as a StateError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise explained(path, error) from error


@contextmanager
def content_errors(path: Path) -> Iterator[None]:
    """Whatever content that makes no sense makes its readers raise, as a StateError."""
    try:
        yield
    except (StateError, BundleError, sqlite3.Error):
        raise
    except Exception as error:
        raise senseless(path, f"it makes no sense ({type(error).__name__}: {error})", error) from error


def explained(path: Path, error: sqlite3.Error) -> StateError:
    """What an error of SQLite means for a state file."""
    code = _code(error)
    if code in _IN_USE:
        return StateError(f"{path} is in use by another process or learner; close that one first")
    if code in _ENVIRONMENT:
        return StateError(f"{path}: {error}; check the free space and the permissions")
    if code == "SQLITE_TOOBIG":
        return StateError(f"{path}: so much does not go into one entry ({error}); learn it in parts")
    if code == "SQLITE_NOTADB":
        return StateError(f"{path} is no state file ({error}); give another file")
    return damaged(path, str(error))


def senseless(path: Path, what: str, error: Exception) -> BaseException:
    """What to raise for an error that content has led to: damage, unless something else is behind it.

    Code that is interrupted while it builds may stumble over the half of it when it cleans up.
    """
    return from_elsewhere(error) or damaged(path, what)


def from_elsewhere(error: Exception) -> BaseException | None:
    """What no content leads to, and is behind an error or is it: an interrupt, no memory, no stack left."""
    if not isinstance(error, SENSELESS):
        return error
    behind: BaseException | None = error
    while behind is not None:
        if not isinstance(behind, Exception) or isinstance(behind, (MemoryError, TimeoutError)):
            return behind
        if isinstance(behind, RecursionError) and _deep():
            return behind
        behind = behind.__context__
    return None


def _deep() -> bool:
    """Whether the caller's own calls take so much of the stack that the rest may not do for sound content."""
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth > sys.getrecursionlimit() // 2


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error of SQLite is about what the file holds."""
    return _code(error) not in _IN_USE | _ENVIRONMENT | {"SQLITE_TOOBIG"}


def damaged(path: Path, what: str) -> StateError:
    """The error for a file whose content is wrong."""
    return StateError(f"{path} is damaged: {what}; restore a copy, or delete it to start again")


def _code(error: sqlite3.Error) -> str:
    """The primary code, "SQLITE_IOERR" for "SQLITE_IOERR_WRITE"."""
    name = getattr(error, "sqlite_errorname", None)
    if name is None:
        text = str(error)
        return next((code for words, code in _WORDS.items() if words in text), "SQLITE_ERROR")
    return "_".join(str(name).split("_")[:2])
