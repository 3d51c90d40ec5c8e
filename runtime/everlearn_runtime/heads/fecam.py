"""A covariance of its own for each class."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Head
from everlearn_runtime.heads.drift import Drift, affine_drift
from everlearn_runtime.heads.gram import GramSum, packed_size
from everlearn_runtime.heads.growing import PerClass
from everlearn_runtime.heads.sums import Joined, groups, join, join_each, unit_rows

Array = NDArray[np.float64]

if TYPE_CHECKING:
    from typing_extensions import Self

SOON_WIDTH = 384  # up to which a class is inverted in some milliseconds


class FeCAM(Head):
    """Mahalanobis distance to each class's mean under the class's own correlations.

    score_c = -(z - m_c)' R_c^-1 (z - m_c) + correction tr(R_c^-1 S_c) / n_c, z = x / |x|, with m_c the
    mean of z over the class's n_c samples and R_c the correlations of its covariance S_c after shrinking:

        S_c + a1 mean(diag S_c) I + a2 mean(off-diagonal S_c) (1 - I),

    where entries that are zero do not count in the second mean. Correlations make distances under
    different covariances comparable. Where there is no scatter R = I: plain distance, which is also
    where a1 takes all classes as it grows (nearest class mean).

    The scatter of a few samples says little in d dimensions, and with it a class of few beside classes
    of many is next to never found. So the class's own covariance O_c, divisor n_c - 1, is drawn to the
    pooled one of all classes, Q, as if Q came of ``pooling`` times d samples more:

        S_c = (1 - w) O_c + w Q,    w = pooling d / (pooling d + n_c - 1).

    And a mean of few images is noisy, which takes tr(R_c^-1 S_c) / n_c from the class's score on the
    average; ``correction`` gives it back. The released form has neither: ``FeCAM(pooling=0,
    correction=0)``, which heads saved by earlier versions are.

    Counts, means and scatters are sums, kept for each class alone, so updates are exact in any
    order and ``remove`` leaves nothing behind. They take d (d + 1) / 2 + 2 d + 1 numbers a class
    for d features, 0.6 MB at d = 384, and twice that while in use; once there are scores, R^-1 of
    each class as much again. After an update the first scores solve all classes anew, O(d^3) each, 2 s
    for 100 classes at d = 384; with ``pooling=0`` only the classes in it.
    A class that returns has mean and covariance of all its samples; in the released codes those of
    the newest task replace the earlier ones, which ``remove`` before the update does, too.

    The method was also released in other forms. They differ in the five hooks from ``_learned`` to
    ``_inverted``, which a subclass with a ``kind`` of its own may override.

    Args:
        alpha1: a1, above 0; the authors' script for ViTs takes 1, and 10 for ImageNet-R.
        alpha2: a2, at least 0; there 0 and 10.
        pooling: at least 0.
        correction: from 0 to 1.

    Raises:
        ValueError: An argument out of range.

    Source: Goswami, Liu, Twardowski and van de Weijer, "FeCAM: Exploiting the Heterogeneity of
    Class Distributions in Exemplar-Free Continual Learning", NeurIPS 2023, arXiv 2309.14062,
    section 3, and the released code for ViTs.

    >>> head = FeCAM(pooling=0, correction=0)
    >>> head.update(np.array([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), ["a", "a", "b"])
    >>> head.scores(np.array([[4.0, 3.0]])).round(3)
    array([[-0.4, -0.8]])
    """

    kind: ClassVar[str] = "fecam"
    usual_temperature: ClassVar[float] = 0.05
    _learned_means = PerClass[np.float64]()

    def __init__(
        self, alpha1: float = 1.0, alpha2: float = 0.0, pooling: float = 1.0, correction: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 < alpha1 < np.inf:
            raise ValueError(f"alpha1 is {alpha1!r}; it must be above 0")
        if not 0 <= alpha2 < np.inf:
            raise ValueError(f"alpha2 is {alpha2!r}; it must be at least 0")
        if not 0 <= pooling < np.inf:
            raise ValueError(f"pooling is {pooling!r}; it must be at least 0")
        if not 0 <= correction <= 1:
            raise ValueError(f"correction is {correction!r}; it must be from 0 to 1")
        self._alpha1 = float(alpha1)
        self._alpha2 = float(alpha2)
        self._pooling = float(pooling)
        self._correction = float(correction)
        self._learned_means = np.zeros((0, 0))
        self._scatters: list[GramSum] = []
        self._inverses: list[tuple[Array, float] | None] = []  # and the noise of the mean
        self._pooled: Array | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        own = {"alpha1": self._alpha1, "alpha2": self._alpha2}
        few = {"pooling": self._pooling, "correction": self._correction}
        # Left out in the released form, for runtimes that know no other.
        return own | few if any(few.values()) else own

    @property
    def answers_soon(self) -> bool:
        """See `Head`: each class that an update has reached is inverted anew; with ``pooling`` that is
        all of them, of which many or wide ones take long."""
        new = self._inverses.count(None) if self._pooling else 1
        return bool(new * self._width**3 <= SOON_WIDTH**3)

    def removes_exactly(self, label: str) -> bool:
        """See `Head`: all that is kept is kept for each class alone."""
        self._classes.place(label)
        return True

    def to_removable(self) -> Self:
        """See `Head`: it is so as it is."""
        return copy.deepcopy(self)

    @classmethod
    def read_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out the name of the form, of which there is one now, and take what is not said of few
        images for the released form."""
        said = {name: value for name, value in options.items() if (name, value) != ("variant", "vit")}
        return {"pooling": 0.0, "correction": 0.0, **said}

    def correlations(self, label: str) -> Array:
        """The matrix R (F, F) under which distances to a class are taken.

        Raises:
            ValueError: No such class.
        """
        self._catch_up()
        place = self._classes.place(label)
        return self._correlations(place, self._covariance(place))

    # What the released forms differ in.

    def _learned(self, rows: Array) -> Array:
        """Features (B, F) to what the means and covariances are of."""
        return unit_rows(rows)

    def _asked(self, rows: Array) -> Array:
        """Features (B, F) to what is compared with the centres."""
        return unit_rows(rows)

    def _centres(self) -> Array:
        """What it is compared with, (C, F)."""
        return self._learned_means

    def _shrunk(self, covariance: Array) -> Array:
        """A covariance (F, F) after shrinking."""
        identity = np.eye(len(covariance))
        apart = covariance[identity == 0]
        apart = apart[apart != 0]
        common = self._alpha2 * apart.mean() if len(apart) else 0.0
        spread = self._alpha1 * np.diag(covariance).mean()
        shrunk: Array = covariance + spread * identity + common * (1 - identity)
        return shrunk

    def _inverted(self, correlations: Array) -> Array:
        """The inverse of correlations (F, F)."""
        return np.asarray(np.linalg.inv(correlations), dtype=np.float64)

    def _score(self, rows: Array) -> Array:
        scores = -self._under_own_correlations(rows)
        if self._correction:
            noise = np.array([self._inverse(place)[1] for place in range(len(self._counts))])
            scores += self._correction * noise
        return scores

    def _under_own_correlations(self, rows: Array) -> Array:
        rows, centres = self._asked(rows), self._centres()
        distances = np.empty((len(rows), len(centres)))
        for place, centre in enumerate(centres):
            gap = rows - centre
            np.einsum("bf,bf->b", gap @ self._inverse(place)[0], gap, out=distances[:, place])
        return distances

    def _distances(self, rows: Array) -> Array:
        return np.maximum(self._under_own_correlations(rows), 0.0)

    def _inverse(self, place: int) -> tuple[Array, float]:
        """R^-1 of a class, and tr(R^-1 S) / n."""
        found = self._inverses[place]
        if found is None:
            covariance = self._covariance(place)
            inverse = self._inverted(self._correlations(place, covariance))
            noise = float(np.vdot(inverse, covariance)) / int(self._counts[place])
            found = self._inverses[place] = inverse, noise
        return found

    def _covariance(self, place: int) -> Array:
        """S (F, F) of a class, before shrinking."""
        more = int(self._counts[place]) - 1
        own: Array = self._scatters[place].value() / max(more, 1)
        if not self._pooling:
            return own
        if self._pooled is None:
            free = int(self._counts.sum()) - len(self._counts)
            self._pooled = GramSum.of_all(self._scatters, len(own)).value() / max(free, 1)
        held = self._pooling * len(own)
        share = held / (held + more)
        return (1 - share) * own + share * self._pooled

    def _changed(self, places: Iterable[int]) -> None:
        """Solve anew for classes at these places, and for all whose covariance they are part of."""
        if self._pooling:
            self._pooled, places = None, range(len(self._inverses))
        for place in places:
            self._inverses[place] = None

    def _correlations(self, place: int, covariance: Array) -> Array:
        covariance = self._shrunk(covariance)
        deviation = np.sqrt(np.diag(covariance))
        # Less than this is the rounding of a class whose samples are all alike.
        if not deviation.min() ** 2 > np.square(self._learned_means[place]).mean() * 1e-24:
            return np.eye(len(covariance))
        correlations: Array = covariance / np.outer(deviation, deviation)
        return correlations

    def _start_shared(self, width: int) -> None:
        self._learned_means = np.zeros((0, width))

    def _grow_shared(self, new: int) -> None:
        width = self._learned_means.shape[1]
        self._scatters += [GramSum(width) for _ in range(new)]
        self._inverses += [None] * new

    def _learn_shared(self, rows: Array, means: Array, codes: NDArray[np.intp], joined: Joined) -> None:
        learned, places = self._learned(rows), joined.places
        each = [learned[numbers] for numbers in groups(codes)]
        means = np.stack([own.mean(axis=0) for own in each])
        counts = joined.counts_after - joined.counts
        joined = join(places, joined.counts, self._learned_means[places], counts, means)
        for place, own, mean in zip(places.tolist(), each, means, strict=True):
            if len(own) > 1:
                self._scatters[place].add(own - mean)
        self._take(joined)

    def _learn_each(self, rows: Array, places: list[int]) -> None:
        learned, counts = self._learned(rows), self._counts.copy()
        self._join_each(rows, places)
        gaps, earlier = join_each(counts, self._learned_means, learned, places)
        gaps *= np.sqrt(earlier / (earlier + 1))[:, None]
        self._changed(places)
        for place, count, gap in zip(places, earlier.tolist(), gaps, strict=True):
            if count:
                self._scatters[place].add(gap[None])

    def _take(self, joined: Joined) -> None:
        """Take over the means of joined groups, whose own scatters are in already."""
        self._learned_means[joined.places] = joined.means_after
        between = iter(joined.between)
        self._changed(joined.places.tolist())
        for place, before in zip(joined.places.tolist(), joined.counts.tolist(), strict=True):
            if before:
                self._scatters[place].add(next(between)[None])

    def _merge_shared(self, other: FeCAM, joined: Joined) -> None:
        places = joined.places
        means, others = self._learned_means[places], other._learned_means
        for place, scatter in zip(places.tolist(), other._scatters, strict=True):
            self._scatters[place].merge(scatter)
        self._take(join(places, joined.counts, means, other._counts, others))

    def _carry_shared(self, before: Array, after: Array, drift: Drift) -> None:
        drift = affine_drift(self._learned(before), self._learned(after))
        self._learned_means = drift.move(self._learned_means)
        for scatter, count in zip(self._scatters, self._counts.tolist(), strict=True):
            scatter.transform(drift.linear, (count - 1) * drift.left_over)
        self._changed(range(len(self._inverses)))

    def _remove_shared(self, place: int) -> None:
        del self._scatters[place : place + 1], self._inverses[place : place + 1]
        self._changed([])

    def _settle_shared(self) -> None:
        for scatter in self._scatters:
            scatter.fold()

    def _shared_nbytes(self) -> int:
        return 8 * len(self._scatters) * packed_size(self._learned_means.shape[1])

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        packed = np.empty((len(self._counts), packed_size(self._means.shape[1])))
        for row, scatter in zip(packed, self._scatters, strict=True):
            row[:] = scatter.packed()
        return {"learned_means": self._learned_means.copy(), "scatters": packed}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return {"learned_means": (classes, width), "scatters": (classes, packed_size(width))}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._learned_means = arrays["learned_means"]
        self._scatters = [GramSum.from_packed(row, self._means.shape[1]) for row in arrays["scatters"]]
        self._inverses = [None] * len(self._scatters)
