"""What training says of itself, row by row: ``log.csv`` in a run's folder, and TensorBoard."""

import csv
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from everlearn.files import write_whole
from everlearn_runtime.errors import MissingExtra

FILE = "log.csv"
FIRST = ("task", "epoch", "lr", "seconds", "loss")
LAST = ("images", "classes", "accuracy")
FOLDER = "tensorboard"

Row = Mapping[str, float]
"""Figures by name: ``task`` and, in the row of an epoch, ``epoch`` count from 1.

The row of an epoch has the rate, the seconds, the loss and its terms, as means over the images. What ends
a task has its images and classes, the seconds of all of it, and where that was measured the accuracy on all
classes seen so far.
"""

Listener = Callable[[Row], None]


def add(folder: str | Path, row: Row) -> None:
    """Write a row into a folder's log, in the place of what stands there of the same or a later moment.

    So a run that goes on after an interrupt has each epoch once. The file is replaced whole.
    """
    file = Path(folder) / FILE
    rows = [old for old in read(folder) if _moment(old) <= _moment(row)]
    if rows and _moment(rows[-1]) == _moment(row):
        row = {**rows.pop(), **row}
    rows.append(row)
    names = dict.fromkeys(name for one in rows for name in one)
    terms = [name for name in names if name not in (*FIRST, *LAST)]
    columns = [name for name in (*FIRST, *terms, *LAST) if name in names]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in one.items()} for one in rows)
    write_whole(file, text.getvalue())


def read(folder: str | Path) -> list[Row]:
    """The rows of a folder's log; none where there is no log, or another program's."""
    file = Path(folder) / FILE
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return [
                {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)
            ]
    except (ValueError, TypeError, AttributeError, csv.Error):  # a log is worth no stop of a training
        return []


def clear(folder: str | Path) -> None:
    """Delete a folder's log, for a run that begins."""
    (Path(folder) / FILE).unlink(missing_ok=True)


def tensorboard(folder: str | Path) -> Listener:
    """A listener that writes every row for TensorBoard, into the folder's ``tensorboard``.

    Steps are epochs, counted over all tasks; accuracies stand at their task's number.

    Raises:
        MissingExtra: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("--tensorboard", "tensorboard") from None
    writer = SummaryWriter(str(Path(folder) / FOLDER))
    epochs = sum("epoch" in row for row in read(folder))

    def listen(row: Row) -> None:
        nonlocal epochs
        group, step = "task", int(row["task"])
        if "epoch" in row:
            epochs += 1
            group, step = "train", epochs
        for name, value in row.items():
            if name not in ("task", "epoch"):
                writer.add_scalar(f"{group}/{name}", value, step)
        writer.flush()

    return listen


def _moment(row: Row) -> tuple[float, float]:
    return row.get("task", 0), row.get("epoch", math.inf)
