"""Heads that learn from a learner's features beside its own, to be compared with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from everlearn.data import Images
from everlearn.files import replacing
from everlearn_runtime.heads import Head, HeadState, from_state

if TYPE_CHECKING:
    from everlearn.learner import Learner

FILE = "heads.safetensors"


class Beside:
    """What other heads would have made of the same training: they see the same features, task by task.

    The learner knows nothing of them. Around each task call `begin`, `Learner.fit` and `end`, and
    `save` after `begin` and after `end`: whatever stops a run, `load` then goes on with the task that
    the learner is at.

    Args:
        heads: by name; copies of them learn, so that none learns twice.

    Attributes:
        tasks: how many they have learned.
        before: features of the next task's images as they were before it, where statistics are
            carried along; None: not looked at, or none are wanted.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.heads = {name: copy.deepcopy(head) for name, head in heads.items()}
        self.tasks = 0
        self.before: NDArray[np.float32] | None = None

    def begin(self, learner: Learner, images: Images) -> None:
        """Look at a task's images before the learner trains on them."""
        self.before = learner.features(images) if learner.carries else None

    def end(self, learner: Learner, images: Images) -> None:
        """Learn the task that the learner has just learned."""
        features = learner.features(images)
        for head in self.heads.values():
            learner.teach(head, self.before, features, images.labels)
        self.tasks += 1
        self.before = None

    def save(self, folder: Path) -> None:
        """Write all heads as one file."""
        states = {name: head.state() for name, head in self.heads.items()}
        arrays = {
            f"{place}.{key}": array
            for place, state in enumerate(states.values())
            for key, array in state.arrays.items()
        }
        if self.before is not None:
            arrays["before"] = self.before
        about = {
            "tasks": self.tasks,
            "heads": {
                name: {"kind": state.kind, "classes": state.classes, "options": state.options}
                for name, state in states.items()
            },
        }
        with replacing(folder / FILE) as partial:
            save_file(arrays, partial, metadata={"heads": json.dumps(about)})

    @classmethod
    def load(cls, folder: Path) -> Beside:
        """Read what `save` wrote; ``ValueError`` when nothing is there, or it is damaged."""
        file = folder / FILE
        try:
            with safe_open(file, "np") as stored:
                about = json.loads((stored.metadata() or {})["heads"])
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            made = {}
            for place, (name, head) in enumerate(about["heads"].items()):
                own = {
                    key.removeprefix(f"{place}."): array
                    for key, array in arrays.items()
                    if key.startswith(f"{place}.")
                }
                made[name] = from_state(HeadState(head["kind"], tuple(head["classes"]), head["options"], own))
            found = cls(made)
            found.tasks, found.before = int(about["tasks"]), arrays.get("before")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is missing or damaged ({error!r})") from error
        return found
