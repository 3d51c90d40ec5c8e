"""The figures of a run, and the one file that keeps them: what training and benchmarks write alike."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from everlearn.evaluation.metrics import AccuracyMatrix
from everlearn.files import RUN, read_json, write_json
from everlearn_runtime.version import __version__

FILE = RUN
FORMAT = 1

OWN = "own"
"""Name of the learner's own head among the scores of a run."""


@dataclass(frozen=True)
class Figures:
    """What one head makes of the test images of all classes seen so far; shares in [0, 1].

    Attributes:
        seen: accuracy over all of them.
        accuracies: accuracy on each task's.
        images: how many test images each task has.
        task_id: share of predictions that are a class of the right task.
        within_task: accuracy among the classes of the right task only.
        confusion: [actual, predicted, count] with positions in the classes in the order of their
            arrival, where the count is not zero.
    """

    seen: float
    accuracies: list[float]
    images: list[int]
    task_id: float
    within_task: float
    confusion: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """What one head made of a run, of which T tasks are over. None stands where nothing was measured.

    A method that learns all tasks at once is measured at their end only: its one row of figures is
    that after task T.

    Attributes:
        kind: of the head.
        rows: figures after each task; the confusion is kept in the last of them.
        bytes: kept between tasks, by method and head.
    """

    kind: str
    rows: tuple[Figures, ...]
    bytes: int

    def and_then(self, figures: Figures, bytes: int) -> "Score":
        """Give the score with the figures after one more task."""
        earlier = tuple(replace(row, confusion=[]) for row in self.rows)
        return replace(self, rows=(*earlier, figures), bytes=bytes)

    @property
    def tasks(self) -> int:
        """T, the tasks that are over."""
        return len(self.rows[-1].images) if self.rows else 0

    @property
    def images(self) -> list[int]:
        """Number of test images of each task."""
        return self.rows[-1].images if self.rows else []

    @property
    def matrix(self) -> list[list[float | None]]:
        """(T, T), accuracy on each task's test images (columns) after each task (rows)."""
        rows: list[list[float | None]] = [[None] * self.tasks for _ in self._unmeasured]
        return rows + [[*row.accuracies, *[None] * (self.tasks - len(row.accuracies))] for row in self.rows]

    @property
    def seen(self) -> list[float | None]:
        """Accuracy over all classes seen so far, after each task."""
        return self._unmeasured + [row.seen for row in self.rows]

    @property
    def task_id(self) -> list[float | None]:
        """Share of predictions that are a class of the right task, after each task."""
        return self._unmeasured + [row.task_id for row in self.rows]

    @property
    def within_task(self) -> list[float | None]:
        """Accuracy among the classes of the right task only, after each task."""
        return self._unmeasured + [row.within_task for row in self.rows]

    @property
    def confusion(self) -> list[list[int]]:
        """Of the last model, see `Figures`."""
        return self.rows[-1].confusion if self.rows else []

    @property
    def accuracy(self) -> AccuracyMatrix:
        """The matrix as an object with figures of its own; empty where tasks were not measured."""
        matrix = AccuracyMatrix()
        for row in () if self._unmeasured else self.rows:
            matrix.record(row.accuracies, row.images)
        return matrix

    @property
    def average(self) -> float | None:
        """A_bar, the mean of `seen`."""
        return self.accuracy.average if len(self.accuracy) else None

    @property
    def last(self) -> float:
        """A_T, the last of `seen`."""
        return self.rows[-1].seen

    @property
    def forgetting(self) -> float | None:
        """See `AccuracyMatrix.forgetting`."""
        return self.accuracy.forgetting if len(self.accuracy) > 1 else None

    @property
    def _unmeasured(self) -> list[float | None]:
        return [None] * (self.tasks - len(self.rows))


@dataclass(frozen=True)
class Run:
    """One method on one stream, as far as it is.

    Attributes:
        method: its name.
        seed: of the stream and of the learner.
        record: how the learner was made, see `Learner.record`.
        classes: of the stream, in the order of their arrival.
        tasks: number of classes of each task.
        scores: by name of the head; the learner's own is `OWN`.
        seconds: of learning, without the learning of heads beside its own.
        reused: None, or the seconds that its training images' features had taken when they were
            computed: these are not in ``seconds``.
        trained: the largest number of parameters that a task has trained.
        device: it learned on.
        settings: what the folder was begun with and has to go on with, beside the record.
        finished: whether nothing is left to be done.
        everlearn: version that wrote it.
    """

    method: str
    seed: int
    record: dict[str, Any]
    classes: list[str]
    tasks: list[int]
    scores: dict[str, Score]
    seconds: float = 0.0
    reused: float | None = None
    trained: int = 0
    device: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    everlearn: str = __version__

    @property
    def measured(self) -> int:
        """How many rows of figures there are."""
        return len(self.scores[OWN].rows) if self.scores else 0

    @property
    def accuracy(self) -> AccuracyMatrix:
        """That of the learner's own head."""
        return self.scores[OWN].accuracy

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data, for JSON; A_bar, A_T and forgetting are there to be read."""
        data = asdict(self)
        for name, score in self.scores.items():
            if score.rows:
                summary = {"A_bar": score.average, "A_T": score.last, "forgetting": score.forgetting}
                data["scores"][name]["summary"] = summary
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Run":
        """Read what `to_dict` gave; ``ValueError`` when something is missing or not known."""
        try:
            scores = {name: _score(score) for name, score in data["scores"].items()}
            return cls(**{**data, "scores": scores})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the figures of a run: {error!r}") from error

    def write(self, folder: str | Path) -> None:
        """Write the run into a folder, as one file that replaces the last one whole."""
        write_json(Path(folder) / FILE, {"format": FORMAT, **self.to_dict()})

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """Read what `write` wrote; ``ValueError`` when nothing is there, or it is damaged or newer."""
        file = Path(folder) / FILE
        if not file.is_file():
            raise ValueError(f"no run is at {folder}; expected the file {FILE} there")
        data = read_json(file, "a run")
        written = data.pop("format", None)
        if written != FORMAT:
            raise ValueError(
                f"{file} has format {written!r}, by everlearn {data.get('everlearn')}; this one reads format "
                f"{FORMAT}: pip install the version that wrote it, or begin again in another folder"
            )
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}; go back to a copy of it") from error


def _score(data: Mapping[str, Any]) -> Score:
    given = {name: value for name, value in data.items() if name != "summary"}
    return Score(**{**given, "rows": tuple(Figures(**row) for row in given["rows"])})
