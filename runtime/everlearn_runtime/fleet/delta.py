"""What one device has learned between two versions: sums, not images, in one file.

A safetensors file, whose arrays are those of a head that has seen these samples and no others, and whose
metadata say which device, which versions and which bundle. It may be signed as bundles are.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from everlearn_runtime import signing
from everlearn_runtime.errors import DeltaError, TrustError
from everlearn_runtime.files import write_whole
from everlearn_runtime.fleet.noise import GaussianNoise
from everlearn_runtime.heads import Head, HeadState, Prototypes, from_state
from everlearn_runtime.identity import graph_of, model_of
from everlearn_runtime.ledger import DIGEST, Mark, Span
from everlearn_runtime.manifest import Manifest

if TYPE_CHECKING:
    from everlearn_runtime.state.owner import Past

FORMAT = 2
PLAIN = 1  # the format of a delta without noise, which older versions read
SAYS, SIGNATURES = "everlearn_delta", "signatures"
LARGEST_HEADER = 1 << 24  # bytes
FIELDS = (
    "format",
    "graph",
    "model",
    "device",
    "start",
    "end",
    "time",
    "head",
    "classes",
    "forgotten",
    "withheld",
)


@dataclass(frozen=True)
class Delta:
    """What a device has learned.

    Args:
        graph: sha256 of the graph and of the head's kind and options: what deltas that add up have in common.
        model: sha256 of graph and head of the bundle on which it was learned.
        device: The device's number, 16 hex digits, from its state file; a backup goes on with it.
        span: The versions that it is about.
        time: When it was made, UTC, ISO 8601.
        state: Of a head that has seen these samples alone.
        forgotten: Classes that the device has forgotten, after ``span.start``.
        withheld: Classes with fewer samples than ``min_count``, which are left out.
        noise: What is on the class means, which are all there is then: ``state`` is of `Prototypes`, whatever
            the bundle's head. None: no noise.
        epsilon: What that gives, for ``noise.target_delta``; None without noise.
    """

    graph: str
    model: str
    device: str
    span: Span
    time: str
    state: HeadState
    forgotten: tuple[str, ...] = ()
    withheld: int = 0
    noise: GaussianNoise | None = None
    epsilon: float | None = None

    def head(self) -> Head:
        """A head that has seen these samples alone.

        Raises:
            DeltaError: The arrays do not fit together.
        """
        try:
            head = from_state(self.state)
            head.check_splits()
            if self.noise is not None and self.state.kind != Prototypes.kind:
                raise ValueError(
                    f"with noise there are class means alone, and this is a {self.state.kind} head"
                )
        except (ValueError, RecursionError) as error:
            raise DeltaError(f"the delta's sums make no head: {str(error)[:500]}") from None
        return head

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each class."""
        return dict(zip(self.state.classes, map(int, self.state.arrays["counts"]), strict=True))

    def save(self, path: str | Path, *, key: str | Path | None = None) -> None:
        """Write it, all or nothing.

        Args:
            path: The file; one that is there is replaced.
            key: The file of a private key to sign with, see `everlearn_runtime.signing`.

        Raises:
            OSError: It could not be written.
            ValueError: The key is none.
        """
        said = json.dumps(self._says(), sort_keys=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.state.arrays.items()}
        metadata = {SAYS: said}
        if key is not None:
            signed = signing.sign(_signed(said, arrays), key, purpose=signing.DELTA)
            metadata[SIGNATURES] = signed.decode()
        write_whole(Path(path), safetensors.numpy.save(arrays, metadata=metadata))

    @classmethod
    def read(cls, path: str | Path, *, trust: Sequence[str | Path] | None = None) -> Delta:
        """The reverse of :meth:`save`, with every field checked.

        Args:
            path: The file.
            trust: Public keys, one of which must have signed it; None: no signature is looked at.

        Raises:
            DeltaError: No delta, a damaged one, or one of a newer version.
            TrustError: It is not signed by any key of ``trust``, or was altered after that.
        """
        try:
            data = Path(path).read_bytes()
            arrays = safetensors.numpy.load(data)
        except OSError as error:
            raise DeltaError(f"{path} cannot be read ({error.strerror})") from None
        except Exception as error:  # SafetensorError, and what a strange header makes of it
            raise DeltaError(f"{path} is no delta ({error})") from None
        metadata = _metadata(data[: 8 + LARGEST_HEADER], path)
        if trust is not None:
            signatures = metadata.get(SIGNATURES)
            try:
                signing.check_signature(
                    _signed(metadata[SAYS], arrays),
                    None if signatures is None else signatures.encode(),
                    trust,
                    purpose=signing.DELTA,
                )
            except TrustError as error:
                raise TrustError(f"{path}: {error}") from None
        delta = _checked(metadata[SAYS], arrays, path)
        delta.head()
        return delta

    @classmethod
    def peek(cls, path: str | Path) -> Delta:
        """What a file says, without its sums: ``state`` has no arrays. Raises like :meth:`read`."""
        try:
            with Path(path).open("rb") as file:
                begin = file.read(8)
                length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else LARGEST_HEADER + 1
                if length > LARGEST_HEADER:
                    raise DeltaError(f"{path} is no delta")
                data = begin + file.read(length)
        except OSError as error:
            raise DeltaError(f"{path} cannot be read ({error.strerror})") from None
        return _checked(_metadata(data, path)[SAYS], {}, path)

    def _says(self) -> dict[str, Any]:
        says = {
            "format": PLAIN if self.noise is None else FORMAT,
            "graph": self.graph,
            "model": self.model,
            "device": self.device,
            "start": list(self.span.start),
            "end": list(self.span.end),
            "time": self.time,
            "head": {"kind": self.state.kind, "options": self.state.options},
            "classes": list(self.state.classes),
            "forgotten": list(self.forgotten),
            "withheld": self.withheld,
        }
        return (
            says if self.noise is None else {**says, "noise": {**self.noise.says(), "epsilon": self.epsilon}}
        )


def make_delta(head: Head, past: Past, device: str, manifest: Manifest, min_count: int) -> Delta:
    """What has come to a head since it was an earlier one.

    Args:
        head: What is known now; left as it is.
        past: The earlier version.
        device: The device's number.
        manifest: Of its bundle.
        min_count: Classes with fewer new samples are left out.

    Raises:
        ValueError: Nothing has, or the head keeps more than sums of features.
    """
    own = head.since(past.head, past.forgotten)
    forgotten = past.gone(head)
    few = [name for name, count in zip(own.classes, own.counts.tolist(), strict=True) if count < min_count]
    for name in few:
        own.remove(name)
    own.settle()
    if past.begin.version == past.end.version or not (own.classes or few or forgotten):
        raise ValueError(f"nothing was learned or forgotten since version {past.begin.version}")
    return Delta(
        graph_of(manifest),
        model_of(manifest),
        device,
        Span(past.begin, past.end),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        own.state(),
        forgotten,
        len(few),
    )


def _metadata(data: bytes, path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file's header."""
    try:
        length = struct.unpack("<Q", data[:8])[0]
        found = json.loads(data[8 : 8 + length])["__metadata__"]
        sound = SAYS in found and all(isinstance(value, str) for value in found.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        sound = False
    if not sound:
        raise DeltaError(f"{path} is no delta; devices make them with: everlearn-device delta")
    return dict(found)


def _signed(said: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """What is signed of a delta: what it says, and the sha256 of its arrays in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{json.dumps(name)} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest().encode() + b"\n" + said.encode()


def _checked(said: str, arrays: dict[str, NDArray[Any]], path: str | Path) -> Delta:
    try:
        data = json.loads(said)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or type(data.get("format")) is not int:
        raise DeltaError(f"{path} does not say its format; it is no delta")
    if data["format"] > FORMAT:
        raise DeltaError(
            f"{path} has format {data['format']}, this version reads up to {FORMAT}: "
            "pip install --upgrade everlearn"
        )
    hexadecimal = re.compile("[0-9a-f]*").fullmatch
    sound = (
        set(data) == {*FIELDS, *(("noise",) if data["format"] > PLAIN else ())}
        and all(isinstance(data[name], str) for name in ("graph", "model", "device", "time"))
        and len(data["device"]) == 16
        and hexadecimal(data["device"]) is not None
        and all(_is_mark(data[name]) for name in ("start", "end"))
        and data["start"][0] < data["end"][0]
        and isinstance(data["head"], dict)
        and set(data["head"]) == {"kind", "options"}
        and isinstance(data["head"]["kind"], str)
        and isinstance(data["head"]["options"], dict)
        and all(
            isinstance(data[name], list) and all(isinstance(label, str) for label in data[name])
            for name in ("classes", "forgotten")
        )
        and type(data["withheld"]) is int
        and data["withheld"] >= 0
    )
    noise, epsilon = None, None
    if sound and data["format"] > PLAIN:
        noise, epsilon = _noise(data["noise"])
        sound = noise is not None
    if not sound:
        raise DeltaError(f"{path} is damaged: a field is missing or of the wrong type; ask the device again")
    state = HeadState(data["head"]["kind"], tuple(data["classes"]), data["head"]["options"], arrays)
    return Delta(
        data["graph"],
        data["model"],
        data["device"],
        Span(Mark(*data["start"]), Mark(*data["end"])),
        data["time"],
        state,
        tuple(data["forgotten"]),
        data["withheld"],
        noise,
        epsilon,
    )


def _noise(said: object) -> tuple[GaussianNoise, float] | tuple[None, None]:
    """What a delta says of its noise, and its epsilon; None where that makes no sense."""
    names = {field.name for field in fields(GaussianNoise)}
    if not isinstance(said, dict) or set(said) != {*names, "epsilon"}:
        return None, None
    epsilon = said["epsilon"]
    if type(epsilon) is not float or not 0 <= epsilon < math.inf:
        return None, None
    try:
        return GaussianNoise(**{name: said[name] for name in names}), epsilon
    except ValueError:
        return None, None


def _is_mark(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    version, digest = value
    if type(version) is not int or not 0 <= version < 1 << 62 or not isinstance(digest, str):
        return False
    length = 2 * DIGEST if version else 0
    return re.fullmatch(f"[0-9a-f]{{{length}}}", digest) is not None
