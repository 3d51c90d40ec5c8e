"""Where a state file ends, and what belongs to it."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from everlearn_runtime.errors import StateError
from everlearn_runtime.state.database import (
    APPLICATION,
    SCHEMA,
    TABLES,
    connect,
    damaged,
    explained,
    is_damage,
    rows,
    sqlite_errors,
)
from everlearn_runtime.state.view import WAL_HEADER, companion, view

# Bytes of a file's id that are its device's.
DEVICE = 8


@dataclass(frozen=True)
class Anchor:
    """The one row that every change rewrites.

    It says how far the journal goes, so that missing entries are noticed, and which file and WAL
    belong together: a session is the time from the first change that a process makes to its
    close. The file itself, without its WAL, names the session before anything is acknowledged.

    Args:
        id: Of the file. Its first half is the device's, which a backup and a migrated state keep; the second
            half is of this file alone.
        epoch: Of the session that wrote last.
        previous: Of the session before it.
        clean: 1 if that session was closed, so that the file is whole without a WAL.
        seq: The last entry of the journal.
        version: The version that it makes.
        digest: The checksum of the last entry, and through it of all before it.
        model: sha256 of the graph and the head that the state goes with.
    """

    id: bytes
    epoch: bytes
    previous: bytes
    clean: int
    seq: int
    version: int
    digest: bytes
    model: str

    @property
    def device(self) -> bytes:
        """The device's part of the id."""
        return self.id[:DEVICE]

    def write(self, database: sqlite3.Connection) -> None:
        """Put this anchor in the place of the one that is there."""
        names = ", ".join(f"{field.name} = ?" for field in fields(self))
        database.execute(f"UPDATE anchor SET {names}", astuple(self))


def new_anchor(model: str, device: bytes = b"") -> Anchor:
    """The anchor of a file that does not know anything yet; of this device, or of a new one."""
    return Anchor(new_id(device), os.urandom(16), b"", 1, 0, 0, b"", model)


def new_id(device: bytes = b"") -> bytes:
    """The id of a new file."""
    return (device or os.urandom(DEVICE)) + os.urandom(16 - DEVICE)


def read_anchor(database: sqlite3.Connection, path: Path) -> Anchor:
    """The anchor of a file.

    Raises:
        StateError: There is none, or what is there is not one.
        sqlite3.Error: The file cannot be read.
    """
    names = ", ".join(field.name for field in fields(Anchor))
    found = rows(database, f"SELECT {names} FROM anchor")
    if len(found) != 1:
        raise damaged(path, f"{len(found)} anchors")
    anchor = Anchor(*found[0])
    kinds = (bytes, bytes, bytes, int, int, int, bytes, str)
    if any(type(value) is not kind for value, kind in zip(astuple(anchor), kinds, strict=True)):
        raise damaged(path, "its anchor is no anchor")
    return anchor


def check_kind(database: sqlite3.Connection, path: Path) -> int:
    """The schema of a state file.

    Raises:
        StateError: It is something else, from a newer version, or lacks a table.
        sqlite3.Error: The file cannot be read.
    """
    application = database.execute("PRAGMA application_id").fetchone()[0]
    schema: int = database.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        raise StateError(f"{path} is some other SQLite database; give another file for the state")
    if schema > SCHEMA:
        raise StateError(
            f"{path} has schema {schema}, this version reads up to {SCHEMA}: pip install --upgrade everlearn"
        )
    if schema < 1:
        raise damaged(path, f"it says schema {schema}; schemas count from 1")
    if schema == SCHEMA:
        found = dict(rows(database, "SELECT name, sql FROM sqlite_master"))
        if found != TABLES:
            raise damaged(path, f"it has the tables {sorted(map(str, found))}; expected {sorted(TABLES)}")
    return schema


def check_companion(path: Path) -> None:
    """Whether a file and the WAL beside it, or the lack of one, belong together.

    Reads only. SQLite would take whatever WAL lies there for the file's own, and a file without
    its WAL for a whole one.

    Raises:
        StateError: They do not, or the file is not readable.
    """
    wal = companion(path)
    own = read_alone(path)
    if own is None:
        return
    missing = "missing" if not wal.exists() else "empty" if wal.stat().st_size < WAL_HEADER.size else ""
    if missing:
        if not own.clean:
            raise StateError(
                f"{wal} is {missing}: {path} was in use when it was copied or its process died, and what was "
                f"learned last is in that companion; copy both, or make copies with backup()"
            )
        return
    stranger = StateError(
        f"{wal} does not belong to {path}: one of the two was copied over without the other; "
        "put the pair back together, or delete the companion if the file alone is what you want"
    )
    try:
        with view(path) as database:
            both = read_anchor(database, path)
    except StateError:
        raise stranger from None
    except sqlite3.Error as error:
        raise (stranger if is_damage(error) else explained(path, error)) from error
    same_session = both.epoch == own.epoch and both.seq >= own.seq
    next_session = both.previous == own.epoch
    if both.id != own.id or not (same_session or next_session):
        raise stranger


def read_alone(path: Path) -> Anchor | None:
    """The anchor of a file without its WAL; None if it is of another schema, or says nothing by itself.

    While the WAL is moved into it, a file is neither what it was nor what it will be; a process may die,
    or the disk be full, in the middle of that.
    """
    with sqlite_errors(path):
        database = connect(path, "main")
        try:
            return read_anchor(database, path) if check_kind(database, path) == SCHEMA else None
        except sqlite3.Error as error:
            if is_damage(error) and companion(path).exists():
                return None
            raise
        finally:
            database.close()
