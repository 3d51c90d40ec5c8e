"""Snapshots of a head, written and read in pieces, so that neither size nor time is bounded by them.

A snapshot counts once its row has a checksum, which is written after its last piece.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads import HeadState
from everlearn_runtime.state.database import rows

PIECE_BYTES = 16 << 10
SHIFT = 32  # a piece's key is its snapshot's number and its place in it


class SnapshotWriter:
    """Writes the copy of a head, piece by piece.

    Args:
        number: Of the snapshot; later ones have larger numbers.
        seq: The entry of the journal after which the head was so.
        chain: That entry's checksum.
        state: The copy; its arrays are given back as they are done.
    """

    def __init__(self, number: int, seq: int, chain: bytes, state: HeadState) -> None:
        self.number = number
        self.seq = seq
        self.chain = chain
        self.size = sum(array.nbytes for array in state.arrays.values())
        names = list(state.arrays)
        self.head = json.dumps(
            {
                "kind": state.kind,
                "classes": state.classes,
                "options": state.options,
                "arrays": [[name, state.arrays[name].dtype.str, state.arrays[name].shape] for name in names],
            },
            ensure_ascii=False,
        )
        self.done = 0
        self._left = [_raw(state.arrays[name]) for name in reversed(names)]
        self._start = 0
        self._sha = _header(seq, chain, self.head)

    def begin(self, database: sqlite3.Connection) -> None:
        """Write the row without which pieces are of nothing; inside a transaction."""
        database.execute(
            "INSERT INTO snapshot (number, seq, size, chain, head) VALUES (?, ?, ?, ?, ?)",
            (self.number, self.seq, self.size, self.chain, self.head),
        )

    def skip(self, sizes: Iterable[int]) -> bool:
        """Go on after pieces of these sizes, which an earlier process has written, if they fit."""
        return all(self._left and len(self._next(size)) == size for size in sizes)

    def write(self, database: sqlite3.Connection, pieces: int, size: int = PIECE_BYTES) -> bool:
        """Write some more pieces, of so many bytes; inside a transaction.

        Returns:
            Whether that was all, and the snapshot counts.
        """
        for _ in range(pieces):
            if not self._left:
                break
            key, data = (self.number << SHIFT) + self.done, self._next(size)
            database.execute("INSERT INTO piece VALUES (?, ?)", (key, data))
        if self._left:
            return False
        database.execute("UPDATE snapshot SET digest = ? WHERE number = ?", (self._sha.digest(), self.number))
        return True

    def _next(self, size: int) -> memoryview:
        """At most so many bytes, all of one array."""
        whole = self._left[-1]
        data = whole[self._start : self._start + size]
        self._start += size
        if self._start >= len(whole):
            self._left.pop()
            self._start = 0
        self._sha.update(data)
        self.done += 1
        return data


def read_snapshot(database: sqlite3.Connection, number: int) -> tuple[HeadState, bytes]:
    """A head's state as it was written, and the checksum of the journal's entry before it.

    Raises:
        ValueError: It is not whole.
    """
    row = database.execute(
        "SELECT seq, chain, head, digest FROM snapshot WHERE number = ?", (number,)
    ).fetchone()
    if row is None or [type(value) for value in row] != [int, bytes, str, bytes]:
        raise ValueError(f"snapshot {number} is no snapshot")
    seq, chain, head, digest = row
    sha = _header(seq, chain, head)
    try:
        said = json.loads(head)
        kind, classes, options = said["kind"], tuple(said["classes"]), dict(said["options"])
        kept = {str(name): (np.dtype(dtype), tuple(shape)) for name, dtype, shape in said["arrays"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"snapshot {number} is no snapshot ({error})") from None
    found = database.execute(
        "SELECT coalesce(sum(length(data)), 0) FROM piece WHERE key BETWEEN ? AND ?", _keys(number)
    ).fetchone()[0]
    # Checked before anything of that size is made.
    if found != sum(dtype.itemsize * _product(shape) for dtype, shape in kept.values()):
        raise ValueError(f"snapshot {number} lacks pieces")
    pieces = _pieces(database, number)
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in kept.items():
        if dtype.kind not in "fi":
            raise ValueError(f"snapshot {number} holds {dtype}")
        array = arrays[name] = np.empty(shape, dtype=dtype)
        raw, done = _raw(array), 0
        while True:
            data = next(pieces, b"")
            if len(data) > len(raw) - done or (not data and done < len(raw)):
                raise ValueError(f"snapshot {number} lacks pieces")
            sha.update(data)
            raw[done : done + len(data)] = data
            done += len(data)
            if done == len(raw):
                break
    if sha.digest() != digest:
        raise ValueError(f"snapshot {number} does not match its checksum")
    return HeadState(kind, classes, options, arrays), chain


def sizes_written(database: sqlite3.Connection, number: int) -> list[int]:
    """Bytes of each piece of a snapshot that is there."""
    found = rows(
        database, "SELECT length(data) FROM piece WHERE key BETWEEN ? AND ? ORDER BY key", *_keys(number)
    )
    return [size for (size,) in found]


def _pieces(database: sqlite3.Connection, number: int) -> Iterator[bytes]:
    first, last = _keys(number)
    for key in range(first, last):
        found = rows(database, "SELECT data FROM piece WHERE key = ?", key)
        if not found:
            return
        (data,) = found[0]
        if not isinstance(data, bytes):
            raise ValueError(f"snapshot {number} lacks pieces")
        yield data


def _keys(number: int) -> tuple[int, int]:
    return number << SHIFT, ((number + 1) << SHIFT) - 1


def _header(seq: int, chain: bytes, head: str) -> hashlib._Hash:
    sha = hashlib.sha256(chain)
    sha.update(f"{seq} {head}\n".encode("utf-8", "surrogatepass"))
    return sha


def _raw(array: NDArray[Any]) -> memoryview:
    """The bytes of an array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def _product(shape: tuple[int, ...]) -> int:
    """How many numbers an array of this shape has; a ``ValueError`` for no shape."""
    size = 1
    for side in shape:
        if type(side) is not int or not 0 <= side < 1 << 48:
            raise ValueError(f"an array of shape {shape}")
        size *= side
    return size
