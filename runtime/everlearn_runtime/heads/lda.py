"""Linear discriminant analysis, learned by sums."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Solution
from everlearn_runtime.heads.drift import Drift
from everlearn_runtime.heads.gram import GramSum
from everlearn_runtime.heads.running import Step, row_products
from everlearn_runtime.heads.second_order import SecondOrder
from everlearn_runtime.heads.sums import Joined, squared_distances


class LDA(SecondOrder):
    """Class means and one covariance that all classes share.

    score_c = x' P mu_c - mu_c' P mu_c / 2 with P the inverse of (1 - s) S / n + s t / (n d) I, S the
    pooled within-class scatter of n samples in d dimensions; no class priors. t is tr(S) rounded
    to the nearest exp(k / 10), k whole: within 5.2 % of the trace, but at rest while the trace
    grows by a tenth, so that P follows a sample in O(d^2) and the classes' weights in O(C d). This
    is streaming LDA
    (Hayes and Kanan 2020, arXiv 1909.01520) with the exact, order-independent scatter: joining
    n1 and n2 samples of a class adds n1 n2 / (n1 + n2) of the outer product of the difference of
    their means (Chan, Golub and LeVeque 1983). While S is zero or no more than rounding (one
    sample per class, say) P is the identity: nearest mean.

    ``remove`` takes the class's mean, count and column; S and n keep its samples, which go on
    saying how features vary within a class. The result is LDA with the pooled scatter of all
    samples ever seen, and a class that comes back starts with a new mean. With ``removable`` nothing
    stays.

    Args:
        shrinkage: s, above 0 and at most 1: how far the covariance is drawn to a multiple of
            the identity.
        removable: keep the scatter of each class apart as well, so that ``remove`` is exact: S and n
            are then those of a head that never saw the class. That takes 4 d (d + 1) + 8 bytes a
            class in a state, 0.6 MB at d = 384 and 2.4 MB at 768, and up to four times that in use.

    Raises:
        ValueError: An argument out of range.

    >>> head = LDA()
    >>> head.update(np.array([[0.0, 0.0], [0.0, 9.0], [1.0, 0.0], [1.0, 9.0]]), ["a", "a", "b", "b"])
    >>> head.predict(np.array([[0.9, -30.0]]))
    ['b']
    """

    kind: ClassVar[str] = "lda"
    gram_name: ClassVar[str] = "scatter"

    def __init__(self, shrinkage: float = 1e-2, removable: bool = False) -> None:
        super().__init__(removable)
        self._shrinkage = float(shrinkage)
        if not 0 < self._shrinkage <= 1:
            raise ValueError(f"shrinkage is {shrinkage!r}; it must be above 0 and at most 1")

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {"shrinkage": self._shrinkage, **self._removable_option}

    def _solve(self) -> Solution:
        means = self._targets()
        size = self._scatter_size()
        if size == 0:
            return means.T, -0.5 * row_products(means, means), 1
        weights = self._solved(1 - self._shrinkage, self._ridge(size))
        return weights.T, -0.5 * self._running.products, self._seen

    def _scatter_size(self) -> float:
        """The trace of S on its ladder; 0 where S is zero or no more than rounding."""
        size, means = self._size(), self._targets()
        square = float(np.vdot(means, means)) / len(means)
        return 0.0 if self._gram.trace <= self._seen * square * 1e-24 else size

    def _distances(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared Mahalanobis distances under the covariance of n - C degrees of freedom, shrunk."""
        mapped, means, size = self._map(rows), self._targets(), self._scatter_size()
        if size == 0:
            return squared_distances(mapped, means)
        weights = self._solved(1 - self._shrinkage, self._ridge(size), inverse=True)
        middle = means.mean(axis=0)  # so that what all have in common cancels before it is squared
        gaps, apart = mapped - middle, weights - weights.mean(axis=0)
        distances: NDArray[np.float64] = gaps @ apart.T
        distances *= -2
        distances += row_products(gaps, self._running.apply(gaps))[:, None]
        distances += row_products(means - middle, apart)
        distances *= max(self._seen - len(means), 1)
        np.maximum(distances, 0.0, out=distances)
        return distances

    def _ridge(self, size: float) -> float:
        """What is added to the diagonal of the shrunk scatter."""
        return self._shrinkage * size / self._gram.width

    def _targets(self) -> NDArray[np.float64]:
        return self._means

    def _targets_at(self, places: list[int]) -> NDArray[np.float64]:
        return self._means[places]

    def _start_shared(self, width: int) -> None:
        self._start_gram(width)

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        owners = np.concatenate([codes, owners_of_between(joined)])
        self._grow(np.concatenate([rows - means, joined.between]), owners, joined.places)
        self._seen += len(rows)

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

    def _gain(self, drift: Drift, places: list[int], gone: int) -> NDArray[np.float64]:
        """A shift moves no scatter; what the map leaves over adds to it as other noise does."""
        free = int(self._counts[places].sum()) + gone - len(places)  # a class of one sample has no scatter
        return free * drift.left_over

    @property
    def movable(self) -> bool:
        """Where no sums of each class are kept apart: means and a scatter."""
        return self._own is None

    def _since_shared(self, now: LDA, earlier: LDA, joined: Joined) -> None:
        before = GramSum(self._gram.width)
        before.merge(earlier._gram)
        before.add(joined.between)
        self._gram.merge(now._gram)
        self._gram.subtract(before)
        self._seen = now._seen - earlier._seen

    def _merge_shared(self, other: LDA, joined: Joined) -> None:
        self._merge_gram(other, joined.between, owners_of_between(joined), joined)
        self._seen += other._seen
        self._settle_shared()


def owners_of_between(joined: Joined) -> NDArray[np.intp]:
    """The place of the class of each row of ``joined.between``."""
    return joined.places[joined.counts > 0]
