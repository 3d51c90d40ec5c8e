"""Files that are written whole or not at all, and JSON that is read with one clear error."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEARNER = "learner.safetensors"
RUN = "run.json"
BENCH = "bench.json"
"""What lies in a run's folder: the learner, its figures, and the figures of a benchmark."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside a file, to write to; what is there takes the file's place when the block ends.

    Whatever stops this, the file is the old one or the new one, never a part. Folders are made.

    Raises:
        OSError: with the file's own name, where the disk is full for example.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()  # there may be too little room already
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file, see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, whole or not at all; ``ValueError`` for NaN, which JSON lacks."""
    write_whole(path, json.dumps(data, allow_nan=False))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read an object from a JSON file.

    Args:
        path: the file.
        what: it is expected to hold, for the message.

    Raises:
        ValueError: when it is damaged, or holds something else than an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"it holds a {type(data).__name__}")
    except ValueError as error:  # what json and utf-8 raise are kinds of it
        raise ValueError(f"{path} is damaged or not {what} ({error}); delete it, and make it anew") from error
    return data
