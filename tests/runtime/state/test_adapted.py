"""Adapters in a state: kept with the head, to the bit, wherever the head is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from everlearn_runtime import LDA, Head, StateError
from everlearn_runtime.state.adapted import Adapters

from .harness import adapt, bits, crashed, opened, own, read, rows, whole

NewHead = Callable[[], Head]


def test_it_is_a_version_like_any_other(tmp_path: Path, new: NewHead) -> None:
    path = tmp_path / "s.db"
    with opened(path, new) as owner:
        seen = [whole(owner)]
        owner.learn(rows(12, seed=1), [*"abcd"] * 3)
        seen.append(whole(owner))
        for seed in (1, 2):
            adapt(owner, seed)
            seen.append(whole(owner))
        owner.learn(rows(6, seed=3), [*"abz"] * 2)
        seen.append(whole(owner))
        told = owner.history()
        assert [version.kind for version in told] == ["start", "learn", "adapt", "adapt", "learn"]
        assert told[2].counts == {"a": 1, "b": 1}
        assert len({ids for _, _, ids in seen}) == 3
        for version, before, ids in reversed(seen):
            owner.rollback(version)
            assert whole(owner)[1:] == (before, ids)
    with opened(path, new) as owner:
        owner.rollback(3)
        assert whole(owner)[1:] == seen[3][1:]
        assert owner.adapters is not None
        assert owner.adapters.times == 2


def test_undo_takes_it_back(tmp_path: Path) -> None:
    with opened(tmp_path / "s.db") as owner:
        owner.learn(rows(12, seed=1), [*"abcd"] * 3)
        before = bits(owner.head)
        adapt(owner)
        owner.undo()
        assert owner.adapters is None
        assert bits(owner.head) == before
        owner.undo()
        assert owner.head.classes == ()


def test_snapshots_and_readers_have_them(tmp_path: Path, new: NewHead, folds_early: None) -> None:
    path = tmp_path / "s.db"
    with opened(path, new, retention=0) as owner:
        reader = read(path, new)
        for number in range(50):
            owner.learn(rows(1 + number % 3, seed=number), [*"abc"][: 1 + number % 3])
            if number % 9 == 8:
                adapt(owner, number)
            if number % 13 == 12:
                owner.undo()
            if number == 40:
                owner.purge("c")
            assert whole(reader) == whole(owner)
            if number % 7 == 6:
                with opened(crashed(path, tmp_path / "left"), new) as again:
                    assert whole(again) == whole(owner)
        assert owner.adapters is not None
        before = whole(owner)
    with opened(path, new) as owner:
        assert whole(owner) == before


def test_a_purge_keeps_them_and_leaves_no_name(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with opened(path) as owner:
        owner.learn(rows(12, seed=1), ["a", "b", "c", "secret-name"] * 3)
        adapt(owner)
        assert owner.adapters is not None
        ids = owner.adapters.id
        owner.forget("secret-name")
        owner.purge("secret-name")  # it still stands in the journal, with the adapters too
        assert owner.adapters is not None
        assert owner.adapters.id == ids
    assert b"secret-name" not in path.read_bytes()
    with opened(path) as owner:
        assert owner.adapters is not None
        assert owner.adapters.id == ids


def test_a_class_that_only_an_adapted_head_names_is_purged(tmp_path: Path, folds_early: None) -> None:
    path = tmp_path / "s.db"
    with opened(path, retention=0) as owner:
        owner.learn(rows(12, seed=1), ["a", "b", "c", "secret-name"] * 3)
        adapt(owner)
        owner.forget("secret-name")
        owner.purge("secret-name")
        with pytest.raises(ValueError, match="no class 'secret-name'"):
            owner.purge("secret-name")


def test_a_backup_has_them(tmp_path: Path) -> None:
    with opened(tmp_path / "s.db") as owner:
        owner.learn(rows(12, seed=1), [*"abcd"] * 3)
        adapt(owner)
        job = owner.backup(tmp_path / "copy.db")
        while not job.step():
            pass
        with opened(tmp_path / "copy.db") as copied:
            assert whole(copied) == whole(owner)
            copied.undo()
            assert copied.adapters is None


def test_a_damaged_entry_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    owner = own(path)
    owner.learn(rows(12, seed=1), [*"abcd"] * 3)
    adapt(owner)
    assert owner.adapters is not None
    value = np.ascontiguousarray(owner.adapters.values["up"]).tobytes()[:16]
    owner.close()
    contents = path.read_bytes()
    assert value in contents
    path.write_bytes(contents.replace(value, bytes(16)))
    shutil.copy(path, tmp_path / "kept.db")
    with pytest.raises(StateError, match="checksum"):
        own(path)
    assert path.read_bytes() == (tmp_path / "kept.db").read_bytes()


def test_a_reader_does_not_adapt(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with opened(path) as owner:
        owner.learn(rows(4, seed=1), [*"abcd"])
        with pytest.raises(StateError, match="read_only"):
            read(path).adapt(LDA(), Adapters({}, 1), ["a"])
