"""What the command line says of itself, and of what lies in a folder, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import everlearn
import everlearn_export
import everlearn_runtime
from everlearn import ClassIncremental, Frozen, Learner
from everlearn.bench import bench
from everlearn.cli import main
from everlearn.evaluation.runner import measure
from everlearn.files import RUN

from ..conftest import coloured, vit

Output = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three classes in two tasks."""
    images = coloured(["杯", "pen", "key"], 4)
    learner = Learner(vit(), Frozen(), device="cpu", progress=False, seed=5)
    measure(learner, ClassIncremental(images, images, 2, seed=1), folder=tmp_path / "run")
    return tmp_path / "run"


def info(path: Path, capsys: Output) -> dict[str, object]:
    assert main(["info", str(path), "--json"]) == 0
    said: dict[str, object] = json.loads(capsys.readouterr().out)
    return said


def test_info_of_a_run(run: Path, capsys: Output) -> None:
    said = info(run, capsys)
    learner = Learner.load(run, backbone=vit(), device="cpu")
    assert (said["what"], said["method"], said["head"]) == ("run", "Frozen", "whitened_cosine")
    assert said["classes"] == list(learner.classes)
    assert (said["tasks"], said["images"], said["seed"], said["unfinished"]) == (2, 12, 5, None)
    assert said["training"]["epochs"] == learner.training.epochs  # type: ignore[index]
    assert said["measured"] == "2 of 2 tasks"
    assert 0 <= said["A_T"] <= 1  # type: ignore[operator]
    (run / RUN).unlink()
    assert "measured" not in info(run, capsys)
    (run / "learner.safetensors").write_bytes(b"damaged")
    assert main(["info", str(run)]) == 2
    assert "is damaged or no saved learner" in capsys.readouterr().err


def test_info_of_a_benchmark_and_of_a_bundle(tmp_path: Path, run: Path, capsys: Output) -> None:
    images = coloured("ab", 3)
    settings = {"methods": ["Frozen"], "seeds": [0, 3], "backbone": vit(), "device": "cpu"}
    bench(images, images, tmp_path / "bench", classes_per_task=1, **settings)  # type: ignore[arg-type]
    said = info(tmp_path / "bench", capsys)
    assert (said["what"], said["runs"]) == ("benchmark", 2)
    assert set(said["A_T"]) == {"Frozen, seed 0", "Frozen, seed 3"}  # type: ignore[call-overload]
    Learner.load(run, backbone=vit(), device="cpu").export(tmp_path / "bundle")
    said = info(tmp_path / "bundle", capsys)
    assert (said["what"], said["method"], said["precision"]) == ("bundle", "Frozen", "fp32")
    assert main(["info", str(tmp_path / "nothing")]) == 2
    assert "nothing: no such file or folder" in capsys.readouterr().err


def test_a_terminal_without_the_letters(run: Path) -> None:
    plain = {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "everlearn", "info", str(run)]
    done = subprocess.run(command, env=plain, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n\\u676f" in done.stdout


def test_one_version_of_all(capsys: Output) -> None:
    version = everlearn_runtime.__version__
    assert everlearn.__version__ == everlearn_export.__version__ == version
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"everlearn {version}\n"


@pytest.mark.parametrize("command", ["", "train", "bench", "report", "export", "info", "predict"])
def test_every_help_has_an_example(command: str, capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main([*([command] if command else []), "--help"])
    assert f"example:\n  everlearn {command}" in capsys.readouterr().out


def test_the_default_crop_is_the_one_that_help_names(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"of an image; default: {everlearn.Augmentation().scale[0]} " in said
