"""How sure a head may be: running figures of what it said of images before it learned them.

*Predict, then learn*: an image is judged by the head as it was, and only then learned. So the figures are of
images that the head had not seen, and no image has to be kept for them. They are

- for each of 40 temperatures T the summed log loss of softmax(scores / T) at the true class: the T with the
  smallest sum makes probabilities of scores (Guo et al. 2017, arXiv 1706.04599, with one parameter);
- a histogram of how strange those images were (:func:`strangeness`), all of classes that were known:
  what is stranger than all but a few of them is of no known class;
- mean and variance of how far from all classes they lay (:func:`remoteness`): a stream of images that lie
  elsewhere has drifted.

All are sums, in which an image counts half as much once 125 more have been judged, for the head that judged
it is not the one that is there now: it has learned all of them. Those of two streams add.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Scores of cosines want a temperature of some .1, of ridge regression of some .05, of LDA of some 10.
TEMPERATURES = np.logspace(-3, 3, 40)
# The least probability that the log loss takes for possible: a smaller one could only be a T far too small.
LARGEST_LOSS = 700.0
# Bins of the histogram in a factor of two: a bin is 1.1 % wide.
BINS = 64
LARGEST_BIN = 1100 * BINS  # all that float64 holds
# Images from which on the figures say something.
ENOUGH = 200
# And after which earlier ones count half.
HALF_LIFE = 125
# What counts less is left out of the histogram.
LEAST_WEIGHT = 1e-4
MOST = 1 << 40
ARRAYS = ("bins", "judged", "losses", "moments", "weights")


@dataclass(frozen=True)
class Judgement:
    """What a head said of some images before it learned them: what they add to the figures.

    Args:
        losses: log losses, summed over the images, at each of `TEMPERATURES`; float32 (40,), finite and
            not negative.
        bins: of the histogram, one for each image, ascending.
        moments: sum and sum of squares of the remoteness.
    """

    losses: NDArray[np.float32]
    bins: tuple[int, ...]
    moments: tuple[float, float]

    def says(self) -> dict[str, Any]:
        """This as JSON, some 300 bytes and five for each image."""
        losses = base64.b64encode(self.losses.astype("<f4").tobytes()).decode()
        return {"losses": losses, "bins": self.bins, "moments": self.moments}

    @classmethod
    def read(cls, says: Any) -> Judgement:
        """The reverse of :meth:`says`, to the bit.

        Raises:
            ValueError: no such JSON, or no numbers that a judgement can have.
        """
        try:
            losses = np.frombuffer(base64.b64decode(says["losses"], validate=True), dtype="<f4")
            bins, moments = tuple(says["bins"]), tuple(says["moments"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no judgement ({error})") from None
        sound = len(losses) == len(TEMPERATURES) and np.isfinite(losses).all() and losses.min() >= 0
        if set(says) != {"losses", "bins", "moments"} or not sound or not bins:
            raise ValueError("no judgement: its losses are not as expected")
        if len(moments) != 2 or not all(type(each) is float and math.isfinite(each) for each in moments):
            raise ValueError("no judgement: its moments are not as expected")
        if any(type(place) is not int or abs(place) > LARGEST_BIN for place in bins):
            raise ValueError("no judgement: its bins are not as expected")
        return cls(losses.astype(np.float32), bins, moments)


class Look(NamedTuple):
    """How images lie to the classes, whatever they show.

    Args:
        strangeness: (B,), see :func:`strangeness`.
        remoteness: (B,), see :func:`remoteness`.
    """

    strangeness: NDArray[np.float64]
    remoteness: NDArray[np.float64]


@dataclass(frozen=True)
class Opinion:
    """What a head thinks of labelled images before it learns them: of those whose class it knows.

    Args:
        rows: which of the images these are, (K,), ascending.
        truth: the column of each one's class, (K,).
        scores: (K, C).
        look: of K images.
    """

    rows: NDArray[np.intp]
    truth: NDArray[np.intp]
    scores: NDArray[np.float64]
    look: Look

    @property
    def judgement(self) -> Judgement | None:
        """What it adds to the figures; None without any image."""
        return judge(self.scores, self.truth, self.look) if len(self.rows) else None


def judge(scores: NDArray[np.float64], truth: NDArray[np.intp], look: Look) -> Judgement:
    """Judge images by what a head said of them.

    Args:
        scores: (B, C), B at least 1.
        truth: the column of each image's class, (B,).
        look: of B images.
    """
    gaps = scores - scores.max(axis=1, keepdims=True)
    losses = np.empty(len(TEMPERATURES), dtype=np.float64)
    own = gaps[np.arange(len(gaps)), truth]
    with np.errstate(over="ignore", under="ignore"):
        for place, temperature in enumerate(TEMPERATURES):
            each = np.log(np.exp(gaps / temperature).sum(axis=1)) - own / temperature
            losses[place] = np.minimum(each, LARGEST_LOSS).sum()
    far = look.remoteness
    return Judgement(
        np.maximum(losses, 0).astype(np.float32),
        tuple(sorted(bins_of(look.strangeness))),
        (float(far.sum()), float(np.vdot(far, far))),
    )


def bins_of(strangeness: NDArray[np.float64]) -> list[int]:
    """The bin of each value (B,): floor(64 log2 value); zero is in the bin of the smallest numbers."""
    logs = np.log2(np.maximum(strangeness, np.finfo(np.float64).tiny))
    places: list[int] = np.floor(BINS * logs).astype(np.int64).tolist()
    return places


def probabilities(scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """softmax(scores / T), (B, C).

    >>> probabilities(np.array([[0.0, 0.0], [0.0, 1.0]]), 0.1).round(3).tolist()
    [[0.5, 0.5], [0.0, 1.0]]
    """
    with np.errstate(over="ignore", under="ignore"):
        odds = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
        shares: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
    return shares


def look_at(distances: NDArray[np.float64], plain: NDArray[np.float64]) -> Look:
    """How rows lie to the classes.

    Args:
        distances: the head's own squared distances, (B, C), at least 0.
        plain: squared Euclidean distances to the class means, (B, C).
    """
    return Look(strangeness(distances, plain), remoteness(plain))


def remoteness(plain: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm to base 2 of the mean squared distance to the class means, (B,).

    That mean is the squared distance to the centre of the classes, but for a constant.

    Args:
        plain: squared Euclidean distances, (B, C).

    >>> remoteness(np.array([[3.0, 5.0]]))
    array([2.])
    """
    logs: NDArray[np.float64] = np.log2(np.maximum(plain.mean(axis=1), np.finfo(np.float64).tiny))
    return logs


def strangeness(distances: NDArray[np.float64], plain: NDArray[np.float64]) -> NDArray[np.float64]:
    """How little rows are like any class, (B,): larger is stranger.

        min_c D_c / mean_c D_c * sqrt(|x - m|)

    with D the head's own squared distances and m the nearest class mean. The quotient is near 1 for a row
    that is as far from all classes, because it is like all of them a little or like none. As the mean is the
    distance to the centre of the classes, but for a constant, that is a relative Mahalanobis distance (Ren
    et al. 2021, arXiv 2106.09022), as a ratio. It tells new classes of the same world best, and things from
    another world badly; the plain distance, which tells those well, therefore counts, too, if less.

    Args:
        distances: D, (B, C), at least 0.
        plain: squared Euclidean distances to the class means, (B, C).

    >>> strangeness(np.array([[1.0, 9.0], [9.0, 9.0]]), np.array([[1.0, 4.0], [16.0, 20.0]]))
    array([0.2, 2. ])
    """
    nearest, mean = distances.min(axis=1), distances.mean(axis=1)
    ratio: NDArray[np.float64] = np.divide(nearest, mean, out=np.ones_like(mean), where=mean > 0)
    ratio *= plain.min(axis=1) ** 0.25
    return ratio


class Confidence:
    """The running figures.

    >>> figures = Confidence()
    >>> figures.judged, figures.calibrated
    (0, False)
    >>> look = Look(np.array([2.0]), np.array([1.0]))
    >>> figures.note(judge(np.array([[0.9, 0.1]]), np.array([0]), look))
    >>> figures.judged
    1
    """

    def __init__(self) -> None:
        self._losses = np.zeros(len(TEMPERATURES))
        self._histogram: dict[int, float] = {}  # the weight of the images in each bin that is not empty
        self._moments = np.zeros(2)
        self._judged = 0

    @property
    def judged(self) -> int:
        """How many images were judged."""
        return self._judged

    @property
    def weight(self) -> float:
        """For how many images these count: the earlier ones for less."""
        return sum(self._histogram.values())

    @property
    def calibrated(self) -> bool:
        """Whether these were enough, 200, for temperature and threshold to say something."""
        return self._judged >= ENOUGH

    @property
    def temperature(self) -> float:
        """The T by which softmax(scores / T) gave the true classes the most probability.

        Between the values of the grid it is the vertex of the parabola through the smallest sum and its
        neighbours, over log T. Of sums that are alike (within a tenth of a nat altogether) the largest T
        counts, so that a head that has made no mistake yet is not called infallible.

        Raises:
            ValueError: nothing was judged yet.
        """
        if not self._histogram:
            raise ValueError("no image was judged yet, so no temperature is known")
        losses = self._losses
        place = int(np.flatnonzero(losses <= losses.min() + 0.1)[-1])
        if place != int(losses.argmin()) or not 0 < place < len(losses) - 1:
            return float(TEMPERATURES[place])
        left, middle, right = losses[place - 1 : place + 2].tolist()
        shift = 0.5 * (left - right) / (left - 2 * middle + right)
        step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
        return float(TEMPERATURES[place] * math.exp(shift * step))

    def threshold(self, false_alarm: float = 0.05) -> float:
        """The strangeness that only a share of the judged images, all of known classes, exceeded by weight.

        Within a bin the images are taken to be spread evenly over the logarithm.

        Args:
            false_alarm: the share, above 0 and below 1.

        Raises:
            ValueError: a share out of range, or nothing was judged yet.
        """
        check_false_alarm(false_alarm)
        if not self._histogram:
            raise ValueError("no image was judged yet, so no threshold is known")
        left = false_alarm * self.weight
        for place in sorted(self._histogram, reverse=True):
            count = self._histogram[place]
            if left < count:
                break
            left -= count
        return float(2.0 ** min((place + 1 - left / count) / BINS, 1023.0))

    def share_beyond(self, strangeness: float) -> float:
        """The share of judged images that were stranger, by weight, in [0, 1]; 1 before there are any."""
        if not self._histogram:
            return 1.0
        at = BINS * math.log2(max(strangeness, float(np.finfo(np.float64).tiny)))
        place = math.floor(at)
        more = sum(count for other, count in self._histogram.items() if other > place)
        return (more + self._histogram.get(place, 0) * (place + 1 - at)) / self.weight

    def remoteness_score(self, remoteness: NDArray[np.float64]) -> NDArray[np.float64]:
        """Remoteness (B,) less the mean of judged images, in standard deviations; 0 before there are two."""
        if self._judged < 2:
            return np.zeros(len(remoteness))
        mean, square = (self._moments / self.weight).tolist()
        deviation = math.sqrt(max(square - mean * mean, 1e-12))
        score: NDArray[np.float64] = (remoteness - mean) / deviation
        return score

    def note(self, judgement: Judgement) -> None:
        """Add what was said of some images, which all count alike; those before count for less."""
        keep = 0.5 ** (len(judgement.bins) / HALF_LIFE)
        self._losses = keep * self._losses + judgement.losses
        self._moments = keep * self._moments + np.array(judgement.moments)
        faded = {place: keep * weight for place, weight in self._histogram.items()}
        self._histogram = {place: weight for place, weight in faded.items() if weight >= LEAST_WEIGHT}
        self._count((place, 1.0) for place in judgement.bins)
        self._judged += len(judgement.bins)

    def merge(self, other: Confidence) -> None:
        """Add the figures of another stream; the other's stay as they are."""
        self._losses = self._losses + other._losses
        self._moments = self._moments + other._moments
        self._count(list(other._histogram.items()))
        self._judged += other._judged

    def _count(self, weights: Iterable[tuple[int, float]]) -> None:
        for place, weight in weights:
            self._histogram[place] = self._histogram.get(place, 0.0) + weight

    @property
    def nbytes(self) -> int:
        """Bytes of :meth:`arrays`."""
        if not self._judged:
            return 0
        return self._losses.nbytes + self._moments.nbytes + 8 + 16 * len(self._histogram)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The figures as arrays, by which they come back to the bit; none if nothing was judged.

        ``losses`` float64 (40,), ``moments`` float64 (2,), ``judged`` int64 (1,); of the k bins that are not
        empty ``bins`` int64 (k,), ascending, and ``weights`` float64 (k,).
        """
        if not self._judged:
            return {}
        places = sorted(self._histogram)
        return {
            "losses": self._losses.copy(),
            "moments": self._moments.copy(),
            "judged": np.array([self._judged], dtype=np.int64),
            "bins": np.array(places, dtype=np.int64),
            "weights": np.array([self._histogram[place] for place in places]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Confidence:
        """The reverse of :meth:`arrays`.

        Raises:
            ValueError: arrays that no judgements can have added up to.
        """
        figures = cls()
        if not arrays:
            return figures
        if set(arrays) != set(ARRAYS):
            raise ValueError(f"the figures are {sorted(arrays)}; expected {', '.join(ARRAYS)}")
        places, judged, losses, moments, weights = (np.asarray(arrays[name]) for name in ARRAYS)
        kept = len(places) if places.ndim == 1 else 0
        wanted: dict[str, tuple[type, tuple[int, ...]]] = {
            "bins": (np.int64, (kept,)),
            "judged": (np.int64, (1,)),
            "losses": (np.float64, TEMPERATURES.shape),
            "moments": (np.float64, (2,)),
            "weights": (np.float64, (kept,)),
        }
        for name, (dtype, shape) in wanted.items():
            array = np.asarray(arrays[name])
            if array.dtype != dtype or array.shape != shape or not array.size:
                raise ValueError(
                    f"{name} is {array.dtype} of shape {array.shape}; "
                    f"expected {np.dtype(dtype)} of shape {shape}"
                )
        if (np.diff(places) <= 0).any() or np.abs(places).max() > LARGEST_BIN:
            raise ValueError(f"bins must ascend, within {-LARGEST_BIN} and {LARGEST_BIN}")
        total = float(weights.sum())
        if not (1 <= judged[0] <= MOST and weights.min() > 0 and total <= judged[0] * (1 + 1e-9)):  # nor NaN
            raise ValueError(
                f"weights must be above 0, and come to no more than the {judged[0]} images judged"
            )
        if not (losses.min() >= 0 and losses.max() <= LARGEST_LOSS * (total + 1)):
            raise ValueError("losses must not be negative, nor larger than so many images can have had")
        if not np.isfinite(moments).all():
            raise ValueError("moments hold NaN or infinite values")
        figures._losses, figures._moments = losses.copy(), moments.copy()
        figures._judged = int(judged[0])
        figures._histogram = dict(zip(places.tolist(), weights.tolist(), strict=True))
        return figures


def check_false_alarm(false_alarm: float) -> None:
    """Raise a ValueError if this is no rate of false alarms."""
    if isinstance(false_alarm, bool) or not isinstance(false_alarm, (int, float)) or not 0 < false_alarm < 1:
        raise ValueError(
            f"false_alarm is {false_alarm!r}; give the share of known images that may be called unknown, "
            "above 0 and below 1, for example 0.05"
        )
