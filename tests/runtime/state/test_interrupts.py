"""Whatever is raised, wherever: file and head are before the change or after it, together."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from everlearn_runtime import Head
from everlearn_runtime.state import Owner

from .harness import HEADS, TORTURE, Bomb, adapt, bits, crashed, opened, own, rows, whole

# An interrupt in a destructor goes nowhere, as CPython says.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("leftovers"),
]

Change = Callable[[Owner], Any]

CHANGES: dict[str, Change] = {
    "learn one": lambda owner: owner.learn(rows(1, seed=7), ["b"]),
    "learn a new class": lambda owner: owner.learn(rows(5, seed=8), [*"abxyx"]),
    "forget": lambda owner: owner.forget("b"),
    "adapt": adapt,
    "rollback": lambda owner: owner.rollback(2),
    "undo": lambda owner: owner.undo(),
    "purge": lambda owner: owner.purge("a"),
}
# A change that begins a snapshot, one that goes on with it, one that ends it, and one that
# deletes what is not needed any more.
FOLDS = range(8)


def prepare(path: Path, new: Callable[[], Head], further: int) -> None:
    """A closed state that has a history; with ``further`` changes, in some stage of a snapshot."""
    with opened(path, new) as owner:
        owner.learn(rows(12, seed=1), [*"abcd"] * 3)
        owner.learn(rows(1, seed=2), ["a"])
        owner.forget("c")
        for number in range(3 + further):
            owner.learn(rows(1, seed=10 + number), ["abc"[number % 3]])


@contextmanager
def interrupts() -> Iterator[None]:
    """What a bomb raises goes no further, nor what was raised because of it."""
    try:
        yield
    except BaseException as error:
        # CPython 3.11 takes the wrong thing from its stack when a trace function raises while a `with`
        # block is left; no interrupt of the real world comes at that place.
        if not is_interrupt(error) and str(error) != "'traceback' object is not callable":
            raise


def is_interrupt(error: BaseException | None) -> bool:
    if error is None or isinstance(error, (KeyboardInterrupt, MemoryError)):
        return error is not None
    return is_interrupt(error.__context__)


def warm_up(owner: Owner, changes: int) -> None:
    for number in range(changes):
        owner.learn(rows(1, seed=30 + number), ["a"])


def try_everywhere(
    tmp_path: Path,
    new: Callable[[], Head],
    change: Change,
    further: int,
    stride: int,
    warm: int = 0,
    **options: Any,
) -> int:
    """Raise at every line of a change, and compare. Returns how many lines there were.

    ``warm`` changes come before it in the same process: the first ones of a process only tidy up.
    """
    ready, path = tmp_path / "ready.db", tmp_path / "s.db"
    prepare(ready, new, further)
    shutil.copy(ready, path)
    with opened(path, new, retention=1000) as owner:
        warm_up(owner, warm)
        before = whole(owner)
        with Bomb(-1, **options) as bomb:
            change(owner)
        after = whole(owner)
        lines = bomb.count
    assert lines > 20
    for at in range(stride // 2 if stride > 1 else 0, lines, stride):
        shutil.copy(ready, path)
        owner = own(path, new, retention=1000)
        warm_up(owner, warm)
        with Bomb(at, **options) as bomb, interrupts():
            change(owner)
        left = crashed(path, tmp_path / "left")
        found = whole(owner)
        assert found in (before, after), (at, bomb.place)
        with opened(left, new) as again:
            assert whole(again) == found, (at, bomb.place)
        if found == before:
            change(owner)
        owner.learn(rows(2, seed=9), ["a", "z"])
        found = whole(owner)
        assert found[0] == after[0] + 1
        owner.close()
        with opened(path, new) as again:
            assert whole(again) == found, (at, bomb.place)
    return lines


# Every line of every change for every head is `make torture`; here a sample, with all heads and all changes.
EVERYTHING = [(kind, name) for kind in HEADS for name in CHANGES]
SAMPLE = [
    (kind, name)
    for place, (kind, name) in enumerate(EVERYTHING)
    if kind == "lda" or place % len(CHANGES) == place // len(CHANGES) % len(CHANGES)
]


@pytest.mark.parametrize(("kind", "name"), EVERYTHING if TORTURE else SAMPLE)
def test_an_interrupt_at_any_line(tmp_path: Path, kind: str, name: str) -> None:
    try_everywhere(tmp_path, HEADS[kind], CHANGES[name], 0, stride=1 if TORTURE else 41)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("further", [0, 1])
def test_who_closes_right_after_an_interrupt_finds_it_before_or_after(
    tmp_path: Path, name: str, further: int
) -> None:
    """As a `with` does: nothing is asked in between, which would build the head anew from the file."""
    ready, path, new, change = tmp_path / "ready.db", tmp_path / "s.db", HEADS["prototypes"], CHANGES[name]
    prepare(ready, new, further)
    shutil.copy(ready, path)
    with opened(path, new) as owner:
        before = whole(owner)
        with Bomb(-1) as counted:
            change(owner)
        after = whole(owner)
    for at in range(0, counted.count, 1 if TORTURE else 5):
        shutil.copy(ready, path)
        owner = own(path, new)
        with Bomb(at) as bomb, interrupts():
            change(owner)
        owner.close()
        with opened(path, new) as again:
            assert whole(again) in (before, after), (at, bomb.place)


@pytest.mark.parametrize("kind", HEADS if TORTURE else ["lda", "ridge_projected"])
def test_no_memory_at_any_line(tmp_path: Path, kind: str) -> None:
    change = CHANGES["learn a new class"]
    try_everywhere(tmp_path, HEADS[kind], change, 0, stride=1 if TORTURE else 41, error=MemoryError)


@pytest.mark.parametrize("further", FOLDS)
@pytest.mark.parametrize("kind", HEADS if TORTURE else ["lda", "aggregate"])
def test_an_interrupt_at_any_line_of_a_fold(
    tmp_path: Path, folds_early: None, kind: str, further: int
) -> None:
    try_everywhere(tmp_path, HEADS[kind], CHANGES["learn one"], further, 1 if TORTURE else 41, warm=2)


def test_those_changes_go_through_every_stage_of_a_fold(tmp_path: Path, folds_early: None) -> None:
    passed: set[str] = set()
    for further in FOLDS:
        path = tmp_path / f"{further}.db"
        prepare(path, HEADS["lda"], further)
        with opened(path, retention=1000) as owner:
            warm_up(owner, 2)
            with Bomb(-1) as bomb:
                owner.learn(rows(1), ["b"])
        passed |= bomb.passed
    assert passed >= {"begin", "write", "go_on", "tidy", "prune", "sweep"}


@pytest.mark.parametrize("stage", ["new", "closed", "died"])
def test_an_interrupt_while_it_is_opened(tmp_path: Path, small_heap: None, stage: str) -> None:
    ready, path = tmp_path / "ready.db", tmp_path / "s" / "s.db"
    path.parent.mkdir()
    prepare(ready, HEADS["lda"], 3)
    dead = own(ready)
    dead.learn(rows(1), ["b"])
    wanted = (0, bits(HEADS["lda"]())) if stage == "new" else (dead.version, bits(dead.head))
    if stage == "closed":
        dead.close()

    def lay_out() -> None:
        for entry in path.parent.iterdir():
            entry.unlink()
        if stage != "new":
            shutil.copy(crashed(ready, tmp_path / "left"), path)
        if stage == "died":
            shutil.copy(tmp_path / "left" / "ready.db-wal", path.with_name("s.db-wal"))

    lay_out()
    with Bomb(-1) as bomb:
        owner = own(path)
    owner.close()
    for at in range(0, bomb.count, 1 if TORTURE else 29):
        lay_out()
        kept: BaseException | None = None
        try:
            with Bomb(at):
                owner = own(path)
            owner.close()
        except BaseException as error:
            if not is_interrupt(error):
                raise
            kept = error  # and with it all that was made on the way
        with opened(path) as again:
            assert (again.version, bits(again.head)) == wanted, (at, kept)
            again.learn(rows(1), ["b"])
        del kept
        gc.collect()
        own(path).close()
        assert [entry.name for entry in path.parent.iterdir()] == ["s.db"], at
    dead.close()


@pytest.mark.parametrize("again", [True, False])
def test_an_interrupt_while_it_is_closed(tmp_path: Path, small_heap: None, again: bool) -> None:
    """It is closed again, or left to the collector; both while the next one has the file, and before."""
    ready, path = tmp_path / "ready.db", tmp_path / "s" / "s.db"
    path.parent.mkdir()
    prepare(ready, HEADS["lda"], 3)

    def learned() -> Owner:
        shutil.copy(ready, path)
        owner = own(path)
        owner.learn(rows(1), ["b"])
        return owner

    owner = learned()
    wanted = whole(owner)
    with Bomb(-1, opcodes=TORTURE) as bomb:
        owner.close()
    assert bomb.count > 40
    for at in range(0, bomb.count, 1 if TORTURE else 13):
        owner = learned()
        with Bomb(at, opcodes=TORTURE) as bomb, interrupts():
            owner.close()
        if again:
            owner.close()
        left = [owner]
        left.append(left)  # type: ignore[arg-type]  # a cycle, as tracebacks make them
        del owner, left
        if not again:
            gc.collect()
        with opened(path) as owner:
            assert whole(owner) == wanted, bomb.place
            owner.learn(rows(1), ["c"])
            gc.collect()
            owner.learn(rows(1), ["c"])
            after = whole(owner)
        with opened(path) as owner:
            assert whole(owner) == after, bomb.place
        assert [entry.name for entry in path.parent.iterdir()] == ["s.db"]


def test_an_interrupt_that_is_still_being_handled(tmp_path: Path) -> None:
    """What was interrupted lives on as long as its traceback, with whatever it has open."""
    ready, path = tmp_path / "ready.db", tmp_path / "s.db"
    prepare(ready, HEADS["lda"], 0)
    shutil.copy(ready, path)
    with opened(path) as owner, Bomb(-1) as bomb:
        owner.purge("a")
    kept: list[BaseException] = []
    for at in range(0, bomb.count, 1 if TORTURE else 23):
        shutil.copy(ready, path)
        owner = own(path)
        try:
            with Bomb(at):
                owner.purge("a")
        except KeyboardInterrupt as error:
            kept.append(error)
            if "a" in owner.head.classes:
                owner.purge("a")
            owner.learn(rows(1), ["b"])
        wanted = bits(owner.head)
        kept.clear()  # and now it is gone
        owner.learn(rows(1), ["b"])
        owner.undo()
        assert bits(owner.head) == wanted, bomb.place
        owner.close()
        with opened(path) as owner:
            assert bits(owner.head) == wanted
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ready.db", "s.db"]
