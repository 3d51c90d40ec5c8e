"""What limits a run: too few samples, entangled tasks, or its regularisation."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from everlearn.data import Images, as_images
from everlearn.learner import Learner
from everlearn.loader import plain_batches
from everlearn.ntk import adapters, block_norms, estimate_spectrum, ntk, orthogonality, regress

Floats = NDArray[np.float64]

WORTH_NAMING = 0.02
"""A factor limits a run from this share of the targets' variance on."""

_ADVICE = {
    "samples": "too few samples: more images, or views of them, would teach it more than anything else",
    "tasks": "entangled tasks: later tasks undo earlier ones; orthogonality losses, fewer and larger tasks, "
    "or averaging the adapters more would keep them apart",
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
    is known, 1: nothing), averaged over tasks. The gains say by how much the error would fall if
    one factor were put right, so they can be compared.

    Attributes:
        kernel: what it was computed from, in words.
        images: images of each task that the run learned from.
        sampled: images of each task that the kernel was computed on.
        error: predicted error at these numbers of images and this regularisation.
        error_best: the same at the best regularisation.
        error_doubled: predicted error with twice the images, at the regularisation best for those.
        interference: what later tasks change on a task's images, mean square, at the run's
            regularisation.
        interference_best: the same at the regularisation that is best for each task alone.
        regularisation: lambda per image, the geometric mean over tasks; None where it is
            not known, and then not judged.
        best_regularisation: lambda per image that is best for a task alone.
        norms: float64 (T, T), root mean squared kernel entries between tasks.
        orthogonalities: float64 (T, T), see `everlearn.ntk.orthogonality`.

    Source: the factors, arXiv 2407.17120, section 3; the currency is ours.
    """

    kernel: str
    images: tuple[int, ...]
    sampled: tuple[int, ...]
    error: float
    error_best: float
    error_doubled: float
    interference: float
    interference_best: float
    regularisation: float | None
    best_regularisation: float
    norms: Floats
    orthogonalities: Floats

    @property
    def gains(self) -> dict[str, float]:
        """What there is to gain by twice the samples, by untangled tasks, by the best regularisation."""
        return {
            "samples": self.error_best - self.error_doubled,
            "tasks": self.interference_best,
            "regularisation": self.error - self.error_best,
        }

    @property
    def limit(self) -> str:
        """The factor with the largest gain, "samples", "tasks" or "regularisation"; "none" if all are small."""
        gains = self.gains
        largest = max(gains, key=gains.__getitem__)
        return largest if gains[largest] >= WORTH_NAMING else "none"

    @property
    def direction(self) -> str:
        """Which regularisation would be better: "more", "less", or "the same" as the run's."""
        if self.regularisation is None or self.error - self.error_best < 1e-3:
            return "the same"
        return "more" if self.best_regularisation > self.regularisation else "less"

    @property
    def orthogonality(self) -> float:
        """Effective task orthogonality in [0, 1], the mean over pairs of tasks; 1 with one task."""
        pairs = self.orthogonalities[np.triu_indices(len(self.orthogonalities), 1)]
        return float(pairs.mean()) if len(pairs) else 1.0

    def text(self) -> str:
        """The verdict and the figures behind it, to print."""
        gains = self.gains
        verdict = _ADVICE[self.direction if self.limit == "regularisation" else self.limit]
        count = round(float(np.mean(self.images)))
        regularisation = (
            f"not known for this run; the best is {self.best_regularisation:.1e} an image"
            if self.regularisation is None
            else f"error {self.error:.3f} at about {self.regularisation:.1e} an image, {self.error_best:.3f} "
            f"at the best, {self.best_regularisation:.1e} ({self.direction})"
        )
        lines = [
            f"{self.kernel}; {len(self.images)} tasks, {min(self.sampled)} to {max(self.sampled)} images of each",
            f"verdict: {verdict}",
            "",
            f"{'factor':<16}{'gain':<8}figures behind it",
            f"{'samples':<16}{gains['samples']:<8.3f}error {self.error_best:.3f} of {count} images a task, "
            f"{self.error_doubled:.3f} of {2 * count}",
            f"{'tasks':<16}{gains['tasks']:<8.3f}later tasks change this much on a task's images; "
            f"orthogonality {self.orthogonality:.2f} (1: nothing shared)",
            f"{'regularisation':<16}{gains['regularisation']:<8.3f}{regularisation}",
            "",
            "Errors are predicted for new images of a task, as shares of the targets' variance; a gain is by",
            f"how much the error would fall. Below {WORTH_NAMING} a factor is not named.",
        ]
        if count > 4 * np.mean(self.sampled):
            lines.append(
                f"The prediction for {count} images rests on {round(float(np.mean(self.sampled)))} of them: "
                "sample more for a firmer one."
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

    Samples and regularisation are judged on each task alone, by its learning curve with the
    spectrum that `estimate_spectrum` finds; tasks by the interference term of the residual
    identity. So that the causes stay apart, samples and tasks are judged at the regularisation
    that is best for each task alone.

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
    matrix, numbers, wanted = (np.asarray(part) for part in (kernel, tasks, targets))
    norms, apart = block_norms(matrix, numbers), orthogonality(matrix, numbers)
    count = len(norms)
    sampled = np.bincount(numbers, minlength=count)
    learned = sampled if images is None else np.asarray(images)
    if learned.shape != (count,) or (learned < 1).any():
        raise ValueError(f"images are {images}; expected a number of at least 1 for each of {count} tasks")
    given = None if regularisation is None else np.broadcast_to(np.asarray(regularisation, float), (count,))
    error, best_error, doubled, ridges = (np.empty(count) for _ in range(4))
    power = np.empty(count)
    for task in range(count):
        here = numbers == task
        block, own, n = matrix[np.ix_(here, here)], wanted[here], int(learned[task])
        power[task] = (own**2).sum(1).mean()
        if power[task] == 0:
            raise ValueError(f"the targets of task {task + 1} are all zero; there is nothing to learn")
        spectrum = estimate_spectrum(block, own)
        grid = np.trace(block) / len(block) * np.geomspace(1e-4, 10 * n, 60)
        if given is not None:
            grid = np.append(grid, given[task])
        errors = np.array([spectrum.error(n, ridge) for ridge in grid])
        best = int(errors.argmin())
        ridges[task], best_error[task] = grid[best], errors[best]
        error[task] = errors[best] if given is None else errors[-1]
        doubled[task] = min(spectrum.error(2 * n, ridge) for ridge in grid)

    def interference(strength: Floats) -> float:
        # A sample of m stands for n images: the same filter is kept by lambda m / n.
        change = regress(matrix, numbers, wanted, (strength * sampled / learned).tolist()).interference
        squares = (change**2).sum(1)
        return float(np.mean([squares[numbers == task].mean() / power[task] for task in range(count)]))

    at_best = interference(ridges)
    return Diagnosis(
        kernel=name,
        images=tuple(learned.tolist()),
        sampled=tuple(sampled.tolist()),
        error=float((error / power).mean()),
        error_best=float((best_error / power).mean()),
        error_doubled=float((doubled / power).mean()),
        interference=at_best if given is None else interference(given),
        interference_best=at_best,
        regularisation=None if given is None else _geometric_mean(given / learned),
        best_regularisation=_geometric_mean(ridges / learned),
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

    The kernel is that of the adapters behind the features (`everlearn.ntk.ntk`), or of a linear
    head where there are none, with features at unit mean square length. The targets
    are one-hot over all classes learned, less their mean. It is taken where the learner stands
    now and on images it has learned, so it flatters a learner whose features have fitted them.

    Args:
        learner: after at least one task.
        tasks: training images of each task that it learned, in that order: anything that
            `as_images` takes.
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
            f"{len(data)} tasks of data for a learner of {len(learner.tasks)} tasks, or of other classes; give "
            "the training images of each task that it learned, in that order"
        )
    if len(learner.classes) < 2:
        raise ValueError(f"the learner knows {len(learner.classes)} classes; a diagnosis needs at least 2")
    drawn = [_draw(images, samples, [seed, index]) for index, images in enumerate(data)]
    short = [index for index, images in enumerate(drawn) if len(images) < 4]
    if short:
        raise ValueError(
            f"task {short[0] + 1} has {len(drawn[short[0]])} images; a diagnosis needs at least 4 of each task"
        )
    pixels = torch.cat([_pixels(learner, images) for images in drawn])
    with torch.no_grad():
        learner.method.eval()
        features = torch.cat([learner.method.features(part) for part in pixels.split(64)]).double()
    names = adapters(learner.method, pixels)
    if names:
        kernel = ntk(learner.method, pixels, parameters=names, readouts=readouts, seed=seed, progress=progress)
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


def regularisation_of(learner: Learner, images: int) -> float | None:
    """Estimate the lambda per image that training on a task of so many images amounts to.

    Training that starts at the previous parameters and goes on for a time t, the sum of its
    learning rates over 1 - momentum, shrinks like a ridge of 1/t; weight decay and the method's own
    ``regularisation``, if it has one, add to that. An order of magnitude: the loss is not
    squared, and the scale of the classifier is taken as 1. None where nothing is trained.

    Source: Ali, Kolter and Tibshirani, "A Continuous-Time View of Early Stopping for Least Squares",
    AISTATS 2019.
    """
    setting = learner.training
    if not learner.method.trainable() or setting.lr == 0:
        return None
    steps = -(-images // setting.batch_size)
    shares = [(1 + math.cos(math.pi * epoch / setting.epochs)) / 2 for epoch in range(setting.epochs)]
    time = setting.lr * steps * sum(shares) / (1 - setting.momentum)
    # The ridge problem has half of the squared error, the method the whole distance.
    own = 2 * float(learner.method.config().get("regularisation", 0.0))
    return 1 / time + setting.weight_decay + own


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
    batches = plain_batches(images, learner.backbone.input, workers=learner.workers)
    return torch.cat([learner.backbone.normalise(batch.to(learner.device)) for batch, _ in batches])


def _geometric_mean(values: Floats) -> float:
    return float(np.exp(np.log(values).mean()))
