"""The other forms in which FeCAM was released: what they do differently from `FeCAM`, and no more.

They are here to hold the numbers of the released codes, not to be used.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime import FeCAM
from everlearn_runtime.heads.sums import unit_rows

Array = NDArray[np.float64]


def root(rows: Array) -> Array:
    """Square roots that keep the sign: Tukey's ladder at 1/2."""
    rooted: Array = np.sign(rows) * np.sqrt(np.abs(rows))
    return rooted


def released_fecam(alpha1: float = 1.0, alpha2: float = 0.0) -> FeCAM:
    """The authors' form for ViTs, each class by itself."""
    return FeCAM(alpha1, alpha2, pooling=0.0, correction=0.0)


class ResNetFeCAM(FeCAM):
    """The authors' form for ResNets, whose features are rooted.

    The covariance is of the features' square roots, shrunk twice with (1, 1); the features and the
    mean of the features are rooted, then brought to length one.
    """

    kind: ClassVar[str] = "fecam_resnet"

    def __init__(
        self, alpha1: float = 1.0, alpha2: float = 1.0, pooling: float = 0.0, correction: float = 0.0
    ) -> None:
        super().__init__(alpha1, alpha2, pooling, correction)

    def _learned(self, rows: Array) -> Array:
        return root(rows)

    def _asked(self, rows: Array) -> Array:
        return unit_rows(root(rows))

    def _centres(self) -> Array:
        return unit_rows(root(self._means))

    def _shrunk(self, covariance: Array) -> Array:
        return super()._shrunk(super()._shrunk(covariance))


class AvalancheFeCAM(ResNetFeCAM):
    """Avalanche's: the same, but with the mean of the square roots."""

    kind: ClassVar[str] = "fecam_avalanche"

    def _centres(self) -> Array:
        return unit_rows(self._learned_means)


class PilotFeCAM(FeCAM):
    """PILOT's: the covariance of the features themselves plus 100 I, and in place of its correlations
    those between its rows."""

    kind: ClassVar[str] = "fecam_pilot"

    def __init__(
        self, alpha1: float = 100.0, alpha2: float = 0.0, pooling: float = 0.0, correction: float = 0.0
    ) -> None:
        super().__init__(alpha1, alpha2, pooling, correction)

    def _learned(self, rows: Array) -> Array:
        return rows

    def _centres(self) -> Array:
        return unit_rows(self._learned_means)

    def _shrunk(self, covariance: Array) -> Array:
        covariance = covariance + self._alpha1 * np.eye(len(covariance))
        covariance = covariance - covariance.mean(axis=1, keepdims=True)
        return np.asarray(covariance @ covariance.T)

    def _inverted(self, correlations: Array) -> Array:  # of mean zero, so one direction short
        return np.asarray(np.linalg.pinv(correlations, rcond=1e-12, hermitian=True), dtype=np.float64)
