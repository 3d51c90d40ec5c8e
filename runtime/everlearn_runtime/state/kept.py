"""Old states that a migration has left beside the new one."""

from __future__ import annotations

import re
from pathlib import Path

from everlearn_runtime.errors import StateError
from everlearn_runtime.state.archive import mentions
from everlearn_runtime.state.database import content_errors, sqlite_errors
from everlearn_runtime.state.lock import FileLock
from everlearn_runtime.state.view import companion, view


def kept_place(path: Path, digest: bytes) -> Path:
    """Where a state's copy lies that ends with the entry of this checksum."""
    return path.with_name(f"{path.name}.before-{digest.hex()[:12]}")


def kept_with(path: Path, label: str) -> list[Path]:
    """The old states beside a state that name a class.

    Raises:
        StateError: One cannot be read.
    """
    name = re.compile(re.escape(path.name) + r"\.before-[0-9a-f]{12}")
    found = []
    for beside in sorted(path.parent.iterdir()):
        if name.fullmatch(beside.name):
            with sqlite_errors(beside), view(beside) as database, content_errors(beside):
                if mentions(database, beside, label):
                    found.append(beside)
    return found


def delete_kept(path: Path) -> None:
    """Delete an old state and its companion.

    Raises:
        StateError: A learner has it open, or the disk does not let it.
    """
    try:
        lock = FileLock(path)
        try:
            companion(path).unlink(missing_ok=True)
            path.unlink()
        finally:
            lock.release()
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; it names the class, delete it first") from error
