"""Linear discriminant analysis, learned by sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Head
from everlearn_runtime.heads.gram import GramSum, packed_size


class LDA(Head):
    """Class means and one covariance that all classes share.

    score_c = x' P mu_c - mu_c' P mu_c / 2 with P the inverse of (1 - s) S / n + s tr(S) / (n d) I,
    S the pooled within-class scatter of n samples; no class priors. This is streaming LDA
    (Hayes and Kanan 2020, arXiv 1909.01520) with the exact, order-independent scatter: joining
    n1 and n2 samples of a class adds n1 n2 / (n1 + n2) of the outer product of the difference of
    their means (Chan, Golub and LeVeque 1983). While S is zero or no more than rounding (one
    sample per class, say) P is the identity: nearest mean.

    ``remove`` takes the class's mean, count and column; S and n keep its samples, which go on
    saying how features vary within a class. The result is LDA with the pooled scatter of all
    samples ever seen, and a class that comes back starts with a new mean.

    Args:
        shrinkage: s, above 0 and at most 1: how far the covariance is drawn to a multiple of
            the identity.

    Raises:
        ValueError: A shrinkage out of range.

    >>> head = LDA()
    >>> head.update(np.array([[0.0, 0.0], [0.0, 9.0], [1.0, 0.0], [1.0, 9.0]]), ["a", "a", "b", "b"])
    >>> head.predict(np.array([[0.9, -30.0]]))
    ['b']
    """

    kind: ClassVar[str] = "lda"

    def __init__(self, shrinkage: float = 1e-2) -> None:
        super().__init__()
        self._shrinkage = float(shrinkage)
        if not 0 < self._shrinkage <= 1:
            raise ValueError(f"shrinkage is {shrinkage!r}; it must be above 0 and at most 1")
        self._scatter = GramSum(0)
        self._seen = 0

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {"shrinkage": self._shrinkage}

    def _solve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scatter = self._scatter.value()
        width = len(scatter)
        trace = float(np.trace(scatter))
        size = float((self._means**2).sum(axis=1).mean())
        if trace <= self._seen * size * 1e-24:
            weights = self._means.T.copy()
        else:
            covariance = (1 - self._shrinkage) / self._seen * scatter
            covariance[np.diag_indices(width)] += self._shrinkage * trace / (self._seen * width)
            weights = np.linalg.solve(covariance, self._means.T)
        return weights, -0.5 * np.einsum("cf,fc->c", self._means, weights)

    def _start_shared(self, width: int) -> None:
        self._scatter = GramSum(width)

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        places: NDArray[np.intp],
        between: NDArray[np.float64],
    ) -> None:
        self._scatter.add(np.concatenate([rows - means, between]))
        self._seen += len(rows)

    def _carry_shared(
        self, before: NDArray[np.float64], after: NDArray[np.float64], drift: NDArray[np.float64]
    ) -> None:
        self._scatter.transform(drift)

    def _settle_shared(self) -> None:
        self._scatter.fold()

    def _merge_shared(self, other: LDA, places: NDArray[np.intp], between: NDArray[np.float64]) -> None:
        self._scatter.merge(other._scatter)
        self._scatter.add(between)
        self._seen += other._seen

    def _shared_nbytes(self) -> int:
        return 8 * packed_size(self._scatter.width) + 8

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        return {"scatter": self._scatter.packed(), "seen": np.array([self._seen], dtype=np.int64)}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return {"scatter": (packed_size(width),), "seen": (1,)}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._seen = int(arrays["seen"][0])
        if self._seen < self._counts.sum():
            raise ValueError(f"the state has seen {self._seen} samples but counts {self._counts.sum()}")
        self._scatter = GramSum.from_packed(arrays["scatter"], self._scatter.width)
