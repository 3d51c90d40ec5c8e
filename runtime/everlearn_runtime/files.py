"""Files that are on the disk when a call returns, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def check_place(path: str | Path, what: str, room: int = 1 << 16) -> None:
    """See that something can be written at a path, before work is spent on it; nothing is left there.

    Args:
        path: Of a file or a folder, which need not be there; nor need the folders above it.
        what: It is for, as the message begins.
        room: Bytes that there must be for it.

    Raises:
        ValueError: A file is where a folder should be, there are no rights, the disk is full or read-only,
            or the path is none.
    """
    place = Path(path)
    try:
        folder = place
        while not folder.is_dir():
            if folder.exists() and folder != place:
                raise ValueError(f"{what} is {path}, but {folder} is a file, no folder; give another path")
            if folder == folder.parent:
                break
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 12))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)  # as in /proc
        why = "this folder takes no files" if gone else (error.strerror or str(error)).lower()
        raise ValueError(
            f"{what} is {path}, where nothing can be written ({why}); make room, mend the rights, or give "
            "another path"
        ) from error
    if free < room:
        raise ValueError(
            f"{what} is {path}, where {free / 1e6:.3g} MB are left, and at least {room / 1e6:.3g} MB are "
            "needed; make room, or give another path"
        )


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, and bring it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place; whatever stops this, what is there is the old one or the new one.

    Raises:
        OSError: It could not be written.
    """
    beside = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        write_synced(beside, data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk; where folders cannot be opened, that is not needed."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
