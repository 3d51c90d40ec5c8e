"""A look into an ONNX file without the onnx package: does it reach outside of itself, and where are weights?

A bundle's manifest has the hash of the graph. A tensor that lies in another file (ONNX's external
data), or an engine that an ``EPContext`` node names, is covered by no hash, and an engine is
executable code. ONNX Runtime loads both in silence, from the working directory if need be.

Only what leads to tensors and nodes is read, by the field numbers of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import BundleError

# For each message, where others lie in it: field number to message.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
OPERATOR, EXTERNAL_DATA, DATA_LOCATION = 4, 13, 14
GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, RAW_DATA = 1, 2, 8, 9
DTYPES = {1: "<f4", 10: "<f2"}  # of those that weights may have, by `TensorProto.DataType`
ENGINE = memoryview(b"EPContext")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def check_graph(graph: bytes, name: str) -> None:
    """Raise if a graph is no ONNX file or needs more than itself.

    Args:
        graph: The bytes of an ONNX file.
        name: Of the file, for messages.

    Raises:
        BundleError: Cut short, no ONNX, or with parts outside of the file.
    """
    view = memoryview(graph)
    left = [("model", view)]
    while left:
        kind, message = left.pop()
        for number, value in _fields(message, name):
            if isinstance(value, memoryview) and number in _INSIDE[kind]:
                left.append((_INSIDE[kind][number], value))
            elif kind == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)):
                raise BundleError(
                    f"{name}: a tensor of the graph lies in another file, which the manifest does not "
                    "cover; export it again with all weights inside"
                )
            elif kind == "node" and number == OPERATOR and value == ENGINE:
                raise BundleError(
                    f"{name}: the graph holds a compiled engine (EPContext), which is never taken from "
                    "elsewhere; export it again as plain ONNX"
                )


def put_weights(graph: bytes, weights: Mapping[str, NDArray[Any]], name: str) -> bytes:
    """The same graph with other values of some of its weights.

    Nothing else of the file changes, not even its length: what runs is as fast as before, and knows
    nothing of it.

    Args:
        graph: The bytes of an ONNX file that passes :func:`check_graph`.
        weights: By the name of the initializer, of its shape; they are rounded to its type.
        name: Of the file, for messages.

    Raises:
        BundleError: There is no such weight, of this shape and of 16 or 32 bits, stored as it is in memory.
        ValueError: A value is too large for 16 bits.
    """
    whole = bytearray(graph)
    left = dict(weights)
    for number, part in _fields(memoryview(whole), name):
        if number == GRAPH and isinstance(part, memoryview):
            for place, tensor in _fields(part, name):
                if place == INITIALIZER and isinstance(tensor, memoryview):
                    _put_one(tensor, left, name)
    if left:
        raise BundleError(
            f"{name}: the graph has no weight {min(left)!r} to put adapters into; export it again"
        )
    return bytes(whole)


def _put_one(tensor: memoryview, left: dict[str, NDArray[Any]], name: str) -> None:
    """Overwrite a tensor if it is one of those, and take it off them."""
    shape: list[int] = []
    kind, own, raw = 0, "", memoryview(b"")
    for number, value in _fields(tensor, name):
        if isinstance(value, int):
            shape += [value] if number == DIMS else []
            kind = value if number == DATA_TYPE else kind
        elif number == DIMS:  # packed
            place = 0
            while place < len(value):
                size, place = _varint(value, place, name)
                shape.append(size)
        elif number == NAME:
            own = bytes(value).decode(errors="replace")
        elif number == RAW_DATA:
            raw = value
    if own not in left:
        return
    given = left.pop(own)
    dtype = DTYPES.get(kind)
    if dtype is None or list(given.shape) != shape or len(raw) != given.size * np.dtype(dtype).itemsize:
        raise BundleError(
            f"{name}: the weight {own!r} is of shape {shape} and type {kind} in the graph; adapters of shape "
            f"{list(given.shape)} cannot be put there; export it again"
        )
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(given, dtype)
    if not np.isfinite(values).all():
        raise ValueError(f"the adapters of {own!r} are not finite in the precision of the graph")
    raw[:] = values.tobytes()


def _fields(message: memoryview, name: str) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place, name)
        wire = key & 7
        value: int | memoryview
        if wire == VARINT:
            value, place = _varint(message, place, name)
        else:
            if wire == BYTES:
                size, place = _varint(message, place, name)
            elif wire in (FIXED64, FIXED32):
                size = 8 if wire == FIXED64 else 4
            else:
                raise _no_graph(name)
            if size > end - place:
                raise _no_graph(name)
            value, place = message[place : place + size], place + size
        yield (key & 0xFFFFFFFF) >> 3, value  # protobuf takes no more of a key


def _varint(message: memoryview, place: int, name: str) -> tuple[int, int]:
    """A whole number of at most ten bytes, seven bits in each, and where the next field starts."""
    value = 0
    for shift in range(0, 70, 7):
        if place == len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _no_graph(name)


def _no_graph(name: str) -> BundleError:
    return BundleError(f"{name}: cannot load this graph: it is cut short or no ONNX file; copy it again")
