"""What limits a run: too few samples, entangled tasks, or its regularisation."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from everlearn.analysis.ntk import adapters, block_norms, estimate_spectrum, ntk, orthogonality, regress
from everlearn.analysis.ntk.regression import check_kernel, check_regularisation, check_targets
from everlearn.data import Images, as_images
from everlearn.data.loader import Loader
from everlearn.learner import Learner
from everlearn.tables import aligned

Floats = NDArray[np.float64]

WORTH_NAMING = 0.02
"""A factor limits a run from this share of the targets' variance on."""

_ADVICE = {
    "samples": "too few samples: more images, or more views of them, would help most",
    "tasks": "entangled tasks: later tasks undo earlier ones; stronger orthogonality losses, or fewer and "
    "larger tasks, would keep them apart",
    "more": "too little regularisation: it fits what does not generalise; pull harder to the previous "
    "parameters, lower lr, or train for fewer epochs",
    "less": "too much regularisation: it learns less than its images would teach it; pull less to the "
    "previous parameters, raise lr, or train for more epochs",
    "none": "none of the three stands out",
}


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The three factors of a run, in one currency.

    Errors are mean squared ones on new images of a task, as shares of its targets' variance (0: all
    is known, 1: nothing), averaged over tasks. What a task is left with is its own error plus the
    interference of later tasks. The gains say what there is to gain by each factor, so that they
    can be compared.

    Attributes:
        kernel: what it was computed from, in words.
        images: images of each task that the run learned from.
        sampled: images of each task that the kernel was computed on.
        regularisation: lambda per image, the geometric mean over tasks; None where it is not
            known. The run's errors are then those of the best one.
        error: predicted error of a task alone, at the run's regularisation.
        interference: mean square of what later tasks change on a task's images, at the same.
        best_regularisation: lambda per image with the smallest sum of error and interference.
        best_total: that sum.
        alone: predicted error of a task alone, at the regularisation best for that.
        alone_doubled: the same with twice the images.
        norms: float64 (T, T), root mean squared kernel entries between tasks.
        orthogonalities: float64 (T, T), see `everlearn.analysis.ntk.orthogonality`.

    Source: the factors, arXiv 2407.17120; the currency is ours.
    """

    kernel: str
    images: tuple[int, ...]
    sampled: tuple[int, ...]
    regularisation: float | None
    error: float
    interference: float
    best_regularisation: float
    best_total: float
    alone: float
    alone_doubled: float
    norms: Floats
    orthogonalities: Floats

    @property
    def gains(self) -> dict[str, float]:
        """By how much the error would fall: "samples", "tasks" and "regularisation".

        Regularisation set right and tasks made orthogonal take the run from ``error +
        interference`` to ``alone``. Each gets the mean of what it brings as the first and as the
        second of the two (its Shapley value), as either can do a part of the other's work. Twice the
        samples then take ``alone`` to ``alone_doubled``.
        """
        return {
            "samples": self.alone - self.alone_doubled,
            "tasks": (self.interference + self.best_total - self.alone) / 2,
            "regularisation": (self.error + self.interference - self.best_total + self.error - self.alone)
            / 2,
        }

    @property
    def limit(self) -> str:
        """The factor with the largest gain, or "none" when all are below `WORTH_NAMING`."""
        gains = self.gains
        largest = max(gains, key=gains.__getitem__)
        return largest if gains[largest] >= WORTH_NAMING else "none"

    @property
    def direction(self) -> str:
        """Which regularisation would be better: "more" or "less" than the run's, or "the same"."""
        if self.regularisation is None or self.best_regularisation == self.regularisation:
            return "the same"
        return "more" if self.best_regularisation > self.regularisation else "less"

    @property
    def orthogonality(self) -> float:
        """Effective task orthogonality in [0, 1], the mean over pairs of tasks; 1 with one task."""
        pairs = self.orthogonalities[np.triu_indices(len(self.orthogonalities), 1)]
        return float(pairs.mean()) if len(pairs) else 1.0

    def text(self) -> str:
        """Give the verdict and the figures behind it, to print."""
        verdict = _ADVICE[self.direction if self.limit == "regularisation" else self.limit]
        count, sampled = (round(float(np.mean(numbers))) for numbers in (self.images, self.sampled))
        figures = {
            "samples": f"error {self.alone:.3f} with {count} images a task, {self.alone_doubled:.3f} with "
            f"{2 * count}",
            "tasks": f"error {self.best_total:.3f} in sequence, {self.alone:.3f} alone, each at its best "
            f"regularisation; orthogonality {self.orthogonality:.2f}",
            "regularisation": f"error {self.best_total:.3f} at the best, "
            f"{self.best_regularisation:.1e} an image; this run's is not known"
            if self.regularisation is None
            else f"error {self.error:.3f} and interference {self.interference:.3f} at "
            f"{self.regularisation:.0e} an image, {self.best_total:.3f} in all at "
            f"{self.best_regularisation:.0e} ({self.direction})",
        }
        lines = [
            f"{self.kernel}; {len(self.images)} tasks, about {sampled} images of each",
            *textwrap.wrap(f"verdict: {verdict}", 100),
            "",
            aligned(
                [
                    ["factor", "gain", "figures behind it"],
                    *([name, f"{gain:.3f}", figures[name]] for name, gain in self.gains.items()),
                ],
                left=(0, 2),
            ),
            "",
            "Errors are those of kernel regression, predicted for new images of a task, as shares of the",
            "targets' variance: 0 all is known, 1 nothing. Interference is what later tasks add to them;",
            "orthogonality 1 means tasks that share nothing. A gain is by how much the error would fall.",
        ]
        if count > 4 * sampled:
            lines.append(
                f"What {count} images teach is inferred from {sampled}: sample more for a firmer word."
            )
        return "\n".join(lines)


def diagnose(
    kernel: ArrayLike,
    tasks: Sequence[int] | NDArray[np.integer],
    targets: ArrayLike,
    *,
    images: Sequence[int] | None = None,
    regularisation: float | Sequence[float] | None = None,
    name: str = "a given kernel",
) -> Diagnosis:
    """Find what limits kernel regression on these tasks.

    A task's own error is that of its learning curve, with the spectrum that `estimate_spectrum`
    finds; the interference is that term of the residual identity, see `everlearn.analysis.ntk.regress`.

    Args:
        kernel: (N, N), of the sampled images of all tasks.
        tasks: N task numbers in the order of learning, 0 to T - 1, at least 4 of each.
        targets: (N, C).
        images: how many images of each task the run learned from; those sampled by default.
        regularisation: lambda of the run at that number of images, for all tasks or one for each;
            None: not known.
        name: of the kernel, for the text.

    Raises:
        ValueError: as `regress` and `estimate_spectrum`, and for targets that are zero, or other
            numbers of images than tasks.
    """
    matrix, numbers = check_kernel(kernel, tasks)
    wanted = check_targets(targets, len(matrix))
    norms, apart = block_norms(matrix, numbers), orthogonality(matrix, numbers)
    members = [np.flatnonzero(numbers == task) for task in range(len(norms))]
    sampled = np.array([len(here) for here in members])
    learned = sampled if images is None else np.asarray(images)
    if learned.shape != sampled.shape or (learned < 1).any():
        raise ValueError(
            f"images are {images}; expected a number of at least 1 for each of {len(norms)} tasks"
        )
    power = np.array([(wanted[here] ** 2).sum(1).mean() for here in members])
    if not power.all():
        raise ValueError(f"the targets of task {power.argmin() + 1} are all zero; there is nothing to learn")
    spectra = [estimate_spectrum(matrix[np.ix_(here, here)], wanted[here]) for here in members]

    # Candidates are lambda per image, the same for all tasks; the last one is the run's own.
    mean = float(np.trace(matrix)) / len(matrix)
    strengths = np.tile(mean * np.geomspace(1e-4 / learned.max(), 10, 60)[:, None], len(members))
    if regularisation is not None:
        strengths = np.vstack([strengths, check_regularisation(regularisation, len(members)) / learned])

    def errors(factor: int) -> Floats:
        count = factor * learned
        return np.array(
            [
                np.mean(
                    [
                        spectrum.error(n, strength * n) / scale
                        for spectrum, n, strength, scale in zip(spectra, count, row, power, strict=True)
                    ]
                )
                for row in strengths
            ]
        )

    def interference(row: Floats) -> float:
        # A sample stands for all images of its task: lambda per image makes the same filter.
        squares = (regress(matrix, numbers, wanted, (row * sampled).tolist()).interference ** 2).sum(1)
        return float(
            np.mean([squares[here].mean() / scale for here, scale in zip(members, power, strict=True)])
        )

    alone = errors(1)
    later = np.array([interference(row) for row in strengths])
    best = int((alone + later).argmin())
    run = best if regularisation is None else len(strengths) - 1
    per_image = np.exp(np.log(strengths).mean(1))
    return Diagnosis(
        kernel=name,
        images=tuple(learned.tolist()),
        sampled=tuple(sampled.tolist()),
        regularisation=None if regularisation is None else float(per_image[run]),
        error=float(alone[run]),
        interference=float(later[run]),
        best_regularisation=float(per_image[best]),
        best_total=float(alone[best] + later[best]),
        alone=float(alone.min()),
        alone_doubled=float(errors(2).min()),
        norms=norms,
        orthogonalities=apart,
    )


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
    )


def method_report(learner: Learner, tasks: Iterable[object]) -> str:
    """Give what a learner's method itself says about the run, `Method.report`; empty where nothing.

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
