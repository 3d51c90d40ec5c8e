"""Class means compared by cosine, where the within-class covariance is white."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.scatter import WithinClass
from everlearn_runtime.heads.statistics import Solution
from everlearn_runtime.products import product, row_products

# No more of a mean's squared length than all but this share is taken for noise.
LEAST_LENGTH = 0.1
# A squared length that is a smaller part of the means' own is the rounding of means that are alike.
ROUNDING = 1e-14


class WhitenedCosine(WithinClass):
    """Cosine similarity to class means, around their common centre and in the metric of LDA.

    With g the mean of the class means mu_c, and P the inverse of the shrunk within-class covariance
    (see `WithinClass`),

        score_c = (x - g)' P (mu_c - g) / (|x - g| |mu_c - g|),    |v|^2 = v' P v.

    It keeps what `LDA` keeps. LDA takes half of |mu_c|^2 from a class's score, and the cosine divides by
    |mu_c - g|, which a mean of few images has too large by its noise. Of L = |mu_c - g|^2 a part of that
    is taken out again: L becomes max(L - correction tr / n_c, L / 10), tr = tr(P S / f). Without the
    correction scores lie within -1 and 1; with it they lie within sqrt(10) times that.

    A class whose mean is g (the only class, say) scores 0, and so does every class for x = g. While S
    is zero or no more than rounding (one image a class), P is the identity: the plain cosine to the
    centred means. What removing a class leaves behind, see `LDA`.

    Args:
        shrinkage: "auto", by the number of images, or a number above 0 and at most 1.
        correction: from 0 to 1. Where old classes have many images and new ones few, 0 is best for all
            images alike, and 1 finds new classes as often as old ones.
        removable: as in `LDA`.
        projection: M, the number of random features that the head works on beside the features; see
            `WithinClass`. None: the features alone.
        seed: of these, 0 to 2^32 - 1.

    Raises:
        ValueError: An argument out of range.

    >>> head = WhitenedCosine()
    >>> head.update(np.array([[0.0, 0.0], [0.0, 9.0], [1.0, 0.0], [1.0, 9.0]]), ["a", "a", "b", "b"])
    >>> head.predict(np.array([[0.9, -3.0]]))
    ['b']
    """

    kind: ClassVar[str] = "whitened_cosine"
    usual_temperature: ClassVar[float] = 0.06

    def __init__(
        self,
        shrinkage: float | str = "auto",
        correction: float = 0.7,
        removable: bool = False,
        projection: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(shrinkage, removable, correction, projection, seed)
        self._centre = np.zeros(0)  # g, and whether S says anything, as of the last solution
        self._white = False

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        own = {"shrinkage": self._shrinkage, "correction": self._correction}
        return {**own, **self._removable_option, **self._projection_option}

    def _score(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        scores, gaps = self._along(rows)
        near = self._running.apply(gaps) if self._white else gaps
        lengths = np.sqrt(np.maximum(row_products(gaps, near), 0.0))[:, None]
        return np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)

    def _rank(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Without |x - g|, which takes the inverse once more for each row."""
        return self._along(rows)[0]

    def _along(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The scores times |x - g|, and x - g."""
        if self._solution is None or (self._white and not self._running.applies):
            self._solution = self._solve()
        weights, scale, _ = self._solution
        gaps = self._map(rows) - self._centre
        scores: NDArray[np.float64] = product(gaps, weights)
        scores -= scores.mean(axis=1)[:, None]  # what the centre's own weights say
        scores *= scale
        return scores, gaps

    def _solve(self) -> Solution:
        """The weights of the means, not of what lies between them and the centre, and 1 / |mu_c - g|."""
        means, size = self._targets(), self._scatter_size()
        self._centre = product(np.full(len(means), 1 / len(means)), means)  # several times faster than mean()
        self._white = size > 0
        weights, noise = means, 0.0
        if size:
            weight, ridge, _ = self._metric(size)
            weights = self._solved(weight, ridge, inverse=True)
            products, noise = self._running.products, self._noise(weight, ridge)
        else:
            products = row_products(means, means)
        along = product(weights, self._centre)
        squares = products - 2 * along + along.mean()
        real = squares > ROUNDING * products.max()
        squares = np.maximum(squares - self._correction * noise / self._counts, LEAST_LENGTH * squares)
        return weights.T, np.where(real, 1 / np.sqrt(np.where(real, squares, 1.0)), 0.0), 1
