"""What a continual learner is measured by: the accuracy matrix and the figures read from it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn.tables import aligned
from everlearn_runtime.words import plural


def accuracy(predicted: Sequence[str], actual: Sequence[str]) -> float:
    """Share of predictions that are right, in [0, 1].

    Raises `ValueError` when the two differ in length or are empty.

    >>> accuracy(["mug", "pen", "mug"], ["mug", "pen", "pen"])
    0.6666666666666666
    """
    if len(predicted) != len(actual):
        raise ValueError(
            f"{len(predicted)} predictions for {len(actual)} labels; give one prediction for each label"
        )
    if len(actual) == 0:
        raise ValueError("no predictions; accuracy needs at least one image")
    return sum(p == a for p, a in zip(predicted, actual, strict=True)) / len(actual)


class AccuracyMatrix:
    """Top-1 accuracies of a run, one row after each task.

    `values[i, j]` is the accuracy, in [0, 1], on the test images of task j after
    training on task i, as in R of Lopez-Paz & Ranzato, "Gradient Episodic Memory
    for Continual Learning" (2017), section 2. Predictions are made among all
    classes seen so far, so the accuracy over those classes is the mean of a row's
    first entries, weighted with `images`, the number of test images of each task.

    >>> matrix = AccuracyMatrix()
    >>> matrix.record([0.9], images=[100])
    >>> matrix.record([0.7, 0.8], images=[100, 100])
    >>> print(matrix.table())
    after task     1     2   all
             1  90.0        90.0
             2  70.0  80.0  75.0
    average 82.50   last 75.00   forgetting 20.00   backward transfer -20.00
    """

    def __init__(self) -> None:
        self._rows: list[NDArray[np.float64]] = []
        self._images: tuple[int, ...] = ()

    def __repr__(self) -> str:
        if not len(self):
            return "<AccuracyMatrix: nothing measured>"
        last = f"average {self.average:.1%}, last {self.last:.1%}"
        return f"<AccuracyMatrix: {plural(len(self), 'task')}, {last}>"

    def __len__(self) -> int:
        """Number of rows, that is of tasks trained so far."""
        return len(self._rows)

    def record(self, accuracies: Sequence[float], images: Sequence[int]) -> None:
        """Add the row that was measured after the next task.

        `accuracies[j]` is the top-1 in [0, 1] on the test images of task j, `images[j]`
        how many those are. The tasks trained so far are required; later ones may
        follow where they were measured (`forward_transfer` needs them), with NaN
        in the gaps. Raises `ValueError`, and records nothing, when the two differ
        in length, a trained task is missing, a number is out of range, or `images`
        contradicts an earlier row.
        """
        row = np.array(accuracies, dtype=np.float64)
        trained = len(self._rows) + 1
        if row.ndim != 1 or len(row) != len(images):
            raise ValueError(
                f"accuracies of shape {row.shape} for {len(images)} image counts; "
                f"give one of each for every task"
            )
        if len(row) < trained:
            raise ValueError(f"{len(row)} accuracies after task {trained}; give at least {trained}")
        unmeasured = np.isnan(row)
        if unmeasured[:trained].any() or not ((row >= 0) & (row <= 1) | unmeasured).all():
            raise ValueError(
                f"accuracies after task {trained} are {row.tolist()}; expected numbers in [0, 1], "
                f"with NaN only for tasks after {trained}"
            )
        counts = tuple(int(count) for count in images)
        if min(counts) < 1:
            raise ValueError(f"image counts are {list(counts)}; every task needs at least one test image")
        known = min(len(counts), len(self._images))
        if counts[:known] != self._images[:known]:
            raise ValueError(
                f"image counts are {list(counts)}, but earlier rows had {list(self._images)}; "
                f"test every task on the same images after each task"
            )
        self._rows.append(row)
        self._images = max(self._images, counts, key=len)

    @property
    def images(self) -> tuple[int, ...]:
        """Number of test images of each task."""
        return self._images

    @property
    def values(self) -> NDArray[np.float64]:
        """The matrix, (T, T) float64 for T tasks known; NaN where nothing was measured."""
        values = np.full((len(self._images), len(self._images)), np.nan)
        for i, row in enumerate(self._rows):
            values[i, : len(row)] = row
        return values

    @property
    def seen(self) -> NDArray[np.float64]:
        """Accuracy over all classes seen so far after each task, (rows,) float64."""
        return np.array(
            [
                np.average(row[: i + 1], weights=self._images[: i + 1])
                for i, row in enumerate(self._measured())
            ]
        )

    @property
    def average(self) -> float:
        """A_bar: the mean of `seen`, the average incremental accuracy.

        Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning"
        (2017), section 4. Raises `ValueError` before the first row.
        """
        return float(self.seen.mean())

    @property
    def last(self) -> float:
        """A_T: accuracy over all classes after the last task. Raises `ValueError` before the first row."""
        return float(self.seen[-1])

    @property
    def forgetting(self) -> float:
        """How far the earlier tasks have fallen from their best, averaged; NaN with fewer than two rows.

        Chaudhry et al., "Riemannian Walk for Incremental Learning: Understanding
        Forgetting and Intransigence" (2018), section 3: the mean over j < T of
        max over i < T of R[i, j], less R[T, j]. Negative where tasks have gained.
        Raises `ValueError` before the first row.
        """
        n = len(self._measured())
        if n < 2:
            return float("nan")
        values = self.values[:n, : n - 1]
        return float((np.nanmax(values[:-1], axis=0) - values[-1]).mean())

    @property
    def backward_transfer(self) -> float:
        """What later tasks did to earlier ones, averaged; NaN with fewer than two rows.

        BWT of Lopez-Paz & Ranzato (2017), section 2: the mean over j < T of
        R[T, j] - R[j, j]. Negative where tasks were forgotten. Raises `ValueError`
        before the first row.
        """
        n = len(self._measured())
        if n < 2:
            return float("nan")
        values = self.values[:n, : n - 1]
        return float((values[-1] - np.diagonal(values)).mean())

    def forward_transfer(self, baseline: Sequence[float]) -> float:
        """What earlier tasks did for tasks not yet trained; NaN where those were not measured.

        FWT of Lopez-Paz & Ranzato (2017), section 2: the mean over j > 1 of
        R[j - 1, j] - baseline[j], where `baseline[j]` is the accuracy on task j
        before any training, or by chance. NaN with fewer than two rows. Raises
        `ValueError` before the first row, and when `baseline` does not have one
        number for each task.
        """
        n = len(self._measured())
        chance = np.array(baseline, dtype=np.float64)
        if chance.shape != (len(self._images),):
            raise ValueError(
                f"baseline of shape {chance.shape}; "
                f"expected one accuracy for each of the {len(self._images)} tasks"
            )
        if n < 2:
            return float("nan")
        return float((np.diagonal(self.values, offset=1)[: n - 1] - chance[1:n]).mean())

    def to_dict(self) -> dict[str, Any]:
        """Everything recorded, ready for `json.dump`: `accuracies` (rows, None for NaN) and `images`."""
        return {
            "accuracies": [
                [None if np.isnan(value) else value for value in row.tolist()] for row in self._rows
            ],
            "images": list(self._images),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AccuracyMatrix:
        """Read what `to_dict` gave. Raises `ValueError` when a key is missing or a row is not valid."""
        missing = {"accuracies", "images"} - data.keys()
        if missing:
            raise ValueError(
                f"no {' and no '.join(sorted(missing))} in the data; expected what `to_dict` gave"
            )
        matrix = cls()
        for row in data["accuracies"]:
            accuracies = [float("nan") if value is None else value for value in row]
            matrix.record(accuracies, data["images"][: len(accuracies)])
        return matrix

    def table(self) -> str:
        """Aligned text in percent: a row after each task, a column for each task, then the averages.

        Raises `ValueError` before the first row.
        """
        seen = self.seen
        rows = [["after task", *(str(task + 1) for task in range(len(self._images))), "all"]]
        for task, row in enumerate(self.values[: len(seen)]):
            cells = ["" if np.isnan(value) else f"{100 * value:.1f}" for value in row]
            rows.append([str(task + 1), *cells, f"{100 * seen[task]:.1f}"])
        figures = [f"average {100 * self.average:.2f}", f"last {100 * self.last:.2f}"]
        if len(seen) > 1:
            figures.append(f"forgetting {100 * self.forgetting:.2f}")
            figures.append(f"backward transfer {100 * self.backward_transfer:.2f}")
        return "\n".join([aligned(rows), "   ".join(figures)])

    def _measured(self) -> list[NDArray[np.float64]]:
        if not self._rows:
            raise ValueError("the accuracy matrix is empty; call `record` after the first task")
        return self._rows


def confusion(predicted: Sequence[str], actual: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """How often each class was taken for each: int64 (C, C), a row for each actual class.

    Rows and columns are in the order of `classes`; raises `ValueError` for a name that is not
    among them.

    >>> confusion(["mug", "pen", "mug"], ["mug", "pen", "pen"], ["mug", "pen"])
    array([[1, 0],
           [1, 1]])
    """
    from sklearn.metrics import confusion_matrix  # not at the top: it takes a second

    unknown = ({*predicted} | {*actual}) - {*classes}
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is none of the {len(classes)} classes; name them all")
    with warnings.catch_warnings():
        # It doubts one label alone, although it is told that there is no other.
        warnings.filterwarnings("ignore", "A single label was found", UserWarning)
        counts: NDArray[np.int64] = confusion_matrix(actual, predicted, labels=list(classes))
    return counts


def task_accuracy(predicted: Sequence[str], actual: Sequence[str], tasks: Sequence[Sequence[str]]) -> float:
    """Share of predictions whose class is of the right task: how well the task is known without its id.

    >>> task_accuracy(["mug", "pen", "cup"], ["mug", "mug", "pen"], [["mug", "pen"], ["cup"]])
    0.6666666666666666
    """
    task = {name: str(index) for index, classes in enumerate(tasks) for name in classes}
    return accuracy([task[name] for name in predicted], [task[name] for name in actual])


def within_task_accuracy(
    scores: NDArray[np.floating],
    classes: Sequence[str],
    actual: Sequence[str],
    tasks: Sequence[Sequence[str]],
) -> float:
    """Share of images whose class has the largest score of its own task: accuracy with the task id.

    `scores` is (N, C), a column for each of `classes`. An image of a class that has none, such as one
    that was forgotten, counts as wrong.

    >>> within_task_accuracy(np.array([[3, 1, 5], [3, 4, 5]]), "abc", "aa", ["ab", "c"])
    0.5
    """
    place = {name: index for index, name in enumerate(classes)}
    own = {name: [place[other] for other in group if other in place] for group in tasks for name in group}
    right = [
        name in place and own[name][int(np.argmax(row[own[name]]))] == place[name]
        for row, name in zip(scores, actual, strict=True)
    ]
    return sum(right) / len(right)
