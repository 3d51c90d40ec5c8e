"""What keeps a device from being taught nonsense: canaries, suspects, and a watch for drift."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import GuardError
from everlearn_runtime.heads import Confidence, Head
from everlearn_runtime.heads.checks import check_rows
from everlearn_runtime.heads.confidence import Look, Opinion

# By chance so many doubts come less often than this, where a guard refuses a batch for them.
UNLIKELY = 1e-3
# The watch, see `DriftWatch`: what a known stream adds less than, at what sum it tells, and the most that
# one image counts.
SLACK, LIMIT, MOST = 1.0, 8.0, 4.0


@dataclass(frozen=True)
class Canaries:
    """Features of a few images a class, which nobody learns from: what must not be forgotten.

    Args:
        features: float32 (N, F).
        labels: N class names.
    """

    features: NDArray[np.float32]
    labels: tuple[str, ...]

    def right(self, head: Head, labels: Sequence[str] = ()) -> tuple[int, int]:
        """How many a head names right, and of how many: those of classes that it knows, and are asked for.

        Args:
            head: The head.
            labels: The classes that are asked for; all, if none is.
        """
        wanted = set(labels or self.labels) & set(head.classes)
        chosen = [index for index, label in enumerate(self.labels) if label in wanted]
        if not chosen:
            return 0, 0
        found = head.predict(self.features[chosen])
        return sum(name == self.labels[i] for name, i in zip(found, chosen, strict=True)), len(chosen)

    def of(self, classes: Sequence[str]) -> Canaries:
        """Those of these classes."""
        kept = [index for index, label in enumerate(self.labels) if label in classes]
        return Canaries(self.features[kept], tuple(self.labels[index] for index in kept))

    def arrays(self, classes: Sequence[str]) -> dict[str, NDArray[Any]]:
        """As arrays: ``features``, and ``places``, int64 (N,), of each one's class among these."""
        places = {name: place for place, name in enumerate(classes)}
        return {
            "features": np.asarray(self.features, dtype=np.float32),
            "places": np.array([places[label] for label in self.labels], dtype=np.int64),
        }

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]], classes: Sequence[str], width: int) -> Canaries:
        """The reverse of :meth:`arrays`.

        Raises:
            ValueError: No such arrays.
        """
        if set(arrays) != {"features", "places"}:
            raise ValueError(f"canaries are {sorted(arrays)}; expected features and places")
        features, places = arrays["features"], arrays["places"]
        if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != width:
            raise ValueError(
                f"canaries are {features.dtype} of shape {features.shape}; expected float32 (N, {width})"
            )
        check_rows(features)  # none at all, or such as no graph gives
        if places.dtype != np.int64 or places.shape != features.shape[:1]:
            raise ValueError(f"places of canaries are {places.dtype} of shape {places.shape}")
        if places.min() < 0 or places.max() >= len(classes):
            raise ValueError(f"places of canaries are not within the {len(classes)} classes")
        return cls(features, tuple(classes[place] for place in places))


def check_guard(guard: object) -> None:
    """Raise a ValueError if this is no limit for :func:`refusal`."""
    if isinstance(guard, bool) or not isinstance(guard, (int, float)) or not 0 <= guard < 1:
        raise ValueError(
            f"guard is {guard!r}; give by how much the share of canaries that are right may fall, "
            "at least 0 and below 1, for example 0.02"
        )


def refusal(
    head: Head, canaries: Canaries, features: NDArray[np.float32], labels: Sequence[str], limit: float
) -> GuardError | None:
    """Why a head must not learn something: it would be less accurate on the canaries; None if it may.

    Args:
        head: What is to learn; it stays as it is.
        canaries: Of classes that it should know.
        features: What is to be learned, (B, F).
        labels: Its classes.
        limit: By how much the accuracy may fall.
    """
    trial = copy.deepcopy(head)
    trial.update(features, labels)
    taught = sorted(set(labels))
    for what, classes in (("all canaries", ()), (f"the canaries of {', '.join(taught)}", taught)):
        (before, of), (after, _) = (canaries.right(one, classes) for one in (head, trial))
        if of and before - after > limit * of:
            return GuardError(
                f"learning this would lower the accuracy on {what} from {before} to {after} of {of}, by more "
                f"than guard={limit} allows; nothing was learned: check the labels, or learn without a guard",
                before / of,
                after / of,
            )
    return None


@dataclass(frozen=True)
class Suspect:
    """An image that was learned though it may not be what it is said to be.

    Args:
        index: Its place among the images that were learned.
        label: What it is said to be.
        looks: What it looks most like.
        reason: "label", if so few of the images that look like this are of its class, or even less
            likely ones, as the rate of false alarms allows; "far", if it is unlike everything known.
    """

    index: int
    label: str
    looks: str
    reason: str


def suspects(head: Head, opinion: Opinion, false_alarm: float) -> tuple[Suspect, ...]:
    """Images of known classes that may not be what they are said to be.

    With calibrated probabilities p of the classes, the sum of all p_c <= p_said is the chance that
    an image that looks like this is of its class or one yet less likely. It is below a rate for no more
    than that share of rightly labelled images: a conformal p-value (Romano et al. 2020, arXiv 2006.02544).

    Args:
        head: As it was before.
        opinion: Its own.
        false_alarm: The rate.
    """
    if not head.confidence.calibrated or not len(opinion.rows):
        return ()
    chances = head.probabilities(opinion.scores)
    said = chances[np.arange(len(chances)), opinion.truth]
    tails = np.where(chances <= said[:, None], chances, 0).sum(axis=1)
    far = opinion.look.strangeness > head.confidence.threshold(false_alarm)
    found = []
    for place in np.flatnonzero((tails <= false_alarm) | far).tolist():
        reason = "label" if tails[place] <= false_alarm else "far"
        looks = head.classes[int(opinion.scores[place].argmax())]
        said_to_be = head.classes[int(opinion.truth[place])]
        found.append(Suspect(int(opinion.rows[place]), said_to_be, looks, reason))
    return tuple(found)


def doubtful(images: int, found: Sequence[Suspect], false_alarm: float) -> GuardError | None:
    """Why a batch must not be learned: more of its labels are doubted than chance allows; None if it may.

    Of rightly labelled images of some classes twice as many as usual are doubted. The batch is refused if so
    many would come by chance, even then, in less than one of a thousand batches.

    Args:
        images: How many of the batch are of classes that were known.
        found: Its suspects.
        false_alarm: The rate by which they were found.
    """
    wrong = [suspect for suspect in found if suspect.reason == "label"]
    if chance_of(len(wrong), images, min(2 * false_alarm, 0.5)) >= UNLIKELY:
        return None
    says = Counter((suspect.label, suspect.looks) for suspect in wrong).most_common(3)
    pairs = ", ".join(f"{count} of {label!r} like {looks!r}" for (label, looks), count in says)
    return GuardError(
        f"{len(wrong)} of {images} images do not look like what they are said to be ({pairs}); nothing was "
        "learned: check the labels, or learn without a guard"
    )


def chance_of(least: int, tries: int, rate: float) -> float:
    """The chance of at least so many hits in some tries that are independent.

    >>> round(chance_of(2, 2, 0.1), 6), chance_of(0, 5, 0.1)
    (0.01, 1.0)
    """
    if least == 0:
        return 1.0
    log, other = math.log(rate), math.log1p(-rate)
    ways = (
        math.lgamma(tries + 1) - math.lgamma(hits + 1) - math.lgamma(tries - hits + 1)
        for hits in range(tries + 1)
    )
    terms = (math.exp(way + hits * log + (tries - hits) * other) for hits, way in enumerate(ways))
    return sum(term for hits, term in enumerate(terms) if hits >= least)


class DriftWatch:
    """Tells when the images that come in do not lie any more where those of known classes did.

    Three cumulative sums (Page 1954) of scores z that have mean 0 and variance 1 as long as the stream is
    like the judged images: of the strangeness, brought to a normal score by their histogram, for things that
    are unknown; and of the remoteness both ways, for darkness, a dirty lens or another light, which move all
    images nearer to, or further from, the centre of the classes:

        S = max(0, S + z - 1),  told at S > 8.

    The 1 is for streams that show one class for long, whose mean is not 0: one that is off by less than a
    standard deviation is not told. A stream whose images are independent is told wrongly about once
    in ten million. It is kept in memory only.
    """

    def __init__(self) -> None:
        self.levels = np.zeros(3)
        self.seen = 0

    @property
    def told(self) -> bool:
        """Whether the stream has drifted, and not come back."""
        return bool((self.levels > LIMIT).any())

    def see(self, confidence: Confidence, look: Look) -> None:
        """Take in images, in the order in which they came; nothing happens before there are figures.

        Args:
            confidence: Of the head that looked.
            look: At B images.
        """
        if not confidence.calibrated:
            return
        count = confidence.weight
        far = confidence.remoteness_score(look.remoteness).clip(-MOST, MOST)
        for strangeness, remote in zip(look.strangeness.tolist(), far.tolist(), strict=True):
            beyond = (confidence.share_beyond(strangeness) * count + 0.5) / (count + 1)
            scores = np.array([-NormalDist().inv_cdf(beyond), remote, -remote])
            # After a long drift it should not take as long to come back.
            self.levels = np.clip(self.levels + scores - SLACK, 0.0, 2 * LIMIT)
            self.seen += 1

    def reset(self) -> None:
        """Begin anew, after a change of place that was meant, for example."""
        self.levels, self.seen = np.zeros(3), 0
