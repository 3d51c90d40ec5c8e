"""What heads on class means and one within-class scatter share: their sums, and the metric made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.drift import Drift, drift_with_more, map_with_more
from everlearn_runtime.heads.growing import PerClass
from everlearn_runtime.heads.projection import random_features
from everlearn_runtime.heads.running import Step, rung
from everlearn_runtime.heads.second_order import SecondOrder
from everlearn_runtime.heads.sums import Joined, group_sums, join, join_each, squared_distances
from everlearn_runtime.heads.transfer import Pair
from everlearn_runtime.products import product, row_products, square_sum

# The least share of the identity that "auto" takes.
LEAST_SHRINKAGE = 1e-3


class WithinClass(SecondOrder):
    """A head on class means and the pooled within-class scatter S.

    The metric is P, the inverse of the shrunk covariance (1 - s) S / f + s tr(S) / (f d) I, f = n - C
    degrees of freedom of n images of C classes (`LDA` with a number for s takes n in place of f). With
    ``shrinkage="auto"`` s follows from the number of images and the spectrum of S: in d dimensions,
    with r = d / (d + f) and o the oracle approximating shrinkage estimate (Chen, Wiesel, Eldar and Hero
    2010, eq. 23, in scikit-learn's form) of a covariance of f samples,

        s = max(0.001, sqrt(o r^1.5)),    o = min(1, (tr(S S) + tr(S)^2) / ((f + 1) (tr(S S) - tr(S)^2 / d))).

    By itself r^1.5 takes too much where few directions hold most of the scatter, and o too little for
    the very first images.

    A mean of n_c images is noisy, and noise lengthens it, in the metric by tr / n_c on the average,
    with tr = tr(P S / f). That is what ``correction`` takes out, all of it at 1.

    With ``projection`` all this is of [x, max(R' x, 0) / (2 sqrt(F))] in place of the features x themselves,
    R (F, M) random (see `RandomFeatures`), so d = F + M. Beside the scatter of d features the means of M
    random features are kept for each class, M numbers; R is drawn from the seed.
    """

    gram_name = "scatter"
    _projected_means = PerClass[np.float64]()

    def __init__(
        self,
        shrinkage: float | str,
        removable: bool,
        correction: float,
        projection: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(removable)
        if isinstance(shrinkage, str):
            if shrinkage != "auto":
                raise ValueError(f"shrinkage is {shrinkage!r}; it must be 'auto', or above 0 and at most 1")
        elif not 0 < float(shrinkage) <= 1:
            raise ValueError(f"shrinkage is {shrinkage!r}; it must be above 0 and at most 1, or 'auto'")
        else:
            shrinkage = float(shrinkage)
        if not 0 <= correction <= 1:
            raise ValueError(f"correction is {correction!r}; it must be from 0 to 1")
        self._shrinkage = shrinkage
        self._correction = float(correction)
        self._features = random_features(projection, seed, scaled=True)
        self._projected_means = np.zeros((0, self._random_width))

    @property
    def _random_width(self) -> int:
        """M."""
        return 0 if self._features is None else self._features.count

    @property
    def _projection_option(self) -> dict[str, Any]:
        """Part of the options; left out as it is by default, for runtimes that do not know it."""
        return {} if self._features is None else self._features.options

    @property
    def _free(self) -> int:
        """The degrees of freedom of the scatter, f."""
        return max(self._seen - len(self._counts), 1)

    @property
    def _share(self) -> float:
        """s."""
        if isinstance(self._shrinkage, float):
            return self._shrinkage
        width, free = self._gram.width, self._free
        square, power = self._gram.trace**2, self._gram.power
        rest = (free + 1) * (power - square / width)
        estimate = 1.0 if rest <= 0 else min((power + square) / rest, 1.0)
        return max(LEAST_SHRINKAGE, math.sqrt(estimate * math.pow(width / (width + free), 1.5)))

    def _metric(self, size: float) -> tuple[float, float, float]:
        """w, r and a factor such that P is the factor times (w S + r I)^-1.

        With "auto" s moves with every sample. What matters is s / (1 - s) tr(S), which is brought to the
        ladder as a whole, so that r rests, while 1 - s goes into the factor.
        """
        share = self._share
        if isinstance(self._shrinkage, float):
            return 1 - share, self._ridge(size), self._free
        ratio = share / (1 - share) * self._gram.trace
        return 1.0, rung(ratio, self.ladder) / self._gram.width, self._free / (1 - share)

    def _system(self) -> tuple[float, float] | None:
        size = self._scatter_size()
        return self._metric(size)[:2] if size else None

    def _ridge(self, size: float) -> float:
        """What is added to the diagonal of the scatter with a number for the shrinkage."""
        return self._share * size / self._gram.width

    def _noise(self, weight: float, ridge: float) -> float:
        """tr((w S + r I)^-1 S) / f, by the inverse that :meth:`_solved` has made."""
        if weight == 0:
            return self._gram.trace / (ridge * self._free)
        rest = self._gram.width - ridge * self._running.trace
        return max(rest, 0.0) / (weight * self._free)

    def _scatter_size(self) -> float:
        """The trace of S on its ladder; 0 where S is zero or no more than rounding."""
        size, means = self._size(), self._targets()
        square = square_sum(means) / len(means)
        return 0.0 if self._gram.trace <= self._seen * square * 1e-24 else size

    def _distances(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared Mahalanobis distances under the covariance of n - C degrees of freedom, shrunk."""
        mapped, means, size = self._map(rows), self._targets(), self._scatter_size()
        if size == 0:
            return squared_distances(mapped, means)
        weight, ridge, factor = self._metric(size)
        weights = self._solved(weight, ridge, inverse=True)
        middle = means.mean(axis=0)  # so that what all have in common cancels before it is squared
        gaps, apart = mapped - middle, weights - weights.mean(axis=0)
        distances: NDArray[np.float64] = product(gaps, apart.T)
        distances *= -2
        distances += row_products(gaps, self._running.apply(gaps))[:, None]
        distances += row_products(means - middle, apart)
        distances *= factor
        np.maximum(distances, 0.0, out=distances)
        return distances

    def _map(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows if self._features is None else np.concatenate([rows, self._features.of(rows)], axis=1)

    def _targets(self) -> NDArray[np.float64]:
        if self._features is None:
            return self._means
        return np.concatenate([self._means, self._projected_means], axis=1)

    def _targets_at(self, places: list[int]) -> NDArray[np.float64]:
        if self._features is None:
            return self._means[places]
        return np.concatenate([self._means[places], self._projected_means[places]], axis=1)

    def _start_shared(self, width: int) -> None:
        self._start_gram(width + self._random_width)

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        owners = np.concatenate([codes, owners_of_between(joined)])
        gaps = np.concatenate([rows - means, joined.between])
        if self._features is not None:
            hidden = self._features.of(rows)
            found, counts, sums = group_sums(hidden, codes)
            own = sums / counts[:, None]
            more = self._join_projected(joined, counts, own)
            hidden -= own[np.searchsorted(found, codes)]
            gaps = np.concatenate([gaps, np.concatenate([hidden, more.between])], axis=1)
            self._projected_means[more.places] = more.means_after
        self._grow(gaps, owners, joined.places)
        self._seen += len(rows)

    def _join_projected(
        self, joined: Joined, counts: NDArray[np.int64], means: NDArray[np.float64]
    ) -> Joined:
        """What the same joining does to the means of random features."""
        return join(joined.places, joined.counts, self._projected_means[joined.places], counts, means)

    def _join_each(
        self, rows: NDArray[np.float64], places: list[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if self._features is None:
            return super()._join_each(rows, places)
        hidden, counts = self._features.of_each(rows, self._seen), self._counts.copy()
        gaps, earlier = super()._join_each(rows, places)
        more, _ = join_each(counts, self._projected_means, hidden, places)
        return np.concatenate([gaps, more], axis=1), earlier

    def _learn_each(self, rows: NDArray[np.float64], places: list[int]) -> None:
        gaps, earlier = self._join_each(rows, places)
        self._seen += len(rows)
        gaps *= np.sqrt(earlier / (earlier + 1))[:, None]
        later = [place for place, count in zip(places, earlier.tolist(), strict=True) if count]
        self._add_each(gaps if earlier.all() else gaps[earlier > 0], later)
        if self._running.follows:  # a mean moves along the row by which the scatter grows
            for place, count, gap in zip(places, earlier.tolist(), gaps, strict=True):
                gain = 1 / math.sqrt(count * (count + 1)) if count else None
                self._running.note(Step(gap[None][: min(count, 1)], [place], gain))

    def _move(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift) -> None:
        if self._features is None:
            super()._move(before, after, drift)
            return
        self._catch_up()  # random features have a drift of their own, which is not affine in x
        both = drift_with_more(before, after, self._map(before), self._map(after))
        moved = both.move(self._targets())
        self._means = moved[:, : self._width].copy()
        self._projected_means = moved[:, self._width :].copy()
        self._carry_shared(before, after, both)
        self._solution = None

    def _gain(self, drift: Drift, places: list[int], gone: int) -> NDArray[np.float64]:
        """A shift moves no scatter; what the map leaves over adds to it as other noise does."""
        free = int(self._counts[places].sum()) + gone - len(places)  # a class of one sample has no scatter
        return free * drift.left_over

    @property
    def movable(self) -> bool:
        """Yes: means and scatters."""
        return True

    @property
    def expands(self) -> bool:
        """With a projection."""
        return self._features is not None

    def _move_expanded(self, drift: Drift, like: WithinClass, images: Pair) -> None:
        both = map_with_more(drift, self._map(images[0]), like._map(images[1]))
        moved = both.move(self._targets())
        self._means = moved[:, : len(drift.offset)].copy()
        self._projected_means = moved[:, len(drift.offset) :].copy()
        self._move_shared(both)

    @property
    def splits(self) -> bool:
        """Yes: means and scatters."""
        return True

    def _since_shared(self, now: WithinClass, earlier: WithinClass, joined: Joined) -> None:
        between = joined.between
        if self._features is not None:
            before = np.zeros((len(self._counts), self._random_width))
            mine, theirs = self._met(earlier, joined)
            before[mine] = earlier._projected_means[theirs]
            sums = joined.counts_after[:, None] * now._projected_means[joined.places]
            sums -= joined.counts[:, None] * before
            self._projected_means = sums / self._counts[:, None]
            more = join(joined.places, joined.counts, before, self._counts, self._projected_means)
            between = np.concatenate([between, more.between], axis=1)
        self._since_gram(now, earlier, between, joined)

    def _merge_shared(self, other: WithinClass, joined: Joined) -> None:
        between = joined.between
        if self._features is not None:
            more = self._join_projected(joined, other._counts, other._projected_means)
            between = np.concatenate([between, more.between], axis=1)
            self._projected_means[more.places] = more.means_after
        self._merge_gram(other, between, owners_of_between(joined), joined)
        self._seen += other._seen
        self._settle_shared()

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        arrays = super()._shared_arrays()
        return (
            arrays if self._features is None else {**arrays, "projected_means": self._projected_means.copy()}
        )

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        if self._features is None:
            return super()._shared_shapes(classes, width)
        shapes = super()._shared_shapes(classes, width + self._random_width if width else 0)
        return {**shapes, "projected_means": (classes, self._random_width)}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._projected_means = arrays.get("projected_means", np.zeros((len(self._classes), 0)))
        super()._restore_shared(arrays)


def owners_of_between(joined: Joined) -> NDArray[np.intp]:
    """The place of the class of each row of ``joined.between``."""
    return joined.places[joined.counts > 0]
