"""Whether a learner knows how sure it may be: calibration, and known images against unknown ones."""

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn.data import as_images
from everlearn.learner import Learner
from everlearn_runtime.heads import Head
from everlearn_runtime.heads.confidence import probabilities

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """How far probabilities keep what they say.

    Attributes:
        error: expected calibration error in [0, 1]: over bins of the largest probability, the mean
            distance of that probability from the share of right answers (Naeini et al. 2015).
        shares: of the images in each of 15 bins of equal width, (15,).
        says: mean largest probability in each bin, (15,); 0 in empty ones.
        is_right: share of right answers in each bin, (15,).
    """

    error: float
    shares: NDArray[np.float64]
    says: NDArray[np.float64]
    is_right: NDArray[np.float64]


@dataclass(frozen=True)
class Sureness:
    """What a learner's head says of test images that it was not calibrated by.

    Attributes:
        judged: images that it was calibrated by: the other half of the test images.
        temperature: found by them.
        reliability: of the probabilities.
        missing: the classes that were taken out of the head, those of the last task, so that something is
            unknown; empty after a single task, and then the rest says nothing.
        known: strangeness of images of the classes that are left, (K,).
        unknown: of those that are not, (U,).
        threshold: above which an image is called unknown, at a rate of false alarms of 5 %.
    """

    judged: int
    temperature: float
    reliability: Reliability
    missing: tuple[str, ...]
    known: NDArray[np.float64]
    unknown: NDArray[np.float64]
    threshold: float

    @property
    def auroc(self) -> float:
        """The chance that an unknown image is stranger than a known one; not a number without any."""
        some = len(self.known) and len(self.unknown)
        return auroc(self.known, self.unknown) if some else float("nan")

    @property
    def sentences(self) -> tuple[str, ...]:
        """What it comes to: how far probabilities are off, and whether the unknown is told."""
        first = (
            f"Calibrated by {self.judged} test images, temperature {self.temperature:.3g}; on the others "
            f"probabilities are off by {100 * self.reliability.error:.1f} % on average."
        )
        if not (len(self.known) and len(self.unknown)):
            return (first,)
        alarms, found = (float((rows > self.threshold).mean()) for rows in (self.known, self.unknown))
        count = len(self.missing)
        return (
            first,
            f"Without the {count} {'class' if count == 1 else 'classes'} of the last task: of their images "
            f"{100 * found:.0f} % are called unknown, of others {100 * alarms:.0f} %; AUROC "
            f"{100 * self.auroc:.0f} %, by guessing 50.",
        )

    def text(self) -> str:
        """The sentences, in lines."""
        return "\n".join(self.sentences)


def how_sure(
    learner: Learner, test: object, *, features: NDArray[np.float32] | None = None
) -> Sureness | None:
    """Calibrate a learner's head by half of some images, and see what it says of the others.

    The learner stays as it is. None if no class that was learned has two images.

    Args:
        learner: with classes.
        test: labelled images that nothing was learned from; those of other classes are left out.
        features: of the test images, (N, F), where they have been computed: all of them, in their order.
    """
    images = as_images(test)
    own = [i for i, name in enumerate(images.labels) if name in learner.classes]
    images = images.subset(own)
    halves: tuple[list[int], list[int]] = ([], [])
    turns: dict[str, int] = {}
    for index, name in enumerate(images.labels):
        halves[turns.setdefault(name, 0) % 2].append(index)
        turns[name] += 1
    if not halves[1]:
        return None
    features = learner.features(images) if features is None else features[own]
    labels = np.array(images.labels)
    first, second = (np.array(half) for half in halves)
    head = copy.deepcopy(learner.head)
    head.calibrate(features[first], labels[first].tolist())
    # For once by as many as there are, enough or not.
    temperature = head.confidence.temperature
    found = reliability(head, features[second], labels[second], temperature)
    judged, none = head.confidence.judged, np.zeros(0)
    missing = tuple(name for name in learner.tasks[-1] if name in head.classes)
    gone = np.isin(labels, missing)
    by = first[~gone[first]]
    if len(head.classes) - len(missing) < 2 or not len(by):
        return Sureness(judged, temperature, found, (), none, none, 1.0)
    for name in missing:
        head.remove(name)
    head.calibrate(features[by], labels[by].tolist())
    known, unknown = features[second[~gone[second]]], features[gone]
    return Sureness(
        judged,
        temperature,
        found,
        missing,
        head.strangeness(known) if len(known) else none,
        head.strangeness(unknown) if len(unknown) else none,
        head.confidence.threshold(),
    )


def reliability(
    head: Head, features: ArrayLike, labels: ArrayLike, temperature: float | None = None
) -> Reliability:
    """How far a head's probabilities keep what they say.

    Args:
        head: that knows the classes.
        features: (B, F), of images that neither the head nor its figures have seen.
        labels: B class names.
        temperature: of the softmax; the head's own when left out.
    """
    chances = probabilities(head.scores(features), head.temperature if temperature is None else temperature)
    best = chances.max(axis=1)
    right = np.array(head.classes)[chances.argmax(axis=1)] == np.asarray(labels)
    places = np.minimum((best * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    says = np.bincount(places, best, BINS) / np.maximum(counts, 1)
    is_right = np.bincount(places, right, BINS) / np.maximum(counts, 1)
    shares = counts / len(best)
    return Reliability(float((shares * np.abs(says - is_right)).sum()), shares, says, is_right)


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """The chance that a value of the second kind is larger than one of the first; of equal ones, half.

    >>> auroc([1.0, 2.0], [2.0, 3.0])
    0.875
    """
    lower, upper = np.sort(np.asarray(known)), np.asarray(unknown)
    below, equal_too = (np.searchsorted(lower, upper, side) for side in ("left", "right"))
    return float((below + equal_too).mean() / (2 * len(lower)))
