"""What lies around a state: its folder, its rights, files beside it, and the bundle that it goes with."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from everlearn_runtime.errors import StateError
from everlearn_runtime.heads.checks import check_labels, check_rows
from everlearn_runtime.state import Owner, Reader
from everlearn_runtime.state.copies import NewFile

from .harness import Bomb, opened, own, read, rows


def test_a_state_whose_name_begins_like_a_leftover_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "shell-new-york.db"
    with opened(other) as owner:
        owner.learn(rows(4), list("aabb"))
    left = NewFile(tmp_path / "shell", like=tmp_path / "shell")
    left.database.close()
    left.lock.release()
    assert len(list(tmp_path.iterdir())) == 2
    for orphan in ("shell-new-0123456789abcdef-journal", "shell-new-fedcba9876543210-wal"):
        (tmp_path / orphan).write_bytes(b"of a writer that was killed")
    with opened(tmp_path / "shell"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shell", "shell-new-york.db"]
    with opened(other) as owner:
        assert owner.version == 1


@pytest.mark.skipif(sys.platform == "win32", reason="rights of another kind")
def test_who_could_not_read_a_state_cannot_read_what_takes_its_place(tmp_path: Path) -> None:
    path, copy = tmp_path / "device.db", tmp_path / "copy.db"
    with opened(path) as owner:
        owner.learn(rows(4), list("aabb"))
    path.chmod(0o640)
    with opened(path) as owner:
        owner.purge("a")
        owner.learn(rows(4), list("bbcc"))
        job = owner.backup(copy)
        while not job.step():
            pass
        for made in (path, Path(f"{path}-wal"), copy):
            assert made.stat().st_mode & 0o777 == 0o640, made
        kept = owner.migrate("n" * 64, type(owner.head), owner.head)
        assert kept.stat().st_mode & 0o777 == path.stat().st_mode & 0o777 == 0o640


class Late(Exception):  # noqa: N818
    """What a program's own signal handler raises to end what takes too long."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [Late, TimeoutError, RecursionError])
def test_what_is_raised_from_elsewhere_is_never_called_damage(
    tmp_path: Path, error: type[Exception], folds_early: None
) -> None:
    """At every line on which it may come; whoever reads "delete it to start again" may do so."""
    ready, path = tmp_path / "ready.db", tmp_path / "s.db"
    with opened(ready) as owner:
        for seed in range(8):
            owner.learn(rows(4, seed=seed), list("aabb"))
    calls: list[Callable[[Owner | Reader], object]] = [
        lambda keeper: keeper.history(),
        lambda keeper: keeper.rollback(keeper.history()[0].number),
    ]

    def deep(left: int, call: Callable[[], None]) -> None:
        return deep(left - 1, call) if left else call()

    def every(open_: Callable[[Path], Owner | Reader], call: Callable[[Owner | Reader], object]) -> None:
        for at in range(0, 100_000, 23):
            shutil.copy(ready, path)
            bomb, keeper = Bomb(at, error), None
            try:
                with bomb:
                    keeper = open_(path)
                    with closing(keeper):
                        call(keeper)
            except ValueError as raised:
                if "damaged" in str(raised):
                    raise
            except error:
                pass
            if keeper is not None:  # it may have come before `close` had begun
                keeper.close()
            with opened(path) as owner:
                assert [version.number for version in owner.history()][-1] == owner.version
            if bomb.count <= at:
                return

    for open_, call in ((own, calls[0]), (own, calls[1]), (read, calls[0])):
        # A stack that ends is the caller's doing only where the caller has used it up.
        deep(600 if error is RecursionError else 0, partial(every, open_, call))
    gc.collect()  # what was left open is noticed here, not in the next test


@pytest.mark.parametrize("part", ["", "-wal"])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.9])
def test_a_file_that_is_cut_short_while_in_use_acknowledges_nothing_more(
    tmp_path: Path, part: str, left: float, folds_early: None
) -> None:
    path = tmp_path / "s.db"
    owner = own(path)
    for seed in range(12):
        owner.learn(rows(4, seed=seed), list("aabb"))
    file = Path(f"{path}{part}")
    os.truncate(file, int(left * file.stat().st_size))
    with pytest.raises(StateError, match="was cut short or written over while in use"):
        owner.learn(rows(4), list("aabb"))
    owner.close()


def test_a_copy_written_over_a_state_in_use_is_noticed(tmp_path: Path) -> None:
    path, copy = tmp_path / "s.db", tmp_path / "copy.db"
    with opened(path) as owner:
        owner.learn(rows(4), list("aabb"))
        job = owner.backup(copy)
        while not job.step():
            pass
        os.utime(path)  # which changes nothing
        owner.learn(rows(4), list("aabb"))
        shutil.copyfile(copy, path)
        with pytest.raises(StateError, match="was cut short or written over while in use"):
            owner.learn(rows(4), list("aabb"))


def test_what_is_raised_from_elsewhere_is_not_blamed_on_labels_and_features() -> None:
    at, raised = 0, 1
    while raised:
        with Bomb(at, Late) as bomb, suppress(Late):
            check_labels(["a", "b"])
            check_rows(rows(2))
        at, raised = at + 1, bomb.count > at
    assert at > 20
