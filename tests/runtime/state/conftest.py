"""States small enough to see every stage of a snapshot."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from everlearn_runtime import Head

from .harness import HEADS


@pytest.fixture(params=HEADS, ids=str)
def new(request: pytest.FixtureRequest) -> Callable[[], Head]:
    """A head of every kind."""
    name: str = request.param
    return HEADS[name]


@pytest.fixture
def folds_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots every few changes, in pieces of a few bytes."""
    module = "everlearn_runtime.state"
    monkeypatch.setattr(f"{module}.folding.fold_bytes", lambda size: 700)
    monkeypatch.setattr(f"{module}.file.CHECKPOINT_BYTES", 20_000)
    monkeypatch.setattr(f"{module}.folding.PIECE_BYTES", 128)
    monkeypatch.setattr(f"{module}.pruning.ROWS", 2)


@pytest.fixture
def small_heap() -> None:
    """What is there before a test is not looked at by the collector any more: after thousands of tests that
    takes half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def leftovers() -> Iterator[None]:
    """What interrupts have left open is noticed in the module that left it, not in the next one."""
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()
