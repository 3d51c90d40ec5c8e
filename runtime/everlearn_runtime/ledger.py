"""What a bundle says of the devices whose deltas are in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads import HeadState, from_state

BEFORE = "before."  # before the names of the arrays of the head before
DIGEST = 16  # bytes of what tells copies of one state apart


class Mark(NamedTuple):
    """A version of a device's state, and in hex what tells it from that of a copy which goes on by itself.

    Version 0 is the bundle's own head, for which that is empty.
    """

    version: int
    digest: str


class Span(NamedTuple):
    """What a device has learned after one version, up to another."""

    start: Mark
    end: Mark


@dataclass(frozen=True)
class Ledger:
    """What has been merged into a bundle.

    Args:
        devices: For each device what is in it, ascending.
        forgotten: Classes that a device had forgotten, and how many bundles came before the one that was made
            without them: what devices had learned of them with one of those does not bring them back.
        chain: `model_of` the bundles that came before, the oldest first.
        before: The heads of the last of these, with which the states of their devices begin, the oldest
            first.
        latest: For each device how many bundles came before the one that its last delta went into.
    """

    devices: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    forgotten: Mapping[str, int] = field(default_factory=dict)
    chain: tuple[str, ...] = ()
    before: tuple[HeadState, ...] = ()
    latest: Mapping[str, int] = field(default_factory=dict)

    def end(self, device: str) -> Mark | None:
        """The last version of a device that is in it."""
        spans = self.devices.get(device)
        return spans[-1].end if spans else None

    def head_of(self, age: int) -> HeadState | None:
        """The head of the bundle before which so many came; None of one that is too long ago."""
        place = age - len(self.chain) + len(self.before)
        return self.before[place] if 0 <= place < len(self.before) else None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """It as arrays, for a file."""
        spans = [(device, span) for device in sorted(self.devices) for span in self.devices[device]]
        marks = [mark for _, span in spans for mark in span]
        says = {
            "forgotten": dict(self.forgotten),
            "chain": list(self.chain),
            "before": [[state.kind, state.options, list(state.classes)] for state in self.before],
        }
        return {
            **{
                f"{BEFORE}{place}.{name}": array
                for place, state in enumerate(self.before)
                for name, array in state.arrays.items()
            },
            "latest": np.array([self.latest[device] for device in sorted(self.devices)], dtype=np.int64),
            "devices": _from_hex([device for device, _ in spans], 8),
            "versions": np.array([mark.version for mark in marks], dtype=np.int64).reshape(-1, 2),
            "digests": _from_hex([mark.digest or "0" * 2 * DIGEST for mark in marks], DIGEST).reshape(
                -1, 2, DIGEST
            ),
            "says": np.frombuffer(json.dumps(says).encode(), dtype=np.uint8),
        }

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]]) -> Ledger:
        """The reverse of :meth:`arrays`.

        Raises:
            ValueError: They are not what a ledger gives.
        """
        before = {name[len(BEFORE) :]: array for name, array in arrays.items() if name.startswith(BEFORE)}
        arrays = {name: array for name, array in arrays.items() if not name.startswith(BEFORE)}
        if set(arrays) != {"latest", "devices", "versions", "digests", "says"}:
            raise ValueError(f"the ledger holds the arrays {sorted(arrays)}")
        devices, versions, digests = arrays["devices"], arrays["versions"], arrays["digests"]
        count = len(devices) if devices.ndim else 0
        shapes = {"devices": (count, 8), "versions": (count, 2), "digests": (count, 2, DIGEST)}
        for name, shape in shapes.items():
            kind = np.int64 if name == "versions" else np.uint8
            if arrays[name].dtype != kind or arrays[name].shape != shape:
                raise ValueError(
                    f"{name} of the ledger is {arrays[name].dtype} of shape {arrays[name].shape}"
                )
        if arrays["says"].dtype != np.uint8 or arrays["says"].ndim != 1:
            raise ValueError("says of the ledger is no text")
        try:
            said = json.loads(arrays["says"].tobytes())
            forgotten, chain = dict(said["forgotten"]), list(said["chain"])
            states = tuple(
                HeadState(str(kind), tuple(map(str, classes)), dict(options), _part(before, place))
                for place, (kind, options, classes) in enumerate(said["before"])
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError("says of the ledger is not readable") from None
        if sum(len(state.arrays) for state in states) != len(before) or len(states) > len(chain):
            raise ValueError("the ledger has heads of other bundles than came before")
        for state in states:
            from_state(state)
        if not all(type(at) is int and at >= 0 for at in forgotten.values()) or not all(
            isinstance(model, str) for model in chain
        ):
            raise ValueError("says of the ledger has values of the wrong type")
        found: dict[str, list[Span]] = {}
        for device, (first, last), (before, after) in zip(devices, versions.tolist(), digests, strict=True):
            if not 0 <= first < last:
                raise ValueError(f"the ledger has a span from version {first} to {last}")
            span = Span(
                Mark(first, before.tobytes().hex() if first else ""), Mark(last, after.tobytes().hex())
            )
            found.setdefault(device.tobytes().hex(), []).append(span)
        for device_id, spans in found.items():
            if any(one.end.version > other.start.version for one, other in itertools.pairwise(spans)):
                raise ValueError(f"the ledger's spans of device {device_id} overlap")
        spans_of = {device: tuple(spans) for device, spans in found.items()}
        latest = arrays["latest"]
        if latest.dtype != np.int64 or latest.shape != (len(found),) or (latest < 1).any():
            raise ValueError(f"latest of the ledger is {latest.dtype} of shape {latest.shape}, or below 1")
        lasts = dict(zip(sorted(found), latest.tolist(), strict=True))
        return cls(spans_of, forgotten, tuple(chain), states, lasts)


def add_span(spans: Iterable[Span], new: Span, device: str) -> tuple[Span, ...] | None:
    """What a device has handed in, with one more span; None if that is in it already.

    Args:
        spans: So far, ascending.
        new: One more.
        device: For messages.

    Raises:
        ValueError: A part of it is in it, so that sums cannot be told apart; or the device's past is another
            one, as with two devices that go on from copies of one state.
    """
    found: list[Span] = []
    for span in spans:
        for one, other in ((span.end, new.start), (span.start, new.start), (span.end, new.end)):
            if one.version == other.version and one.digest != other.digest:
                raise ValueError(two_pasts(device, one.version))
        if span.start.version <= new.start.version and new.end.version <= span.end.version:
            return None
        if span.end.version <= new.start.version or new.end.version <= span.start.version:
            found.append(span)
        else:
            raise ValueError(
                f"of device {device}, versions {span.start.version} to {span.end.version} are counted "
                "already, "
                f"and a delta from {new.start.version} to {new.end.version} overlaps them; ask it for one "
                "since "
                f"{span.end.version}"
            )
    merged: list[Span] = []
    for span in sorted([*found, new], key=lambda span: span.start.version):
        if merged and merged[-1].end == span.start:
            merged[-1] = Span(merged[-1].start, span.end)
        else:
            merged.append(span)
    return tuple(merged)


def two_pasts(device: str, version: int) -> str:
    """What to say of two devices that pass for one."""
    return (
        f"device {device} has two pasts up to version {version}: two devices go on from copies of one state; "
        "give one of them a new state"
    )


def _part(arrays: Mapping[str, NDArray[Any]], place: int) -> dict[str, NDArray[Any]]:
    """The arrays of one of the heads before."""
    start = f"{place}."
    return {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}


def _from_hex(texts: list[str], size: int) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(texts)), dtype=np.uint8).reshape(-1, size)
