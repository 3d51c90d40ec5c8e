"""What limits a run: too few samples, entangled tasks, or its regularisation."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn.analysis.ntk import block_norms, estimate_spectrum, orthogonality, regress
from everlearn.analysis.ntk.regression import check_kernel, check_regularisation, check_targets
from everlearn.tables import aligned

Floats = NDArray[np.float64]

WORTH_NAMING = 0.02
"""A factor limits a run from this share of the targets' variance on."""

OF_A_KERNEL = {
    "samples": ("more samples of each task",),
    "tasks": ("fewer and larger tasks",),
    "more": ("a larger lambda",),
    "less": ("a smaller lambda",),
}
"""What can be done about kernel regression itself, which has samples, tasks and a lambda."""

_VERDICTS = {
    "samples": "too few samples: more images, or more views of them, would help most",
    "tasks": "entangled tasks: they do not stay apart from each other",
    "more": "too little regularisation: it fits what does not generalise",
    "less": "too much regularisation: it learns less than its images would teach it",
    "none": "none of the three stands out",
}


@dataclass(frozen=True)
class Factor:
    """One of the three, in words.

    Attributes:
        name: "samples", "tasks" or "regularisation".
        gain: by how much the error would fall, a share of the targets' variance.
        sentence: the figures behind it.
    """

    name: str
    gain: float
    sentence: str


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
        steps: what can be done, by case: "samples", "tasks", "more" and "less" regularisation.

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
    steps: Mapping[str, tuple[str, ...]] = field(default_factory=OF_A_KERNEL.copy)

    @property
    def gains(self) -> dict[str, float]:
        """By how much the error would fall: "samples", "tasks" and "regularisation".

        Regularisation set right and tasks made orthogonal take the run from ``error +
        interference`` to ``alone``. Each gets the mean of what it brings as the first and as the
        second of the two (its Shapley value), as either can do a part of the other's work; a
        regularisation that is not known, or the best already, brings nothing. Twice the samples
        then take ``alone`` to ``alone_doubled``.
        """
        both = self.error + self.interference - self.alone
        known = self.direction != "the same"
        regularisation = both - (self.interference + self.best_total - self.alone) / 2 if known else 0.0
        return {
            "samples": self.alone - self.alone_doubled,
            "tasks": both - regularisation,
            "regularisation": regularisation,
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

    @property
    def case(self) -> str:
        """What is the matter: "samples", "tasks", "more" or "less" regularisation, or "none"."""
        return self.direction if self.limit == "regularisation" else self.limit

    @property
    def verdict(self) -> str:
        """What is the matter, as a sentence."""
        return _VERDICTS[self.case]

    @property
    def advice(self) -> tuple[str, ...]:
        """What can be done about it, perhaps nothing."""
        return self.steps.get(self.case, ())

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The three, each with the figures behind it."""
        count = round(float(np.mean(self.images)))
        samples = (
            f"A task alone is left with an error of {self.alone:.3f} by {count} images, of "
            f"{self.alone_doubled:.3f} by {2 * count}."
        )
        tasks = (
            f"In sequence tasks are left with {self.best_total:.3f}, each alone with {self.alone:.3f}; their "
            f"orthogonality is {self.orthogonality:.2f}."
        )
        if len(self.images) == 1:
            tasks = "There is one task, which no other disturbs."
        best = f"{self.best_regularisation:.1g} an image, would leave {self.best_total:.3f}"
        regularisation = f"This run's is not known; the best, {best}."
        if self.regularisation is not None:
            regularisation = (
                f"This run's, some {self.regularisation:.1g} an image, leaves "
                f"{self.error + self.interference:.3f}; the best, {best}."
            )
        sentences = {"samples": samples, "tasks": tasks, "regularisation": regularisation}
        return tuple(Factor(name, gain, sentences[name]) for name, gain in self.gains.items())

    @property
    def basis(self) -> str:
        """What it was computed from, as a sentence."""
        count, sampled = (round(float(np.mean(numbers))) for numbers in (self.images, self.sampled))
        tasks = f"{len(self.images)} task{'s' if len(self.images) > 1 else ''}"
        thin = (
            f"; what {count} images teach is inferred from {sampled}: sample more for a firmer word"
            if count > 4 * sampled
            else ""
        )
        return f"{self.kernel}; {tasks}, about {sampled} images of each{thin}"

    def text(self) -> str:
        """Give the verdict and the figures behind it, to print."""
        rows = [["factor", "gain", "figures behind it"]]
        rows += [[one.name, f"{one.gain:.3f}", one.sentence] for one in self.factors]
        lines = [
            *textwrap.wrap(self.basis, 100),
            f"verdict: {self.verdict}",
            *(f"  - {step}" for step in self.advice),
            "",
            aligned(rows, left=(0, 2)),
            "",
            "Errors are those of kernel regression, predicted for new images of a task, as shares of the",
            "targets' variance: 0 all is known, 1 nothing. In sequence, what later tasks add is in them.",
            "Orthogonality 1 means tasks that share nothing. A gain is by how much the error would fall.",
        ]
        return "\n".join(lines)


def diagnose(
    kernel: ArrayLike,
    tasks: Sequence[int] | NDArray[np.integer],
    targets: ArrayLike,
    *,
    images: Sequence[int] | None = None,
    regularisation: float | Sequence[float] | None = None,
    name: str = "a given kernel",
    steps: Mapping[str, tuple[str, ...]] | None = None,
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
        steps: what can be done by whom the kernel is of, see `Diagnosis`.

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
        steps=dict(OF_A_KERNEL if steps is None else steps),
    )
