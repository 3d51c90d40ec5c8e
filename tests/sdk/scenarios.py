"""What two processes do: `test_processes.py` launches this module, and compares with one process.

Each scenario gives named numbers. They have to be the same in both processes, to the bit, but for
those whose name begins with "own".
"""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everlearn import LDA, NTKCL, Backbone, ClassIncremental, Frozen, Joint, Learner, RanPAC, cli, processes
from everlearn.cli import commands
from everlearn.errors import ElsewhereError
from everlearn.methods.base import TaskInfo

from ..conftest import Clock, coloured, fit_all, make_learner, pixels, state, vit

Numbers = dict[str, NDArray[Any]]

STREAM = ClassIncremental(coloured("abcd", 35), coloured("abcd", 5, seed=1), 2)
TASKS = [coloured("ab", 3).subset(range(5)), coloured("cd", 3)]  # the last steps have 1 and 2 images


def averaging() -> NTKCL:
    """A method whose loss is a mean over images: a batch may be cut anywhere."""
    return NTKCL(dropout=0, dissimilarity=0)


class Watching(NTKCL):
    """Notes random numbers, and keeps a running mean of the images that it trains on."""

    mean: Tensor

    def begin_task(self, task: TaskInfo) -> None:
        super().begin_task(task)
        self.drawn: list[float] = []
        self.register_buffer("mean", torch.zeros(()))

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        self.drawn.append(torch.rand(()).item())
        self.mean.mul_(0.9).add_(images.mean())
        return super().loss(images, targets)


def numbers(learner: Learner) -> Numbers:
    """What a learner has learned."""
    head = {f"head.{name}": array for name, array in learner.head.state().arrays.items()}
    return head | {f"method.{name}": value.numpy() for name, value in learner.method.learned().items()}


def frozen(folder: Path) -> Numbers:
    learner = make_learner(Frozen(), head=LDA())
    matrix = learner.run(STREAM, checkpoint=folder / f"by {processes.rank()}")
    unseen = coloured("abcd", 20, seed=2)
    found = learner.predict(pixels(unseen))
    return numbers(learner) | {
        "accuracy": np.array(json.dumps([matrix.to_dict(), learner.evaluate(unseen)])),
        "predicted": np.array(found),
    }


def trained(folder: Path) -> Numbers:
    learner = fit_all(make_learner(averaging()), TASKS)
    return numbers(learner) | {"accuracy": np.array(learner.evaluate(STREAM[1].test_so_far))}


def stopped(folder: Path) -> Numbers:
    """The last process is interrupted in the second epoch of the second task; then all go on."""
    learner = make_learner(averaging()).fit(TASKS[0])
    before = state(learner)
    # It reads two of the five images of an epoch's first step, and none of the one of its second.
    clock = Clock(3 if processes.rank() else None)
    raised = ""
    try:
        learner.fit(clock.watch(TASKS[1]), checkpoint=folder / "stopped")
    except (KeyboardInterrupt, ElsewhereError) as error:
        raised = f"{type(error).__name__}: {error}"
    undone = state(learner) == before
    learner = Learner.load(folder / "stopped", device="cpu")
    epochs = learner.unfinished.epochs if learner.unfinished else -1
    learner.fit(TASKS[1])
    return numbers(learner) | {
        "accuracy": np.array(learner.evaluate(STREAM[1].test_so_far)),
        "own raised": np.array(raised),
        "undone": np.array(undone),
        "epochs": np.array(epochs),
    }


def mistaken(folder: Path) -> Numbers:
    """The processes are given other data each."""
    learner = make_learner(Frozen())
    before = state(learner)
    try:
        learner.fit(coloured("ab" if processes.is_main() else "ba"))
        raised = ""
    except (ValueError, ElsewhereError) as error:
        raised = f"{type(error).__name__}: {error}"
    return {"own raised": np.array(raised), "undone": np.array(state(learner) == before)}


def watched(folder: Path) -> Numbers:
    learner = make_learner(Watching()).fit(coloured("ab", 4))
    return numbers(learner) | {"own drawn": np.array(learner.method.drawn)}


def remembering(folder: Path) -> Numbers:
    """Methods with buffers that are whole numbers, truth values, or as yet empty."""
    kept: Numbers = {}
    for method in (Joint(), RanPAC()):
        learner = fit_all(make_learner(method), TASKS)
        kept |= {f"{type(method).__name__}.{name}": array for name, array in numbers(learner).items()}
    return kept


def exported(folder: Path) -> Numbers:
    learner = make_learner(Frozen()).fit(coloured("ab", 3))
    manifest = learner.export(folder / "bundle")
    return {"manifest": np.array(manifest.to_json())}


def typed(folder: Path) -> Numbers:
    """The command line: a run with an image that cannot be read, then mended."""

    def load(name: str, *, weights: str) -> Backbone:
        return vit()

    data = folder / "data"
    if processes.is_main():
        for number, (image, label) in enumerate(coloured("ab", 50)):
            (data / label).mkdir(parents=True, exist_ok=True)
            image.save(data / label / f"{number:03}.png")
        (data / "b" / "099.png").write_text("hello")
    processes.wait()
    said: Numbers = {}
    for name in ("broken", "mended"):
        with (
            mock.patch.object(commands, "load_backbone", load),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            arguments = ["train", str(data), "--out", str(folder / "run"), "--method", "Frozen"]
            code = cli.main([*arguments, "--classes-per-task", "2", "--device", "cpu"])
        said |= {f"{name} code": np.array(code), f"own {name} out": np.array(out.getvalue())}
        said[f"own {name} err"] = np.array(err.getvalue())
        processes.wait()
        if processes.is_main():
            coloured("b", 1)[0][0].save(data / "b" / "099.png")
        processes.wait()
    return said


SCENARIOS: dict[str, Callable[[Path], Numbers]] = {
    one.__name__: one for one in (frozen, trained, stopped, mistaken, watched, remembering, exported, typed)
}

if __name__ == "__main__":
    processes.join("cpu")
    for name, scenario in SCENARIOS.items():
        given: dict[str, Any] = scenario(Path(sys.argv[1]))
        np.savez(Path(sys.argv[1]) / f"{name}-{processes.rank()}.npz", **given)
