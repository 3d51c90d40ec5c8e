"""Linear discriminant analysis, learned by sums."""

from __future__ import annotations

from typing import Any, ClassVar

from everlearn_runtime.heads.scatter import WithinClass
from everlearn_runtime.heads.statistics import Solution
from everlearn_runtime.products import row_products


class LDA(WithinClass):
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
            the identity. "auto": by the number of images, as `WithinClass` says.
        removable: keep the scatter of each class apart as well, so that ``remove`` is exact: S and n
            are then those of a head that never saw the class. That takes 4 d (d + 1) + 8 bytes a
            class in a state, 0.6 MB at d = 384 and 2.4 MB at 768, and up to four times that in use.
        correction: from 0 to 1, how much is given back to each class of what the noise of its mean
            takes from its score: adds correction tr(P S / f) / (2 n_c), f = n - C, for n_c images. At 0
            a class of few images beside classes of many is hardly ever found.
        projection: M, the number of random features that the head works on beside the features; see
            `WithinClass`. None: the features alone.
        seed: of these, 0 to 2^32 - 1.

    Raises:
        ValueError: An argument out of range.

    >>> import numpy as np
    >>> head = LDA()
    >>> head.update(np.array([[0.0, 0.0], [0.0, 9.0], [1.0, 0.0], [1.0, 9.0]]), ["a", "a", "b", "b"])
    >>> head.predict(np.array([[0.9, -30.0]]))
    ['b']
    """

    kind: ClassVar[str] = "lda"
    usual_temperature: ClassVar[float] = 8.0

    def __init__(
        self,
        shrinkage: float | str = 1e-2,
        removable: bool = False,
        correction: float = 0.0,
        projection: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(shrinkage, removable, correction, projection, seed)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        # Left out as it is by default, for runtimes that do not know it.
        correction = {"correction": self._correction} if self._correction else {}
        own = {"shrinkage": self._shrinkage, **correction}
        return {**own, **self._removable_option, **self._projection_option}

    def _solve(self) -> Solution:
        means = self._targets()
        size = self._scatter_size()
        if size == 0:
            return means.T, -0.5 * row_products(means, means), 1
        weight, ridge, factor = self._metric(size)
        weights = self._solved(weight, ridge, inverse=self._correction > 0)
        bias = -0.5 * self._running.products
        if self._correction:
            bias = bias + 0.5 * self._correction * self._noise(weight, ridge) / self._counts
        return weights.T, bias, self._seen if isinstance(self._shrinkage, float) else factor
