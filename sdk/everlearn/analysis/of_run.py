"""A learner's diagnosis: its kernel on images that it learned, and what it can do about the verdict."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from everlearn.analysis.advice import steps
from everlearn.analysis.diagnosis import Diagnosis, diagnose
from everlearn.analysis.ntk import adapters, ntk
from everlearn.data import Images, as_images
from everlearn.data.loader import Loader
from everlearn.learner import Learner
from everlearn.tables import Table


def diagnose_run(
    learner: Learner,
    tasks: Iterable[object],
    *,
    samples: int = 32,
    readouts: int | None = 8,
    seed: int = 0,
    regularisation: float | None = None,
    progress: bool | None = None,
) -> Diagnosis:
    """Find what limits a learner, from samples of the images that it learned.

    The kernel is that of the adapters behind the features (`everlearn.analysis.ntk.ntk`), or of a linear
    head where there are none, with features at unit mean square length. The targets
    are one-hot over all classes learned, less their mean. It is taken where the learner stands
    now and on images it has learned, so it flatters a learner whose features have fitted them.

    Interference is the theory's: its regression has an output for each class, so it includes the
    pull towards the newest classes that a trained classifier suffers, and that heads with a mean for
    each class are spared.

    Args:
        learner: after at least one task.
        tasks: training images of each task that it learned, in that order: anything that
            `as_images` takes. Those of classes that were forgotten are left out.
        samples: images to draw of each task, spread evenly over its classes; all where there
            are fewer.
        readouts: random readouts of the features; None takes all F of them, exact and F / 8 times
            as long.
        seed: of the draw and of the readouts.
        regularisation: lambda per image; by default `regularisation_of` the learner.
        progress: show progress bars; by default where there is a terminal.

    Raises:
        ValueError: when the tasks are not those that the learner learned, there are fewer than two
            classes, or fewer than four images of a task.
    """
    if samples < 4:
        raise ValueError(f"samples is {samples}; expected at least 4 images a task")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected a whole number of at least 0")
    data = [as_images(task) for task in tasks]
    if [set(images.classes) for images in data] != [set(classes) for classes in learner.tasks]:
        raise ValueError(
            f"{len(data)} tasks of data for a learner of {len(learner.tasks)} tasks, or of other classes; "
            "give the training images of each task that it learned, in that order"
        )
    data = [part for images in data if (part := _known(images, learner))]
    if len(learner.classes) < 2:
        raise ValueError(f"the learner knows {len(learner.classes)} classes; a diagnosis needs at least 2")
    drawn = [_draw(images, samples, [seed, index]) for index, images in enumerate(data)]
    short = [index for index, images in enumerate(drawn) if len(images) < 4]
    if short:
        raise ValueError(
            f"task {short[0] + 1} has {len(drawn[short[0]])} images; a diagnosis needs at least 4 of each"
        )
    pixels = torch.cat([_pixels(learner, images) for images in drawn])
    with torch.no_grad():
        learner.method.eval()
        features = torch.cat([learner.method.features(part) for part in torch.split(pixels, 64)]).double()
    names = adapters(learner.method, pixels)
    if names:
        kernel = ntk(
            learner.method, pixels, parameters=names, readouts=readouts, seed=seed, progress=progress
        )
        what = f"{readouts} random readouts" if readouts else "all outputs"
        name = f"kernel of {len(names)} adapter tensors, {what}"
    else:
        kernel = (features @ features.T).cpu().numpy()
        name = "kernel of a linear head on frozen features"
    kernel /= float(features.square().sum(1).mean())
    position = {label: index for index, label in enumerate(learner.classes)}
    labels = [position[label] for images in drawn for label in images.labels]
    sizes = [len(images) for images in data]
    per_image = [
        regularisation_of(learner, size) if regularisation is None else regularisation for size in sizes
    ]
    known = [one * size for one, size in zip(per_image, sizes, strict=True) if one is not None]
    return diagnose(
        kernel,
        np.repeat(np.arange(len(drawn)), [len(images) for images in drawn]),
        np.eye(len(position))[labels] - 1 / len(position),
        images=sizes,
        regularisation=known if len(known) == len(sizes) else None,
        name=name,
        steps=steps(learner, round(float(np.mean(sizes)))),
    )


def method_report(learner: Learner, tasks: Iterable[object]) -> Table | None:
    """Give what a learner's method itself says about the run, `Method.report`; None where nothing.

    Args:
        learner: after at least one task.
        tasks: images of each task that it learned, in that order: anything that `as_images` takes.

    Raises:
        ValueError: for images of a class that the learner does not know.
    """
    batches = []
    for images in map(as_images, tasks):
        unknown = images.unknown_to(learner.classes)
        if unknown:
            raise ValueError(f"there are images of {unknown[0]!r}, which the learner does not know")
        batches.append(_loader(learner, images).in_order(images.targets_in(learner.classes)))
    learner.method.eval()
    return learner.method.report(batches, learner.classes)


def regularisation_of(learner: Learner, images: int) -> float | None:
    """Estimate the lambda per image that training on a task of so many images amounts to.

    Training that starts at the previous parameters and goes on for a time t, the sum of its
    learning rates over 1 - momentum, shrinks like a ridge of 1/t; weight decay and the method's own
    ``regularisation``, if it has one, add to that. An order of magnitude: the loss is not
    squared, and the scale of the classifier is taken as 1. None where nothing is trained, or by Adam.

    Source: Ali, Kolter and Tibshirani, "A Continuous-Time View of Early Stopping for Least Squares",
    AISTATS 2019.
    """
    setting = learner.training
    if not learner.method.trainable() or setting.lr == 0 or setting.optimizer != "sgd":
        return None
    steps = -(-images // setting.batch_size)
    shares = [(1 + math.cos(math.pi * epoch / setting.epochs)) / 2 for epoch in range(setting.epochs)]
    time = setting.lr * steps * sum(shares) / (1 - setting.momentum)
    # The ridge problem has half of the squared error, the method the whole distance.
    own = 2 * float(learner.method.config().get("regularisation", 0.0))
    return 1 / time + setting.weight_decay + own


def _known(images: Images, learner: Learner) -> Images:
    """The images of classes that have not been forgotten; perhaps none."""
    return images.subset(np.flatnonzero(images.targets_in(learner.classes) >= 0))


def _draw(images: Images, count: int, key: Sequence[int]) -> Images:
    """About ``count`` images, as many of each class as of any other while they last."""
    rng = np.random.default_rng(list(key))
    order = rng.permutation(len(images)).tolist()
    seen: dict[str, int] = dict.fromkeys(images.classes, 0)
    turns = []
    for index in order:
        turns.append((seen[images.labels[index]], index))
        seen[images.labels[index]] += 1
    # The first of every class, then the second; within a turn in the order drawn.
    chosen = sorted(range(len(order)), key=lambda place: turns[place][0])[:count]
    return images.subset(sorted(turns[place][1] for place in chosen))


def _pixels(learner: Learner, images: Images) -> Tensor:
    return torch.cat([batch for batch, _ in _loader(learner, images).in_order()])


def _loader(learner: Learner, images: Images) -> Loader:
    return Loader(images, learner.backbone, learner.device, learner.workers)
