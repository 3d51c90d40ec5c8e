"""From a learner to a bundle: which images verify it, calibrate its head, and map the bundle before to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from everlearn import processes
from everlearn.checks import whole
from everlearn.data import Images, any_images, as_images, photographs
from everlearn.data.loader import Loader
from everlearn.trainable import trainable
from everlearn_export.bundle import HeldOut, export_bundle
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.images import prepare_batch
from everlearn_runtime.manifest import Manifest

if TYPE_CHECKING:
    from everlearn.learner import Learner

VERIFIED_IMAGES = 64  # on which a graph in full precision is compared with torch, at most
LOWER_PRECISION_IMAGES = 512  # on which a graph's scales are found and its losses seen, at most
MAP_IMAGES = 512  # on which the map from a bundle to the one that replaces it is fitted, at most
CALIBRATION_IMAGES = 2048  # that a head judges before it is exported, at most


def export(
    learner: "Learner",
    path: Path,
    *,
    seen: object | None,
    precision: str,
    target: str,
    replaces: str | Path | None,
    tolerance: float | None,
    removable: bool,
    calibration: object | None,
    canaries: int,
    train_step: str | None,
    overwrite: bool,
) -> Manifest:
    """Write a learner's bundle, in the first of several processes.

    Args:
        learner: whose.
        path: folder to write.
        seen: images to verify the graph on; photographs for None.
        precision, target, replaces, tolerance, removable, calibration, canaries, train_step, overwrite: see
            `Learner.export`, also for what is raised.
    """
    if not learner.classes:
        raise ValueError("nothing has been learned yet, so there is nothing to export; call fit first")
    head = learner.head.to_removable() if removable else learner.head
    held_out = _held_out(learner, calibration, canaries)
    sample, labelled = (photographs(VERIFIED_IMAGES), True) if seen is None else any_images(seen)
    spread = _spread(len(sample), VERIFIED_IMAGES if precision == "fp32" else LOWER_PRECISION_IMAGES)
    images = _pixels(learner, sample, spread)
    labels = [sample.labels[index] for index in spread]
    replaced = None
    if replaces is not None:
        old, chosen = Bundle.open(replaces), _spread(len(sample), MAP_IMAGES)
        before = prepare_batch([sample[i][0] for i in chosen], old.manifest.input)
        replaced = old, before, _pixels(learner, sample, chosen)
    step = None
    if train_step is not None:
        decay = learner.training.weight_decay
        step = trainable(learner.method, train_step, weight_decay=decay, tasks=len(learner.history))
    record = learner.record()
    if record["backbone"]:  # the device need not know in which folder the weights lay
        record["backbone"]["weights"] = Path(record["backbone"]["weights"]).name
    if not processes.is_main():
        processes.wait()
        return Bundle.open(path).manifest
    manifest = export_bundle(
        path,
        learner.method.deployable().cpu(),
        head=head,
        input=learner.backbone.input,
        mean=learner.backbone.mean.flatten().tolist(),
        std=learner.backbone.std.flatten().tolist(),
        sections=learner.method.sections,
        images=images,
        training=record,
        precision=precision,
        target=target,
        labels=labels if labelled and set(labels) <= set(learner.classes) else None,
        tolerance=tolerance,
        replaces=replaced,
        held_out=held_out,
        trainable=step,
        overwrite=overwrite,
        progress=None if learner.progress else learner.progress,  # its few steps are a bar, or nothing
    )
    processes.wait()
    return manifest


def _held_out(learner: "Learner", calibration: object | None, canaries: int) -> HeldOut | None:
    """Held-out images for the head to judge, and which of them are canaries."""
    whole("canaries", canaries, least=0)
    if calibration is None:
        if canaries:
            raise ValueError(f"canaries={canaries} without images to take them from; give calibration=")
        return None
    images = as_images(calibration)
    known = [index for index, name in enumerate(images.labels) if name in learner.classes]
    if not known:
        raise ValueError(
            f"no image to calibrate by is of a class that was learned: they are of "
            f"{', '.join(map(repr, images.classes[:5]))}"
        )
    images = images.subset([known[place] for place in _spread(len(known), CALIBRATION_IMAGES)])
    own = {name: [i for i, label in enumerate(images.labels) if label == name] for name in images.classes}
    chosen = [places[i] for places in own.values() for i in _spread(len(places), canaries)]
    return HeldOut(_pixels(learner, images, range(len(images))), images.labels, chosen)


def _pixels(learner: "Learner", images: Images, places: Sequence[int]) -> NDArray[np.uint8]:
    return Loader(images, learner.backbone, learner.device, workers=learner.workers).pixels(places)


def _spread(count: int, most: int) -> list[int]:
    """Positions, evenly spread over so many, and no more than ``most``."""
    positions: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return positions
