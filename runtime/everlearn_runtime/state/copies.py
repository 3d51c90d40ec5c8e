"""New state files: written beside their place, whole on the disk before they are put there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from everlearn_runtime.bundle import sync_folder
from everlearn_runtime.heads import Head
from everlearn_runtime.state.anchor import Anchor, companion
from everlearn_runtime.state.database import (
    PAGE_BYTES,
    connect,
    create_tables,
    prepare,
    sqlite_errors,
    transaction,
)
from everlearn_runtime.state.journal import Event, digest
from everlearn_runtime.state.lock import FileLock
from everlearn_runtime.state.snapshots import SnapshotWriter

PIECES = 64  # a transaction


class NewFile:
    """A state file that is being written, under the name of its place and ``-new``.

    Args:
        path: Its place.

    Raises:
        StateError: Another process is about to write there too, or the disk does not let it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beside = path.with_name(path.name + "-new")
        with sqlite_errors(path):
            self._lock = FileLock(self._beside, create=True)
            os.ftruncate(self._lock.fileno(), 0)  # what an interrupted one has left
            companion(self._beside).unlink(missing_ok=True)
            self.database: sqlite3.Connection = connect(self._beside, "rw")
            self.database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            prepare(self.database, durable=True)
            with transaction(self.database):
                create_tables(self.database)

    def finish(self, anchor: Anchor) -> FileLock:
        """Write the anchor and put the file into its place.

        Returns:
            The lock on it.
        """
        with sqlite_errors(self.path):
            with transaction(self.database):
                self.database.execute("INSERT INTO anchor (seq) VALUES (0)")
                replace(anchor, clean=1).write(self.database)
            self.database.close()
        os.fsync(self._lock.fileno())
        os.replace(self._beside, self.path)
        sync_folder(self.path.parent)
        return self._lock

    def discard(self) -> None:
        """Leave nothing behind."""
        self.database.close()
        companion(self._beside).unlink(missing_ok=True)
        self._beside.unlink(missing_ok=True)
        self._lock.release()


def start_file(path: Path, anchor: Anchor, event: Event, head: Callable[[], Head] | None) -> FileLock:
    """Put a state file into its place that begins with one event.

    Args:
        path: The place.
        anchor: Names the file; ``seq`` is the event's.
        event: "start" or "purge".
        head: Makes what is known after it, settled; None: the bundle's own head.

    Returns:
        The lock on it.

    Raises:
        StateError: It could not be written; what was in its place is as it was.
    """
    text = event.to_json()
    total = len(text)
    chain = digest(b"", anchor.seq, total, text, b"")
    file = NewFile(path)
    try:
        with sqlite_errors(path):
            with transaction(file.database):
                file.database.execute(
                    "INSERT INTO journal VALUES (?, ?, ?, ?, ?)", (anchor.seq, total, chain, text, b"")
                )
            if head is not None:
                writer = SnapshotWriter(1, anchor.seq, chain, head().state())
                with transaction(file.database):
                    writer.begin(file.database)
                done = False
                while not done:
                    with transaction(file.database):
                        done = writer.write(file.database, PIECES)
                    file.database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        return file.finish(replace(anchor, version=event.version, digest=chain))
    except BaseException:
        file.discard()
        raise
