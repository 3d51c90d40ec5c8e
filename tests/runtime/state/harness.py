"""What the tests of the state share: every head, a learner without a graph, and exceptions anywhere."""

from __future__ import annotations

import dis
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import everlearn_runtime
from everlearn_runtime import (
    LDA,
    Aggregate,
    BalancedRidge,
    EvidenceLDA,
    FeCAM,
    Head,
    HeldOutRidge,
    Linear,
    Prototypes,
    Ridge,
    StreamingLDA,
    WhitenedCosine,
    from_state,
)
from everlearn_runtime.heads import SharedAggregate
from everlearn_runtime.state import Owner, Reader
from everlearn_runtime.state.adapted import Adapters

WIDTH = 4
MODEL = "m" * 64
RUNTIME = os.path.dirname(everlearn_runtime.__file__) + os.sep
# The whole of what CI tries a part of.
TORTURE = bool(os.environ.get("EVERLEARN_TORTURE"))

HEADS: dict[str, Callable[[], Head]] = {
    "prototypes": Prototypes,
    "lda": LDA,
    "lda_removable": lambda: LDA(removable=True),
    "evidence_lda": EvidenceLDA,
    "whitened_cosine": WhitenedCosine,
    "balanced_ridge": BalancedRidge,
    "ridge": Ridge,
    "ridge_projected": lambda: Ridge(projection=8),
    "fecam": FeCAM,
    "streaming_lda": StreamingLDA,
    "held_out_ridge": HeldOutRidge,
    "linear": Linear,
    "aggregate": lambda: Aggregate([2, 2], [LDA(), Ridge()]),
    "shared_aggregate": lambda: SharedAggregate([2, 2], [Ridge(projection=8)] * 2),
}

Bits = tuple[tuple[str, ...], dict[str, bytes]]


def bits(head: Head) -> Bits:
    """All that a head knows, to the bit."""
    state = head.state()
    return state.classes, {name: array.tobytes() for name, array in state.arrays.items()}


def whole(keeper: Owner | Reader) -> tuple[int, Bits, str]:
    """All that a state knows, to the bit: version, head and adapters."""
    known = bits(keeper.head)
    return keeper.version, known, "" if keeper.adapters is None else keeper.adapters.id


def adapt(owner: Owner, seed: int = 0) -> None:
    """Other adapters, and a head whose features have moved."""
    head = from_state(owner.use(lambda head: head.state()))
    before = rows(20, seed=seed).astype(np.float64)
    head.carry(before, 1.1 * before + 0.1)
    times = 1 if owner.adapters is None else owner.adapters.times + 1
    owner.adapt(head, Adapters({"up": rows(3, seed=seed), "bias": rows(1, seed=seed)[0]}, times), ["a", "b"])


def rows(n: int, seed: int = 0, width: int = WIDTH) -> NDArray[np.float32]:
    """Features (n, width)."""
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def own(path: Path, new: Callable[[], Head] = LDA, **options: Any) -> Owner:
    """The owner of a state file, of a bundle whose head knows nothing yet."""
    return Owner(path, **{"model": MODEL, "bundle": "b" * 64, "base": new, **options})


def read(path: Path, new: Callable[[], Head] = LDA, **options: Any) -> Reader:
    """A reader of the same."""
    return Reader(path, **{"model": MODEL, "bundle": "b" * 64, "base": new, **options})


@contextmanager
def opened(path: Path, new: Callable[[], Head] = LDA, **options: Any) -> Iterator[Owner]:
    """An owner, closed in the end."""
    owner = own(path, new, **options)
    try:
        yield owner
    finally:
        owner.close()


def crashed(path: Path, place: Path) -> Path:
    """A copy of a state file and its companion, as a process leaves them that dies now."""
    place.mkdir(exist_ok=True)
    for name in (path.name, f"{path.name}-wal"):
        (place / name).unlink(missing_ok=True)
        if path.with_name(name).exists():
            shutil.copy(path.with_name(name), place / name)
    return place / path.name


class Bomb:
    """Raises when the n-th line of the runtime's own code is about to run; counts them meanwhile.

    Args:
        at: n, from 0; a negative one never raises.
        error: what is raised.
        opcodes: count bytecodes, not lines.
        only: count only where this is true of the code's file name.
    """

    def __init__(
        self,
        at: int,
        error: type[BaseException] = KeyboardInterrupt,
        opcodes: bool = False,
        only: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.at = at
        self.error = error
        self.kind = "opcode" if opcodes else "line"
        self.only = only
        self.count = 0
        self.place = ""
        self.passed: set[str] = set()

    def __enter__(self) -> Bomb:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(RUNTIME) or not self.only(name):
            return None
        self.passed.add(frame.f_code.co_name)
        frame.f_trace_opcodes = self.kind == "opcode"
        return self._step

    @staticmethod
    def _halfway(frame: FrameType) -> bool:
        """In the middle of a call's arguments, where nothing is ever raised and Python 3.11 goes astray."""
        return dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("PRECALL", "CALL")

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == self.kind and not (event == "opcode" and self._halfway(frame)):
            self.count += 1
            if self.count == self.at + 1:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise self.error(f"line {self.at}")
        return self._step
