"""Where a learner, its state and its bundle may be, and how long they are there."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from everlearn_runtime import BundleError, EdgeLearner, StateError

from ..conftest import MakeImages


def test_a_process_that_goes_elsewhere_still_goes_back_to_the_bundles_own_head(
    bundle: Path, tmp_path: Path, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with EdgeLearner.open(bundle.name, state="device.db", threads=1) as learner:
        learner.learn(make_images("key"), ["key"] * 4)
        monkeypatch.chdir("elsewhere")
        learner.rollback(to=0)
        assert learner.classes == ("mug", "pen")


def test_a_bundle_that_is_gone_is_not_called_a_damaged_state(
    bundle: Path, tmp_path: Path, make_images: MakeImages
) -> None:
    with EdgeLearner.open(bundle, state=tmp_path / "device.db", threads=1) as learner:
        learner.learn(make_images("key"), ["key"] * 4)
        shutil.move(bundle, tmp_path / "moved")
        with pytest.raises(BundleError, match=r"head\.safetensors cannot be read"):
            learner.rollback(to=0)
        assert learner.learn(make_images("key"), ["key"] * 4).number == 2


def test_a_time_out_in_the_middle_of_the_graph_is_passed_on(
    bundle: Path, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def run(self, *arguments: object) -> None:
            raise TimeoutError("a signal handler's")

    with EdgeLearner.open(bundle, threads=1) as learner:
        with monkeypatch.context() as patch:
            patch.setattr(learner._deployed.backend, "_session", Session())
            with pytest.raises(TimeoutError):
                learner.learn(make_images("key"), ["key"] * 4)
        assert learner.learn(make_images("key"), ["key"] * 4).number == 1


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_learner_is_not_copied(learner: EdgeLearner, make_images: MakeImages, take: Any) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        take(learner)
    assert learner.learn(make_images("key"), ["key"] * 4).number == 1


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.skipif(sys.platform == "win32", reason="names of another kind")
def test_names_that_no_state_can_have(bundle: Path, tmp_path: Path, read_only: bool) -> None:
    (tmp_path / "round").symlink_to(tmp_path / "and-round")
    (tmp_path / "and-round").symlink_to(tmp_path / "round")
    for name, error, says in (
        ("round", StateError, "symbolic links|no such state"),
        ("x" * 300, StateError, "File name too long"),
        ("x" * 253, StateError, "File name too long|no such state"),
        ("x" * 235, StateError, "File name too long|no such state"),
        ("a\0b", ValueError, "which no file can be called"),
        ("\ud800", ValueError, "which no file can be called"),
    ):
        with pytest.raises(error, match=says):
            EdgeLearner.open(bundle, state=os.path.join(tmp_path, name), read_only=read_only)
    assert not list(tmp_path.glob("x*"))


def test_what_calls_a_learner_after_the_end_is_told_that_it_is_closed(bundle: Path, tmp_path: Path) -> None:
    """What was registered before the learner was opened comes after it was closed."""
    script = (
        "import atexit, sys, everlearn_runtime\n"
        "def late():\n"
        "    for call in (lambda: learner.version, lambda: learner.forget('pen'), learner.history):\n"
        "        try: call()\n"
        "        except ValueError as error: print(error)\n"
        "atexit.register(late)\n"
        "learner = everlearn_runtime.EdgeLearner.open(sys.argv[1], state=sys.argv[2], threads=1)\n"
    )
    command = [sys.executable, "-c", script, str(bundle), str(tmp_path / "device.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["this learner is closed; open the bundle again"] * 3, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="names of another kind")
def test_places_that_no_backup_can_have(learner: EdgeLearner, tmp_path: Path) -> None:
    (tmp_path / "old-wal").write_bytes(b"of another state")
    for path, says in (
        (None, "path is None; give a path"),
        (os.fsencode(tmp_path / "copy"), "path is b'.*; give a path"),
        ("a\0b", "which no file can be called"),
        ("\ud800", "which no file can be called"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / ("x" * 240), "File name too long"),
        (tmp_path / "old", "old-wal exists; give another path"),
    ):
        with pytest.raises(ValueError, match=says):
            learner.backup(path)  # type: ignore[arg-type]
    learner.backup(tmp_path / "copy")
