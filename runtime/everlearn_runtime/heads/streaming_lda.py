"""Streaming LDA as it was released."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.lda import LDA
from everlearn_runtime.heads.scatter import WithinClass
from everlearn_runtime.heads.sums import Joined, groups

COVARIANCES = ("stream", "base", "fixed")


class StreamingLDA(LDA):
    """LDA with the covariance of SLDA's released code: to compare with it. `LDA` is the exact one.

    For a sample x of class c, after n samples of all classes and with m_c the mean of its own
    class's samples so far, zero if there were none,

        S <- (n S + n / (n + 1) (x - m_c) (x - m_c)') / (n + 1),

    and score_c = m_c' P x - m_c' P m_c / 2 with P the inverse of (1 - s) S + s I. So the first
    sample of a class goes in as x x', and the result depends on the order of the samples: it is
    not ``exact``, and merging adds up two such results. Rows of one update are taken in their
    order. Nothing is worked out from sample to sample: a prediction after an update costs O(d^3).
    The release gives unseen classes the score 0, with which they can win; here they have no column.

    Args:
        shrinkage: s.
        covariance: "stream", as above from the first sample on; "base": the first update is
            learned at once, S the oracle approximating shrinkage estimate (:func:`oas`) of its
            samples less their class's mean, and what follows as above; "fixed": the same, and S stays.

    Raises:
        ValueError: An argument out of range.

    Source: Hayes and Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant
    Analysis", arXiv 1909.01520, section 3, and its released code.

    >>> head = StreamingLDA()
    >>> head.update(np.array([[1.0, 0.0], [3.0, 0.0]]), ["a", "b"])  # S = 3^2 / 2 / 2, not 0
    >>> head.state().arrays["scatter"] / 2
    array([2.25, 0.  , 0.  ])
    """

    kind: ClassVar[str] = "streaming_lda"
    exact: ClassVar[bool] = False

    def __init__(self, shrinkage: float = 1e-4, covariance: str = "stream") -> None:
        if isinstance(shrinkage, str):
            raise ValueError(f"shrinkage is {shrinkage!r}; it must be a number above 0 and at most 1")
        super().__init__(shrinkage)
        if covariance not in COVARIANCES:
            known = ", ".join(map(repr, COVARIANCES))
            raise ValueError(f"covariance is {covariance!r}; it must be one of {known}")
        self._covariance = covariance
        self._scatter_of = 0  # samples; with "fixed" the scatter kept is that of the first update

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {**super().options, "covariance": self._covariance}

    def _ridge(self, size: float) -> float:
        return self._share * self._seen

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        if self._covariance == "stream" or (self._seen and self._covariance == "base"):
            seen = self._seen + np.arange(len(rows))
            weights = np.sqrt(seen / (seen + 1))
            self._gram.add(weights[:, None] * (rows - running_means(rows, codes, joined)))
        elif not self._seen:
            centred = rows - means
            shrinkage, variance = oas(centred)
            self._gram.add(math.sqrt(1 - shrinkage) * centred)
            self._gram.add(math.sqrt(shrinkage * len(rows) * variance) * np.eye(rows.shape[1]))
            self._scatter_of = len(rows)
        self._seen += len(rows)
        self._running.drop()

    # With "fixed" S stays, and so n S, which is what is written down, grows with n. To multiply the
    # matrix for every sample would cost more than all the rest, so the factor is put off.

    @property
    def _factor(self) -> float:
        """How many times the scatter that is kept the one to be written down is."""
        return self._seen / self._scatter_of if self._covariance == "fixed" and self._scatter_of else 1.0

    def _solved(self, weight: float, ridge: float, inverse: bool = False) -> NDArray[np.float64]:
        return super()._solved(weight * self._factor, ridge, inverse)

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        arrays = super()._shared_arrays()
        arrays[self.gram_name] *= self._factor
        return arrays

    def _settle_shared(self) -> None:
        if self._factor != 1:
            self._gram.scale(self._factor)
        self._scatter_of = self._seen
        super()._settle_shared()

    @property
    def splits(self) -> bool:
        """No: the scatter depends on the order of the samples."""
        return False

    @property
    def movable(self) -> bool:
        """No: the scatter depends on the order of the samples."""
        return False

    def _carry_shared(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Any) -> None:
        self._settle_shared()
        super()._carry_shared(before, after, drift)

    def _merge_shared(self, other: WithinClass, joined: Joined) -> None:
        self._settle_shared()
        other._settle_shared()
        super()._merge_shared(other, joined)


def running_means(rows: NDArray[np.float64], codes: NDArray[np.intp], joined: Joined) -> NDArray[np.float64]:
    """For each row (B, F) the mean of its class just before it; zero for a class's first."""
    means = np.empty_like(rows)
    for numbers, count, mean in zip(groups(codes), joined.counts, joined.means, strict=True):
        own = rows[numbers]
        sums = count * mean + np.cumsum(own, axis=0) - own
        means[numbers] = sums / np.maximum(count + np.arange(len(own)), 1)[:, None]
    return means


def oas(centred: NDArray[np.float64]) -> tuple[float, float]:
    """Weight of the identity in the oracle approximating shrinkage estimate, and what is weighted.

    Of rows (n, d) of mean zero: the covariance is (1 - weight) S + weight * variance * I. Chen,
    Wiesel, Eldar and Hero 2010, eq. 23, in scikit-learn's form, which leaves out what vanishes as
    2 / d.

    >>> oas(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    (1.0, 0.5)
    """
    count, width = centred.shape
    covariance = centred.T @ centred / count
    variance = float(np.trace(covariance)) / width
    power = float((covariance**2).mean())
    rest = (count + 1) * (power - variance**2 / width)
    weight = 1.0 if rest <= 0 else min((power + variance**2) / rest, 1.0)
    return weight, variance
