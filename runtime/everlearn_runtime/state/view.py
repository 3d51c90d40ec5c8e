"""Reading a state file without changing anything, whoever else has it open."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from everlearn_runtime.errors import StateError
from everlearn_runtime.state.database import connect

WAL_HEADER, FRAME_HEADER = struct.Struct(">8xI4x8s8x"), struct.Struct(">4xI8s8x")


@contextmanager
def view(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads a file and its WAL, as they are now.

    When SQLite closes it tidies up: it moves the WAL into the file, and deletes it. Here the first
    fails, because the file is open for reading only, and then it leaves the WAL alone; but one in
    which it found nothing to move it would delete, though somebody else may be about to write to it. Such a
    connection stays open.
    """
    database = connect(path, "ro" if _has_commits(companion(path)) else "main")
    try:
        database.execute("PRAGMA synchronous = OFF")  # tidying up would begin with a sync
        yield database
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")
        moved = None
        with suppress(sqlite3.Error):
            moved = database.execute("PRAGMA wal_checkpoint").fetchone()
        if moved is None or moved[1] != 0:
            database.close()


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """What the operating system says of a place, as a StateError."""
    try:
        yield
    except TimeoutError:  # a signal handler's
        raise
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; give another place") from error


def companion(path: Path) -> Path:
    """The WAL of a state file."""
    return path.with_name(path.name + "-wal")


def _has_commits(wal: Path) -> bool:
    """Whether a WAL has anything to say: a frame that ends a transaction."""
    try:
        with wal.open("rb") as file:
            header = file.read(WAL_HEADER.size)
            if len(header) < WAL_HEADER.size:
                return False
            page, salt = WAL_HEADER.unpack(header)
            while len(frame := file.read(FRAME_HEADER.size)) == FRAME_HEADER.size:
                ends, own_salt = FRAME_HEADER.unpack(frame)
                if own_salt != salt:
                    return False
                if ends:
                    return True
                file.seek(page, 1)
    except OSError:
        pass
    return False
