"""State files of the first schema: one snapshot in one piece, and a journal after it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

import numpy as np

from everlearn_runtime.bundle import load_arrays
from everlearn_runtime.errors import OtherModel
from everlearn_runtime.heads import Head, HeadState, from_state
from everlearn_runtime.state.database import connect, damaged, rows, senseless, sqlite_errors


def read_schema1(database: sqlite3.Connection, path: Path, bundle: str) -> Head:
    """The head that such a file holds.

    Args:
        database: A connection to it.
        path: The file, for messages.
        bundle: Id of the bundle at hand; the first schema goes with no other.

    Raises:
        StateError: The file is damaged, or belongs to another bundle.
        sqlite3.Error: It cannot be read.
    """
    snapshots = rows(database, "SELECT bundle, seq, head, arrays, sha256 FROM snapshot")
    if len(snapshots) != 1:
        raise damaged(path, f"{len(snapshots)} snapshots")
    owner, seq, text, blob, digest = snapshots[0]
    if owner != bundle:
        raise OtherModel(
            f"{path} belongs to another bundle ({str(owner)[:12]}..., not {bundle[:12]}...); "
            "open it with that one, or give a new file to start from this one",
            str(owner),
        )
    if digest != _digest(seq, text, blob):
        raise damaged(path, "the snapshot does not match its checksum")
    try:
        said = json.loads(text)
        state = HeadState(said["kind"], tuple(said["classes"]), said["options"], load_arrays(blob))
        head = from_state(state)
        for number, text, blob, digest in rows(
            database, "SELECT seq, event, features, sha256 FROM journal ORDER BY seq"
        ):
            seq += 1
            if number != seq or digest != _digest(number, text, blob):
                raise ValueError(f"journal entry {seq} is missing or does not match its checksum")
            event = json.loads(text)
            if "forget" in event:
                head.remove(event["forget"])
            else:
                features = np.frombuffer(blob, dtype=event["dtype"]).reshape(-1, event["width"])
                head.update(features, event["learn"])
    except sqlite3.Error:
        raise
    except Exception as error:  # whatever a checksum that is right cannot rule out
        raise senseless(path, str(error), error) from error
    head.settle()
    return head


def merge_wal(path: Path) -> None:
    """Move what a process that died has left in the WAL into the file."""
    with sqlite_errors(path):
        database = connect(path, "rw")
        try:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            database.close()


def _digest(seq: object, text: object, blob: object) -> str:
    """The checksum of a row; "" for a row that is no such row any more."""
    if not isinstance(text, str) or not isinstance(blob, bytes):
        return ""
    digest = hashlib.sha256(f"{seq}\n{text}\n".encode())
    digest.update(blob)
    return digest.hexdigest()
