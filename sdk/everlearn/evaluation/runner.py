"""A learner on a stream, measured: every figure of a run, for its own head and for others beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.data import Images
from everlearn.data.streams import ClassIncremental
from everlearn.evaluation.metrics import AccuracyMatrix, confusion, task_accuracy, within_task_accuracy
from everlearn.files import read_json, write_json
from everlearn.learner import Learner
from everlearn_runtime.heads import LDA, FeCAM, Head, HeldOutRidge, Prototypes, Ridge

OWN = "own"
"""Name of the method's own head among the scores of a run."""

HEADS: dict[str, Callable[[int], Head]] = {
    "prototypes": lambda seed: Prototypes(),
    "lda": lambda seed: LDA(),
    "ridge": lambda seed: Ridge(),
    "fecam": lambda seed: FeCAM(),
    "random-ridge": lambda seed: Ridge(projection=2000, seed=seed),
    "held-out-ridge": lambda seed: HeldOutRidge(True, projection=2000, seed=seed),
}
"""Heads by name, made with a seed; the last two are ridges on 2,000 random features: RanPAC's."""

_ROWS = "rows.json"


@dataclass(frozen=True)
class Score:
    """What one head made of a run. T tasks; accuracies in [0, 1]; None where nothing was measured.

    Attributes:
        kind: of the head.
        matrix: (T, T), accuracy on each task's test images (columns) after each task (rows).
        images: number of test images of each task.
        seen: accuracy over all classes seen so far, after each task.
        task_id: share of predictions that are a class of the right task, after each task.
        within_task: accuracy among the classes of the right task only, after each task.
        average: A_bar, the mean of ``seen``.
        last: A_T, the last of ``seen``.
        forgetting: see `AccuracyMatrix.forgetting`.
        confusion: of the last model, [actual, predicted, count] with positions in the run's
            classes, where the count is not zero.
        bytes: kept between tasks, by method and head.
    """

    kind: str
    matrix: list[list[float | None]]
    images: list[int]
    seen: list[float | None]
    task_id: list[float | None]
    within_task: list[float | None]
    average: float | None
    last: float
    forgetting: float | None
    confusion: list[list[int]]
    bytes: int


@dataclass(frozen=True)
class Run:
    """One method on one stream.

    Attributes:
        method: its name.
        seed: of the stream and of the learner.
        record: how the learner was made, see `Learner.record`.
        classes: in the order of their arrival.
        tasks: number of classes of each task.
        scores: by name of the head; the method's own is `OWN`.
        seconds: of learning, see `Learner`; the learning of heads beside its own is not in it.
        reused: None, or the seconds that its training images' features had taken when they were
            computed: these are not in ``seconds``.
        trained: the largest number of parameters that a task has trained.
        device: it learned on.
    """

    method: str
    seed: int
    record: dict[str, Any]
    classes: list[str]
    tasks: list[int]
    scores: dict[str, Score]
    seconds: float
    reused: float | None
    trained: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Run":
        """Read what `to_dict` gave; ``ValueError`` when something is missing or not known."""
        try:
            scores = {name: Score(**score) for name, score in data["scores"].items()}
            return cls(**{**data, "scores": scores})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the figures of a run: {error}") from error


def measure(
    learner: Learner,
    stream: ClassIncremental,
    *,
    folder: str | Path | None = None,
    name: str | None = None,
    after_task: Callable[[str], None] = lambda line: None,
) -> Run:
    """Learn a stream, and measure all tasks seen so far after each, with every head of the learner.

    A method that takes all tasks `at_once` learns the stream as one task, and has figures for the
    end only.

    Args:
        learner: a fresh one, or one that `Learner.load` gave back of ``folder``.
        stream: the tasks.
        folder: for checkpoints; a learner that `Learner.load` gives back of it goes on from there.
        name: of the method; that of its class when left out.
        after_task: is told in one line how far it is.

    Raises:
        ValueError: when the learner has learned other tasks than those of which ``folder`` has the
            figures.
    """
    at_once = learner.method.at_once
    learning = stream.at_once() if at_once else stream
    rows = recorded(folder, len(learner.tasks))
    for task in learning:
        if task.index == len(learner.tasks):
            learner.fit(task.train, checkpoint=folder)
        if task.index == len(rows):
            seen = len(stream) if at_once else task.index + 1
            tasks = [stream[index].classes for index in range(seen)]
            rows.append(figures(learner, stream[seen - 1].test_so_far, tasks))
            if folder is not None:
                write_json(Path(folder) / _ROWS, {"rows": rows})
        after_task(f"task {task.index + 1}: {100 * rows[task.index][OWN]['seen']:.1f} %")
    stored = learner.reuse.stored(learner.method) if learner.reuse is not None else None
    return Run(
        method=name or type(learner.method).__name__,
        seed=learner.seed,
        record=learner.record(),
        classes=list(stream.classes),
        tasks=[len(task.classes) for task in stream],
        scores={head: _score(learner, one, head, rows) for head, one in _heads(learner).items()},
        seconds=learner.seconds,
        reused=stored.seconds[0] if stored is not None else None,
        trained=learner.trained,
        device=str(learner.device),
    )


def _heads(learner: Learner) -> Mapping[str, Head]:
    return {OWN: learner.head, **learner.beside}


def recorded(folder: str | Path | None, done: int) -> list[dict[str, dict[str, Any]]]:
    """The figures after each task, of a run in this folder whose learner has learned so many tasks.

    Raises `ValueError` when they are damaged, or are not those of such a run.
    """
    file = None if folder is None else Path(folder) / _ROWS
    if file is None or done == 0:
        return []
    rows = list(read_json(file, "the figures of a run").get("rows", [])) if file.is_file() else []
    if len(rows) not in (done - 1, done):
        raise ValueError(
            f"this learner has learned {done} tasks, but {folder} has the figures of {len(rows)}; "
            "begin again with a fresh one"
        )
    return rows


def figures(learner: Learner, images: Images, tasks: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The figures of each head of a learner as it stands, on test images of these tasks.

    By name of the head: accuracy over all images ("seen"), on each task's ("accuracies", of
    "images" images), "task_id" and "within_task" as in `Score`, and "confusion" with positions in
    the classes of the tasks, one task after the other.
    """
    features, labels = learner.features(images), np.array(images.labels)
    order = [name for classes in tasks for name in classes]
    members = [np.isin(labels, classes) for classes in tasks]
    row = {}
    for name, head in _heads(learner).items():
        scores = head.scores(features)
        predicted = np.array(head.classes)[scores.argmax(axis=1)]
        right = predicted == labels
        counts = confusion(predicted.tolist(), images.labels, order)
        row[name] = {
            "seen": float(right.mean()),
            "accuracies": [float(right[here].mean()) for here in members],
            "images": [int(here.sum()) for here in members],
            "task_id": task_accuracy(predicted.tolist(), images.labels, tasks),
            "within_task": within_task_accuracy(scores, head.classes, images.labels, tasks),
            "confusion": [[*place, int(counts[tuple(place)])] for place in np.argwhere(counts).tolist()],
        }
    return row


def _score(learner: Learner, head: Head, name: str, rows: Sequence[Mapping[str, Mapping[str, Any]]]) -> Score:
    own = [row[name] for row in rows]
    last = own[-1]
    tasks = len(last["images"])
    gap: list[None] = [None] * (tasks - len(own))  # a ceiling was measured at the end only
    average, forgetting = None, None
    if not gap:
        matrix = AccuracyMatrix()
        for row in own:
            matrix.record(row["accuracies"], row["images"])
        average = matrix.average
        forgetting = matrix.forgetting if tasks > 1 else None
    return Score(
        kind=head.kind,
        matrix=[[None] * tasks for _ in gap]
        + [row["accuracies"] + [None] * (tasks - len(row["accuracies"])) for row in own],
        images=last["images"],
        seen=gap + [row["seen"] for row in own],
        task_id=gap + [row["task_id"] for row in own],
        within_task=gap + [row["within_task"] for row in own],
        average=average,
        last=last["seen"],
        forgetting=forgetting,
        confusion=last["confusion"],
        bytes=sum(value.nbytes for value in learner.method.learned().values()) + head.nbytes,
    )
