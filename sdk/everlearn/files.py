"""Text files that are written whole or not at all, and read with one clear error."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a text file: whatever stops this, the file is the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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
