"""What training says of itself: lines, log.csv, TensorBoard and Python's logging."""

import csv
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from everlearn import NTKCL, ClassIncremental, Frozen, Learner, log, progress
from everlearn.cli import commands, main
from everlearn_runtime.errors import MissingExtra

from ..conftest import Clock, coloured, vit

Output = pytest.CaptureFixture[str]
Strings = list[dict[str, str]]


def make(method: Any = None, **options: Any) -> Learner:
    quick: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.05, "device": "cpu"} | options
    return Learner(vit(), method or NTKCL(), **quick)


def table(folder: Path) -> Strings:
    with (folder / "log.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_every_run_has_a_log(tmp_path: Path) -> None:
    images = coloured("abcd", 4)
    learner = make()
    matrix = learner.run(ClassIncremental(images, images, 2), checkpoint=tmp_path)
    rows = table(tmp_path)
    assert [(row["task"], row["epoch"]) for row in rows] == [
        *(("1", "1"), ("1", "2"), ("1", "")),
        *(("2", "1"), ("2", "2"), ("2", "")),
    ]
    assert list(rows[0])[:5] == ["task", "epoch", "lr", "seconds", "loss"]
    assert list(rows[0])[-3:] == ["images", "classes", "accuracy"]
    terms = list(rows[0])[5:-3]
    assert terms
    for row in rows[:2]:
        assert float(row["loss"]) == pytest.approx(sum(float(row[name] or 0) for name in terms), rel=1e-4)
    assert [float(rows[i]["lr"]) for i in (0, 1)] == pytest.approx([0.05, 0.025])
    assert [float(rows[i]["accuracy"]) for i in (2, 5)] == pytest.approx(matrix.seen, rel=1e-4)
    assert (rows[5]["images"], rows[5]["classes"], rows[5]["loss"]) == ("8", "2", "")


def test_what_is_logged_is_the_mean_of_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, losses = make(epochs=1, batch_size=3), []
    step = learner._step

    def watched(optimizer: Any, images: Any, targets: Any) -> dict[str, float]:
        terms = step(optimizer, images, targets)
        losses.append((len(images), sum(terms.values())))
        return terms

    monkeypatch.setattr(learner, "_step", watched)
    learner.fit(coloured("ab", 4), checkpoint=tmp_path)
    assert [size for size, _ in losses] == [3, 3, 2]
    expected = sum(size * loss for size, loss in losses) / 8
    assert float(table(tmp_path)[0]["loss"]) == pytest.approx(expected, rel=1e-5)


def test_after_an_interrupt_each_epoch_is_there_once(tmp_path: Path) -> None:
    images = coloured("ab", 4)
    whole = make(epochs=3).fit(images, checkpoint=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        make(epochs=3).fit(Clock(30).watch(images), checkpoint=tmp_path / "run")
    done = len(table(tmp_path / "run"))
    assert 0 < done < 4
    learner = Learner.load(tmp_path / "run", backbone=vit(), device="cpu")
    learner.fit(images, checkpoint=tmp_path / "run")
    assert learner.classes == whole.classes
    once, again = table(tmp_path / "whole"), table(tmp_path / "run")
    for name in ("task", "epoch", "lr", "loss"):
        assert [row[name] for row in again] == [row[name] for row in once]
    make(Frozen()).fit(images, checkpoint=tmp_path / "whole")  # another run in its place
    assert len(table(tmp_path / "whole")) == 1


def test_a_log_that_is_no_log_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"task,epoch\nx,\xff\n")
    log.add(tmp_path, {"task": 1, "epoch": 2, "loss": 0.5})
    log.add(tmp_path, {"task": 1, "epoch": 1, "loss": 0.7})
    log.add(tmp_path, {"task": 1, "accuracy": 0.9})
    log.add(tmp_path, {"task": 1, "images": 12})
    assert log.read(tmp_path) == [
        {"task": 1, "epoch": 1, "loss": 0.7},
        {"task": 1, "images": 12, "accuracy": 0.9},
    ]


def test_listeners_and_logging_hear_the_same(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[log.Row] = []
    learner = make(epochs=1)
    learner.listeners.append(heard.append)
    with caplog.at_level(logging.INFO, "everlearn"):
        learner.fit(coloured("ab", 4))
    assert ["loss" in row for row in heard] == [True, False]
    assert heard[1] == {"task": 1, "images": 8, "classes": 2, "seconds": learner.history[0].seconds}
    said = [record.getMessage() for record in caplog.records if record.name == "everlearn.learner"]
    assert [line.split(",")[0] for line in said] == ["task 1", "task 1"]
    assert f"loss {heard[0]['loss']:.4g}" in said[0]


def test_lines_where_there_is_no_terminal(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    make(epochs=1, progress=True).fit(coloured("ab", 4))
    lines = capsys.readouterr().err.splitlines()
    training = [line for line in lines if line.startswith("task 1, epoch 1/1, step ")]
    assert training[0].startswith("task 1, epoch 1/1, step 1/2, ")
    assert " left" in training[0]
    assert " left" not in training[-1]
    assert any(line.startswith("features, batch 1/1; ") for line in lines)
    make(epochs=1).fit(coloured("ab", 4))
    make(epochs=1, progress=False).fit(coloured("ab", 4))
    assert capsys.readouterr().err == ""


def test_lines_come_every_ten_seconds(capsys: Output) -> None:
    now = iter(range(0, 1000, 4))
    pace = progress.Pace(20, clock=lambda: float(next(now)))
    assert list(progress.Lines(range(10), "work", "item", pace, show=True)) == list(range(10))
    said = [line.split(";")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["work, item 3/10", "work, item 5/10", "work, item 7/10", "work, item 9/10"]


def test_the_command_says_how_far_it_is(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (image, label) in enumerate(coloured("abcd", 4)):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "data" / label / f"{number}.png")
    monkeypatch.setattr(commands, "load_backbone", lambda name, *, weights: vit())
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert Path(folder) == tmp_path / "run" / "tensorboard"

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None: ...

    stand_in = ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    quick = ["--epochs", "2", "--batch-size", "8", "--lr", "0.05", "--classes-per-task", "2", "--tensorboard"]
    assert main(["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *quick]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("task ")]
    assert lines[0].startswith("task 1 of 2: ")
    assert " left" in lines[0]
    assert lines[1].startswith("task 2 of 2: ")
    losses = [step for name, _, step in written if name == "train/loss"]
    assert losses == [1, 2, 3, 4]
    rows = table(tmp_path / "run")
    accuracies = [(value, step) for name, value, step in written if name == "task/accuracy"]
    assert [step for _, step in accuracies] == [1, 2]
    assert accuracies[1][0] == pytest.approx(float(rows[-1]["accuracy"]), rel=1e-4)


def test_without_tensorboard_one_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r'^--tensorboard needs: pip install "everlearn\[tensorboard\]"$'):
        log.tensorboard(tmp_path)
