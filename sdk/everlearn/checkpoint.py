"""A learner's state in a file: tensors as safetensors, everything else as JSON in its header."""

import errno
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from everlearn.files import LEARNER, replacing
from everlearn_runtime.heads import HeadState
from everlearn_runtime.version import __version__

FILE = LEARNER
FORMAT = 3


class OtherFormatError(ValueError):
    """A file that another version of everlearn wrote, in a format that this one cannot read."""


@dataclass(frozen=True)
class Lesson:
    """A task that has been learned.

    Attributes:
        classes: of its images, sorted.
        images: how many.
        parameters: that it trained.
        seconds: that it took; what an interrupt undid does not count.
    """

    classes: tuple[str, ...]
    images: int
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Unfinished:
    """A task that has begun: what is needed to go on with it.

    Attributes:
        classes: the task's classes.
        seen: all classes known with it, in the order of their arrival, see `TaskInfo`.
        digest: of its images and labels, to know them again.
        features: the images' features before the task, float32 (N, F), where the head is carried.
        epochs: epochs that are done.
        optimizer: its state for each trainable parameter, by name.
        seconds: spent so far.
    """

    classes: tuple[str, ...]
    seen: tuple[str, ...]
    digest: str
    features: NDArray[np.float32] | None = None
    epochs: int = 0
    optimizer: tuple[dict[str, Tensor], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """All that a learner is.

    Attributes:
        settings: how it was made, see `Learner.record`.
        fingerprint: of its backbone's weights.
        method: what the method has learned, see `Method.learned`.
        rows: the classes for which the method keeps rows, in their order.
        head: statistics of the head.
        history: the tasks learned.
        unfinished: the one it is at.
    """

    settings: dict[str, Any]
    fingerprint: str
    method: dict[str, Tensor]
    rows: tuple[str, ...]
    head: HeadState
    history: tuple[Lesson, ...] = ()
    unfinished: Unfinished | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that method and head keep between tasks."""
        arrays = sum(array.nbytes for array in self.head.arrays.values())
        return arrays + sum(value.nbytes for value in self.method.values())


def write(state: State, folder: Path) -> None:
    """Write a state into a folder; the file there is replaced whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {f"method.{name}": value for name, value in state.method.items()}
    tensors |= {f"head.{name}": torch.from_numpy(value) for name, value in state.head.arrays.items()}
    about: dict[str, Any] = {
        "format": FORMAT,
        "everlearn": __version__,
        "settings": state.settings,
        "fingerprint": state.fingerprint,
        "rows": state.rows,
        "head": {"kind": state.head.kind, "classes": state.head.classes, "options": state.head.options},
        "history": [asdict(lesson) for lesson in state.history],
        "unfinished": None,
    }
    if (task := state.unfinished) is not None:
        about["unfinished"] = {
            name: getattr(task, name) for name in ("classes", "seen", "digest", "epochs", "seconds")
        }
        about["unfinished"]["parameters"] = len(task.optimizer)
        for index, moments in enumerate(task.optimizer):
            tensors |= {f"optimizer.{index:06d}.{name}": value for name, value in moments.items()}
        if task.features is not None:
            tensors["features"] = torch.from_numpy(task.features)
    with replacing(folder / FILE) as partial:
        try:
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
                partial,
                metadata={"everlearn": json.dumps(about)},
            )
        except SafetensorError as error:  # of the disk, as tensors of every kind can be written
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number)) from error


def read(folder: Path) -> State:
    """Read what `write` wrote.

    Raises:
        OtherFormatError: another version wrote it.
        ValueError: it is missing or damaged.
    """
    file = folder / FILE
    if not file.is_file():
        raise ValueError(f"no learner is saved at {folder}; expected the file {FILE} there")
    try:
        with safe_open(file, "pt") as stored:
            about = json.loads((stored.metadata() or {})["everlearn"])
            if about["format"] != FORMAT:
                raise OtherFormatError(
                    f"{file} has format {about['format']!r}, by everlearn {about.get('everlearn')}; this one "
                    f"reads format {FORMAT}: pip install the version that wrote it"
                )
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return _state(about, tensors)
    except OtherFormatError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged or no saved learner ({error!r}); go back to a copy of it"
        ) from error


def _state(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State:
    head = about["head"]
    arrays: dict[str, NDArray[Any]] = {name: value.numpy() for name, value in _part(tensors, "head").items()}
    unfinished = None
    if about["unfinished"] is not None:
        task = dict(about["unfinished"])
        count = task.pop("parameters")
        task |= {name: tuple(task[name]) for name in ("classes", "seen")}
        unfinished = Unfinished(
            **task,
            features=tensors["features"].numpy() if "features" in tensors else None,
            optimizer=tuple(_part(tensors, f"optimizer.{index:06d}") for index in range(count)),
        )
    return State(
        settings=dict(about["settings"]),
        fingerprint=about["fingerprint"],
        method=_part(tensors, "method"),
        rows=tuple(about["rows"]),
        head=HeadState(head["kind"], tuple(head["classes"]), head["options"], arrays),
        history=tuple(Lesson(**{**one, "classes": tuple(one["classes"])}) for one in about["history"]),
        unfinished=unfinished,
    )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}.")
    }
