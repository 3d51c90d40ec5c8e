"""Ridge regression in which every class counts alike, with an intercept."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.scatter import WithinClass
from everlearn_runtime.heads.statistics import Solution
from everlearn_runtime.products import product


class BalancedRidge(WithinClass):
    """Ridge regression to one-hot targets with an intercept, from the sums that `LDA` keeps.

    With ``balanced`` each class weighs as much as any other, as in scikit-learn's
    ``RidgeClassifier(class_weight="balanced")``, but for the scatter within classes, which is the
    pooled one: a class of three images beside one of 2,000 has none of its own that could be trusted.
    With S the within-class scatter, a_c = mu_c - g, g the mean of the class means, A of the rows a_c
    (C, F), N the number of samples, D = N / C I and P = (S + lambda I)^-1,

        W = (S + A' D A + lambda I)^-1 A' D = P A' (D^-1 + A P A')^-1,    scores = (x - g)' W + 1 / C.

    So what has to be inverted beside P, which follows each sample, is of size C. Without ``balanced``
    D holds the number of samples of each class, g is the mean of all samples and the intercept of a
    class its share of them: plain ridge regression of all samples that are in the classes.

    With "auto" lambda is what `WithinClass` adds to S, s / (1 - s) tr(S) / F with s by the number of
    images. It takes no hold-out and no eigendecomposition. A common offset of all features
    changes nothing. While S is zero or no more than rounding, P is the identity.

    The first prediction after an update costs O(C^2 F + C^3) beside the O(F^2) of `LDA`. What removing a
    class leaves behind, see `LDA`.

    Args:
        regularisation: "auto", or a positive number r for lambda = r tr(S) / F, the trace on the ladder
            of `LDA`.
        balanced: whether all classes weigh alike.
        removable: as in `LDA`.
        projection: M, the number of random features that the head works on beside the features; see
            `WithinClass`. None: the features alone.
        seed: of these, 0 to 2^32 - 1.

    Raises:
        ValueError: An argument out of range.

    >>> head = BalancedRidge()
    >>> head.update(np.array([[0.0, 0.0], [0.0, 9.0], [1.0, 0.0], [1.0, 9.0]]), ["a", "a", "b", "b"])
    >>> head.predict(np.array([[0.9, -3.0]]))
    ['b']
    """

    kind: ClassVar[str] = "balanced_ridge"
    usual_temperature: ClassVar[float] = 0.06

    def __init__(
        self,
        regularisation: float | str = "auto",
        balanced: bool = True,
        removable: bool = False,
        projection: int | None = None,
        seed: int = 0,
    ) -> None:
        if regularisation != "auto" and (
            isinstance(regularisation, str) or not 0 < float(regularisation) < np.inf
        ):
            raise ValueError(f"regularisation is {regularisation!r}; give 'auto' or a positive number")
        if not isinstance(balanced, bool):
            raise ValueError(f"balanced is {balanced!r}; give True or False")
        super().__init__("auto", removable, 0.0, projection, seed)
        self._regularisation = regularisation if isinstance(regularisation, str) else float(regularisation)
        self._balanced = balanced
        self._centre = np.zeros(0)  # g, and the inverse of D^-1 + A P A', as of the last solution
        self._middle = np.zeros((0, 0))

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        own = {"regularisation": self._regularisation, "balanced": self._balanced}
        return {**own, **self._removable_option, **self._projection_option}

    def _metric(self, size: float) -> tuple[float, float, float]:
        if isinstance(self._regularisation, str):
            return super()._metric(size)
        return 1.0, self._regularisation * size / self._gram.width, self._free

    def _weighing(self) -> NDArray[np.float64]:
        """The diagonal of D."""
        counts = self._counts.astype(np.float64)
        return np.full(len(counts), counts.mean()) if self._balanced else counts

    def _score(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        weigh = self._weighing()
        share = weigh / weigh.sum()
        if self._solution is None:
            self._solution = self._solve()
        weights, _, _ = self._solution
        along: NDArray[np.float64] = product(self._map(rows) - self._centre, weights)
        along -= (along @ share)[:, None]
        scores: NDArray[np.float64] = product(along, self._middle) + share
        return scores

    def _solve(self) -> Solution:
        """T P for the class means T, and the inverse of D^-1 + A P A' apart from it: C x C for each
        sample, not C x F."""
        means, size, weigh = self._targets(), self._scatter_size(), self._weighing()
        share = weigh / weigh.sum()
        self._centre = product(share, means)
        solved = means
        if size:
            weight, ridge, _ = self._metric(size)
            solved = self._solved(weight, ridge)
        products = product(solved, (means - self._centre).T)
        products -= share @ products
        self._middle = np.linalg.inv(np.diag(1 / weigh) + products).T
        return solved.T, np.zeros(len(means)), 1
