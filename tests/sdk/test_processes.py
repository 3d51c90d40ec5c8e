"""Two processes on CPUs train what one trains."""

import os
import runpy
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from everlearn import Learner, processes
from everlearn.checkpoint import FILE
from everlearn_runtime import MissingExtra

from .scenarios import SCENARIOS, Numbers, frozen, trained, watched

LIMIT = 150  # seconds after which two processes count as hanging


class Launched:
    """What `scenarios.py` gave under `accelerate launch`, and the folder in which it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, scenario: str) -> tuple[Numbers, Numbers]:
        """The numbers of the main process, and of the other."""
        with (
            np.load(self.folder / f"{scenario}-0.npz") as main,
            np.load(self.folder / f"{scenario}-1.npz") as other,
        ):
            return dict(main), dict(other)

    def said(self, scenario: str, name: str) -> tuple[str, str]:
        main, other = self.of(scenario)
        return str(main[f"own {name}"]), str(other[f"own {name}"])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Accelerate starts several processes by --multi_gpu alone; on a CPU they train all the same.
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", port]
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *options,
            "-m",
            "tests.sdk.scenarios",
            str(folder),
        ],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that a hanging launcher is stopped with what it started
    )
    try:
        said, _ = launcher.communicate(timeout=LIMIT)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.communicate()
    assert launcher.returncode == 0, said
    return Launched(folder)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_both_hold_the_same_to_the_bit(two: Launched, scenario: str) -> None:
    main, other = two.of(scenario)
    assert main.keys() == other.keys()
    for name in main:
        if not name.startswith("own"):
            assert main[name].dtype == other[name].dtype
            assert main[name].tobytes() == other[name].tobytes(), name


def test_a_head_on_frozen_features_is_that_of_one_process_to_the_bit(two: Launched, tmp_path: Path) -> None:
    main, _ = two.of("frozen")
    one = frozen(tmp_path)
    assert "head.means" in one
    assert main.keys() == one.keys()
    for name in one:
        assert main[name].tobytes() == one[name].tobytes(), name


def test_training_gives_the_weights_and_the_head_of_one_process(two: Launched, tmp_path: Path) -> None:
    main, _ = two.of("trained")
    one = trained(tmp_path)
    assert {name.split(".")[0] for name in one} == {"accuracy", "head", "method"}
    for name in one:
        np.testing.assert_allclose(main[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(two: Launched) -> None:
    (main, _), (whole, _) = two.of("stopped"), two.of("trained")
    assert main["epochs"] == 1
    assert {name: array.tobytes() for name, array in whole.items()} == {
        name: main[name].tobytes() for name in whole
    }


def test_when_one_is_interrupted_both_stop_and_are_as_they_were(two: Launched) -> None:
    main, other = two.said("stopped", "raised")
    assert other.startswith("KeyboardInterrupt")
    assert main.startswith("ElsewhereError: process 1 stopped: KeyboardInterrupt")
    assert two.of("stopped")[0]["undone"]


def test_other_data_in_one_process_are_refused(two: Launched) -> None:
    main, other = two.said("mistaken", "raised")
    assert other.startswith("ValueError: the labels of this task are not those of the main process")
    assert main == f"ElsewhereError: process 1 stopped: {other}"
    assert two.of("mistaken")[0]["undone"]


def test_one_writes_the_files(two: Launched) -> None:
    assert {file.name for file in (two.folder / "by 0").iterdir()} == {FILE, "run.json", "log.csv"}
    assert not (two.folder / "by 1").exists()
    assert Learner.load(two.folder / "by 0").classes == ("a", "b", "c", "d")


def test_random_numbers_differ_and_the_main_process_draws_those_of_one(two: Launched, tmp_path: Path) -> None:
    (main, other), one = two.of("watched"), watched(tmp_path)
    assert len(set(main["own drawn"]) | set(other["own drawn"])) == 2 * len(main["own drawn"])
    assert main["own drawn"][0] == one["own drawn"][0]


def test_the_command_line_says_everything_once(two: Launched) -> None:
    main, other = two.of("typed")
    assert [int(main[f"{name} code"]) for name in ("broken", "mended")] == [2, 0]
    out, _ = two.said("typed", "mended out")
    assert [line.split()[0] for line in out.splitlines()] == ["after", "1", "average"]
    err, _ = two.said("typed", "broken err")
    table, row, mistake = err.splitlines()
    assert table.endswith(": not used are")
    assert row.split()[:2] == ["broken", "1"]
    assert mistake.startswith("everlearn: 1 of ")
    assert "cannot be read: b/099.png (not a readable image" in mistake
    assert [str(other[f"own {name}"]) for name in ("broken out", "broken err", "mended out")] == [""] * 3


def test_python_m_is_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m everlearn", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("everlearn", run_name="__main__")
    assert stop.value.code == 0
    assert "usage: everlearn" in capsys.readouterr().out


@pytest.mark.parametrize("size", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_even_and_make_up_the_whole(
    monkeypatch: pytest.MonkeyPatch, size: int, count: int
) -> None:
    monkeypatch.setattr(processes, "count", lambda: count)
    parts: list[int] = []
    lengths = []
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", partial(int, rank))
        part = processes.share(range(size))
        parts += part
        lengths.append(len(part))
    assert parts == list(range(size))
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


def test_only_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    assert processes.join("cpu").type == "cpu"
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MissingExtra, match=r"training with several processes needs: pip install"):
        processes.join("cpu")
