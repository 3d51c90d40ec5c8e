"""Gaussian noise on what a device hands in, and the (epsilon, delta) that it gives.

What is handed in with noise are sums of features by class, and how many samples there are of each. The class
means follow from these; of the scatter nothing is handed in, the merged bundle goes on with its own, because
noise on F x F products costs more than what they tell is worth (see the documents' table).

The mechanism, for a bundle's head that everybody has, with g the mean of its class means and A A' the inverse
of its within-class covariance, shrunk (the identity for a head of class means alone):

    z_i = A' (x_i - g),  shortened to the length ``clip`` where it is longer
    t_c = sum of z_i over the class + N(0, (noise_multiplier clip)^2 I)

It protects what an image looks like: with one image blank (z_i = 0), wherever it stands, the sums of all
classes together move by at most ``clip``, for an image is of one class alone. That is the relation of Kairouz
et al. 2021, "Practical and private (deep) learning without sampling or shuffling", definition 1.1, and one
Gaussian mechanism, whose exact epsilon for a delta is that of Balle and Wang 2018, "Improving the Gaussian
mechanism for differential privacy", theorem 8, here by dp-accounting. Counts and names of the classes are
told as they are. What is made of the noisy sums costs nothing more (Dwork and Roth 2014, proposition 2.1).

The noise follows the covariance that is known from the bundle, for what matters to a head is its size beside
what images of a class differ by (Brown et al. 2021, "Covariance-aware private mean estimation without private
covariance estimation", where the metric has to be found privately).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import MissingExtra
from everlearn_runtime.heads import Head, HeadState, Prototypes, from_state
from everlearn_runtime.heads.gram import GramSum
from everlearn_runtime.heads.statistics import FIGURES, describe
from everlearn_runtime.heads.sums import join
from everlearn_runtime.words import plural

if TYPE_CHECKING:
    from everlearn_runtime.fleet.delta import Delta

SHRINKAGE = 0.1  # of the covariance by which lengths are measured
DRAWS = 4  # normal numbers that make one

Array = NDArray[np.float64]
Draw = Callable[[int], Array]


@dataclass(frozen=True)
class GaussianNoise:
    """How much noise goes onto a delta.

    Args:
        noise_multiplier: Standard deviation of the noise over ``clip``.
        clip: The length to which an image's features, less the mean of the bundle's class means, are
            shortened, in the metric of its within-class covariance: there images of a class are about sqrt(F)
            from its mean, F features. For a bundle of `Prototypes` it is the length itself. It must not be
            chosen by the images that are handed in.
        target_delta: The delta for which epsilon is given; below one over the number of images.

    Raises:
        ValueError: An argument out of range.
    """

    noise_multiplier: float
    clip: float
    target_delta: float = 1e-5

    def __post_init__(self) -> None:
        most = {"noise_multiplier": 1e6, "clip": 1e9, "target_delta": 1.0}
        for name, end in most.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value < end:
                raise ValueError(f"{name} is {value!r}; give a number above 0 and below {end:g}")

    @property
    def epsilon(self) -> float:
        """What dp-accounting says that this noise gives, for ``target_delta``.

        Raises:
            MissingExtra: dp-accounting is not installed.
            ValueError: So little noise that no finite epsilon holds.
        """
        try:
            from dp_accounting import get_epsilon_gaussian
        except ImportError:
            raise MissingExtra("noise on a delta", "privacy") from None
        with np.errstate(all="ignore"):
            found = float(get_epsilon_gaussian(float(self.noise_multiplier), float(self.target_delta)))
        if not math.isfinite(found):
            raise ValueError(f"noise_multiplier {self.noise_multiplier!r} gives no finite epsilon; give more")
        return found

    def says(self) -> dict[str, float]:
        """As JSON."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}


def with_noise(delta: Delta, noise: GaussianNoise, samples: Mapping[str, Array], base: Head) -> Delta:
    """A delta with noise in place of one without.

    Args:
        delta: Without.
        noise: How much.
        samples: Features (n, F) of each class, at least of those in the delta.
        base: The head of the bundle that it is handed in for.

    Raises:
        MissingExtra: dp-accounting is not installed.
        ValueError: Some samples' features are not there any more, or the head is none whose means can be had
            apart from the rest.
    """
    epsilon = noise.epsilon
    for name, count in delta.counts.items():
        there = len(samples.get(name, ()))
        if there != count:
            raise ValueError(
                f"of {plural(count, 'sample')} of {name!r} the state has the features of {there} only, and "
                "noise is for features that can be clipped: hand in before the device takes a new bundle, or "
                "without noise"
            )
    state = noisy_means({name: samples[name] for name in delta.counts}, noise, base)
    return replace(delta, state=state, noise=noise, epsilon=epsilon)


def noisy_means(
    samples: Mapping[str, Array], noise: GaussianNoise, base: Head, draw: Draw | None = None
) -> HeadState:
    """Counts, and means with noise, of some samples, as `Prototypes` keep them.

    Args:
        samples: Features (n, F) of each class, at least one.
        noise: How much.
        base: As :func:`with_noise`; it is left as it is.
        draw: As :func:`noisy_sums`.

    Raises:
        ValueError: As :func:`with_noise`.
    """
    apart, back = metric(base)
    centre = base.prototypes.mean(axis=0)
    counts = np.array([len(rows) for rows in samples.values()], dtype=np.int64)
    sums = noisy_sums([(rows - centre) @ apart for rows in samples.values()], noise, len(centre), draw)
    means = centre + (sums / counts[:, None]) @ back
    options = base.options if type(base) is Prototypes else Prototypes().options
    return HeadState(Prototypes.kind, tuple(samples), options, {"counts": counts, "means": means})


def noisy_sums(rows: list[Array], noise: GaussianNoise, width: int, draw: Draw | None = None) -> Array:
    """The sum of each class's clipped rows, with noise, (C, width).

    Args:
        rows: (n, width) of each class, as they are clipped.
        noise: How much.
        width: Of the rows.
        draw: So many normal numbers; None: :func:`secure_normal`. Another one is for tests.
    """
    sums = np.stack([clipped(own, noise.clip).sum(axis=0) for own in rows]) if rows else np.zeros((0, width))
    spread = noise.noise_multiplier * noise.clip
    return np.asarray(sums + spread * (draw or secure_normal)(sums.size).reshape(sums.shape))


def clipped(rows: Array, clip: float) -> Array:
    """Rows (n, F), those longer than ``clip`` shortened to it."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows * (clip / np.maximum(lengths, clip)))


def secure_normal(count: int) -> Array:
    """Normal numbers (count,) of mean 0 and variance 1, from the operating system's source of randomness.

    There is no seed: who knows it, or finds it from other numbers of a generator that is not made to hide it,
    subtracts the noise. Box and Muller's numbers of 53 bits have gaps that tell what they were added to
    (Mironov 2012); half the sum of four closes them (Holohan and Braghin 2021, "Secure random sampling in
    differential privacy", section 4; Opacus' ``secure_mode`` does the same).
    """
    size = DRAWS * count
    bits = np.frombuffer(os.urandom(16 * size), dtype="<u8") >> np.uint64(11)
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
    normal = np.sqrt(-2 * np.log(uniform[:size])) * np.cos(2 * np.pi * uniform[size:])
    return np.asarray(normal.reshape(DRAWS, count).sum(axis=0) / math.sqrt(DRAWS))


def metric(head: Head) -> tuple[Array, Array]:
    """A (F, F) and its inverse, such that A A' is the inverse of the shrunk covariance within classes.

    Raises:
        ValueError: The head knows nothing yet, or keeps something else than means and one scatter.
    """
    arrays = _arrays(head)
    if not head.classes or head.width is None:
        raise ValueError("noise is measured by what the bundle knows, and this one knows no class")
    if "scatter" not in arrays:
        return np.eye(head.width), np.eye(head.width)
    scatter = GramSum.from_packed(arrays["scatter"], head.width).value()
    size = np.trace(scatter) / head.width
    if not size > 0:
        raise ValueError(
            "noise is measured by how images of a class differ, which the bundle does not know; give "
            "one that knows several images of some class"
        )
    values, vectors = np.linalg.eigh((1 - SHRINKAGE) * scatter + SHRINKAGE * size * np.eye(head.width))
    spread = np.sqrt(values / _free(head, arrays))
    return vectors / spread, (vectors * spread).T


def add_means(head: Head, more: Head) -> Head:
    """A head that knows the classes' counts and means beside, and goes on with its own covariance.

    Args:
        head: Of class means, and perhaps a within-class scatter; it stays as it is.
        more: `Prototypes` of what comes to it.

    Raises:
        ValueError: The head keeps something else.
    """
    state, arrays = head.state(), _arrays(head)
    names = list(dict.fromkeys([*state.classes, *more.classes]))
    counts, means = np.zeros(len(names), dtype=np.int64), np.zeros((len(names), more.width or 0))
    known = len(state.classes)
    if known:
        counts[:known], means[:known] = arrays["counts"], arrays["means"]
    places = np.array([names.index(name) for name in more.classes], dtype=np.intp)
    joined = join(places, counts[places], means[places], more.counts, more.prototypes)
    counts[places], means[places] = joined.counts_after, joined.means_after
    after = {**state.arrays, "counts": counts, "means": means}
    if "scatter" in arrays:
        free = _free(head, arrays)
        after["seen"] = arrays["seen"] + int(more.counts.sum())
        later = max(int(after["seen"][0]) - len(names), 1)
        after["scatter"] = arrays["scatter"] * (later / free)
    return from_state(HeadState(state.kind, tuple(names), state.options, after))


def _arrays(head: Head) -> dict[str, NDArray[Any]]:
    """What a head of class means keeps, or a ValueError."""
    arrays = {name: array for name, array in head.state().arrays.items() if not name.startswith(FIGURES)}
    if not head.movable or set(arrays) not in ({"counts", "means"}, {"counts", "means", "scatter", "seen"}):
        raise ValueError(
            f"{describe(head)} does not keep its class means apart from the rest, so that they cannot be "
            "handed in with noise; Prototypes, LDA, WhitenedCosine and BalancedRidge do, with neither "
            "projection nor removable"
        )
    return arrays


def _free(head: Head, arrays: Mapping[str, NDArray[Any]]) -> int:
    """The degrees of freedom of the scatter."""
    return max(int(arrays["seen"][0]) - len(head.classes), 1)
