"""Adapters that have gone on learning on a device, and how a state keeps them.

They are part of what a device knows, as the head is. A version of kind "adapt" is a whole one: its entry in
the journal has the head and the adapters, and every snapshot after it has both. So history, copies, readers
and ways back need nothing of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.arrays import all_finite
from everlearn_runtime.bundle import dump_arrays, load_arrays
from everlearn_runtime.heads import Head, HeadState, from_state

ADAPTER = "adapter."  # before the names of adapters among a head's arrays
TIMES = "adapted"


@dataclass(frozen=True, eq=False)
class Adapters:
    """Adapters in place of those that a bundle came with.

    Args:
        values: By name, float32.
        times: How many trainings on the device they are averaged from, beside what the bundle came with.
    """

    values: Mapping[str, NDArray[np.float32]]
    times: int

    @cached_property
    def id(self) -> str:
        """sha256 of the values: the same for the same ones."""
        sha = hashlib.sha256()
        for name in sorted(self.values):
            sha.update(name.encode() + b"\0" + np.ascontiguousarray(self.values[name]).tobytes())
        return sha.hexdigest()


def joined(state: HeadState, adapters: Adapters | None) -> HeadState:
    """A head's state with the adapters that it goes with among its arrays; None: the bundle's own."""
    if adapters is None:
        return state
    more = {ADAPTER + name: np.ascontiguousarray(value) for name, value in adapters.values.items()}
    arrays = {**state.arrays, **more, TIMES: np.array([adapters.times], np.int64)}
    return HeadState(state.kind, state.classes, state.options, arrays)


def parted(state: HeadState) -> tuple[Head, Adapters | None]:
    """The reverse of :func:`joined`, with the head rebuilt.

    Raises:
        ValueError: Arrays that make no sense.
    """
    if TIMES not in state.arrays:
        return from_state(state), None
    own: dict[str, NDArray[Any]] = {}
    values: dict[str, NDArray[np.float32]] = {}
    for name, array in state.arrays.items():
        if name.startswith(ADAPTER):
            values[name[len(ADAPTER) :]] = array
        elif name != TIMES:
            own[name] = array
    times = state.arrays[TIMES]
    sound = times.dtype == np.int64 and times.shape == (1,) and times[0] >= 1
    if not sound or any(value.dtype != np.float32 or not all_finite(value) for value in values.values()):
        raise ValueError("the adapters make no sense")
    head = from_state(HeadState(state.kind, state.classes, state.options, own))
    return head, Adapters(values, int(times[0]))


def pack_adapted(head: Head, adapters: Adapters) -> tuple[dict[str, Any], bytes]:
    """What an "adapt" says, and the head's and the adapters' arrays as bytes, kept to the bit."""
    head.settle()
    state = joined(head.state(), adapters)
    says = {"kind": state.kind, "classes": list(state.classes), "options": state.options}
    return {"head": says}, dump_arrays(state.arrays)


def unpack_adapted(says: Mapping[str, Any], data: bytes) -> tuple[Head, Adapters]:
    """The reverse of :func:`pack_adapted`: a head and adapters that share nothing with those.

    Args:
        says: Under ``head``.
        data: The arrays.

    Raises:
        ValueError: They make no sense.
    """
    state = HeadState(says["kind"], tuple(says["classes"]), says["options"], load_arrays(data))
    head, adapters = parted(state)
    if adapters is None:
        raise ValueError("there are no adapters")
    return head, adapters
