"""What lies around a state: its folder, its rights, files beside it, and the bundle that it goes with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from everlearn_runtime.state.copies import NewFile

from .harness import opened, rows


def test_a_state_whose_name_begins_like_a_leftover_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "shell-new-york.db"
    with opened(other) as owner:
        owner.learn(rows(4), list("aabb"))
    left = NewFile(tmp_path / "shell", like=tmp_path / "shell")
    left.database.close()
    left.lock.release()
    assert len(list(tmp_path.iterdir())) == 2
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
