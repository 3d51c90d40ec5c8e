"""A look into an ONNX file without the onnx package: does it reach outside of itself?

A bundle's manifest has the hash of the graph. A tensor that lies in another file (ONNX's external
data), or an engine that an ``EPContext`` node names, is covered by no hash, and an engine is
executable code. ONNX Runtime loads both in silence, from the working directory if need be.

Only what leads to tensors and nodes is read, by the field numbers of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator

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
