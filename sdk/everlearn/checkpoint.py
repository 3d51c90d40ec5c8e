"""Save and load a learner: one safetensors file, its settings as JSON in the header."""

import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from everlearn import methods
from everlearn.backbones import Backbone, load_backbone
from everlearn.data.augmentation import Augmentation
from everlearn.files import replacing
from everlearn.methods.base import Method
from everlearn_runtime.heads import Head, HeadState, from_state

if TYPE_CHECKING:
    from everlearn.learner import Learner

FILE = "learner.safetensors"
FORMAT = 3


@dataclass(frozen=True)
class Unfinished:
    """A task that `fit` has begun and not finished: what resuming needs to know.

    Attributes:
        classes: the task's classes.
        labels: sha256 of the data set's labels, to know it again.
        seen: see `TaskInfo`.
        epochs: epochs that are done.
        optimizer: its state for each trainable parameter, by name.
        features: the images' features before the task, float32 (N, F), where the head is carried.
    """

    classes: tuple[str, ...]
    labels: str
    seen: tuple[str, ...]
    epochs: int
    optimizer: tuple[dict[str, Tensor], ...]
    features: NDArray[np.float32] | None


def save(learner: "Learner", path: Path) -> None:
    """Write a learner into a folder; the file there is replaced whole or not at all."""
    head, beside = learner.head.state(), [other.state() for other in learner.beside.values()]
    states = {"head": head, **{f"beside.{index}": state for index, state in enumerate(beside)}}
    tensors = {f"method.{name}": value for name, value in learner.method.learned().items()}
    for name, state in states.items():
        tensors |= {f"{name}.{key}": torch.from_numpy(value) for key, value in state.arrays.items()}
    settings = learner.record() | {
        "format": FORMAT,
        "everlearn": version("everlearn"),
        "fingerprint": learner.backbone.fingerprint(),
        "kept_classes": learner.method.classes.names,
        "head": _about(head),
        "beside": {name: _about(state) for name, state in zip(learner.beside, beside, strict=True)},
        "effort": {"seconds": learner.seconds, "trained": learner.trained},
        "unfinished": None,
    }
    if learner.unfinished is not None:
        settings["unfinished"] = {
            "classes": learner.unfinished.classes,
            "labels": learner.unfinished.labels,
            "seen": learner.unfinished.seen,
            "epochs": learner.unfinished.epochs,
        }
        for index, moments in enumerate(learner.unfinished.optimizer):
            tensors |= {f"optimizer.{index:06d}.{name}": value for name, value in moments.items()}
        if learner.unfinished.features is not None:
            tensors["features"] = torch.from_numpy(learner.unfinished.features)
    with replacing(path / FILE) as partial:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            partial,
            metadata={"everlearn": json.dumps(settings)},
        )


def load(
    learner_class: type["Learner"],
    path: Path,
    *,
    backbone: Backbone | None = None,
    method: Method | None = None,
    weights: str | Path | None = None,
    **options: Any,
) -> "Learner":
    """Make the learner that `save` wrote; see `Learner.load`."""
    settings, tensors = _read(path / FILE)
    if backbone is None:
        spec = settings["backbone"]
        if spec is None:
            raise ValueError(f"{path} was saved with a backbone of the caller's own; pass it as backbone=")
        backbone = load_backbone(spec["name"], weights=weights or spec["weights"], **spec["options"])
    if backbone.fingerprint() != settings["fingerprint"]:
        raise ValueError(
            f"the backbone's weights are not those that {path} was trained on; "
            "pass the same ones, as weights= or as backbone="
        )
    if method is None:
        name = settings["method"]["name"]
        if name not in methods.__all__:
            raise ValueError(
                f"{path} was saved with a method of the caller's own, {name}; pass an instance as method="
            )
        method = getattr(methods, name)(**settings["method"]["config"])
    learner = learner_class(
        backbone,
        method,
        head=_head(settings["head"], _part(tensors, "head")),
        beside={
            name: _head(about, _part(tensors, f"beside.{index}"))
            for index, (name, about) in enumerate(settings.get("beside", {}).items())
        },
        **settings["training"],
        augmentation=_augmentation(settings["augmentation"]),
        seed=settings["seed"],
        precision=settings["precision"],
        **options,
    )
    learner.tasks = [tuple(classes) for classes in settings["tasks"]]
    effort = settings.get("effort", {})  # files of earlier versions have none
    learner.seconds, learner.trained = effort.get("seconds", 0.0), effort.get("trained", 0)
    if settings["unfinished"] is not None:
        classes = tuple(settings["unfinished"]["classes"])
        learner.unfinished = Unfinished(
            classes,
            settings["unfinished"]["labels"],
            tuple(settings["unfinished"]["seen"]),
            settings["unfinished"]["epochs"],
            (),
            tensors["features"].numpy() if "features" in tensors else None,
        )
        learner.begin_task(classes, learner.unfinished.seen)
        states = tuple(
            {
                # Adam counts its steps on the CPU.
                name: value.to(learner.device) if value.dim() else value
                for name, value in _part(tensors, f"optimizer.{index:06d}").items()
            }
            for index in range(len(learner.method.trainable()))
        )
        learner.unfinished = replace(learner.unfinished, optimizer=states)
    learner.method.restore(_part(tensors, "method"), settings["kept_classes"])
    return learner


def summary(path: Path) -> dict[str, Any]:
    """What a saved learner says of itself, without making it: `Learner.record`, and more.

    Of the rest, "bytes" is what method and head keep between tasks, "effort" has the learner's
    ``seconds`` and ``trained``, and "head" the kind of its head.

    Raises:
        ValueError: when the file is missing, damaged, or from a newer format.
    """
    settings, tensors = _read(path / FILE)
    kept = {**_part(tensors, "method"), **_part(tensors, "head")}
    return {"effort": {}, **settings, "bytes": sum(value.nbytes for value in kept.values())}


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not file.is_file():
        raise ValueError(f"no learner is saved at {file.parent}; expected the file {FILE} there")
    try:
        with safe_open(file, "pt") as stored:
            settings = json.loads((stored.metadata() or {})["everlearn"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        written = settings["format"]
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file} is damaged or no saved learner ({error!r}); go back to a copy of it"
        ) from error
    if written != FORMAT:
        raise ValueError(
            f"{file} has format {written!r}, by everlearn {settings.get('everlearn')}; this one reads "
            f"format {FORMAT}: pip install --upgrade everlearn"
        )
    return settings, tensors


def _about(state: HeadState) -> dict[str, Any]:
    return {"kind": state.kind, "classes": state.classes, "options": state.options}


def _head(about: dict[str, Any], tensors: dict[str, Tensor]) -> Head:
    arrays = {name: value.numpy() for name, value in tensors.items()}
    return from_state(HeadState(about["kind"], tuple(about["classes"]), about["options"], arrays))


def _augmentation(stored: dict[str, Any] | None) -> Augmentation | None:
    if stored is None:
        return None
    # JSON has no tuples, and with lists it would not equal the one that was saved.
    return Augmentation(tuple(stored["scale"]), tuple(stored["ratio"]), stored["flip"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}.")
    }
