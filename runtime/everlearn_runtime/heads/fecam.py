"""A covariance of its own for each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Head, Joined, unit_rows
from everlearn_runtime.heads.drift import Drift, affine_drift
from everlearn_runtime.heads.gram import GramSum, packed_size

Array = NDArray[np.float64]


def _root(rows: Array) -> Array:
    """Square roots that keep the sign: Tukey's ladder at 1/2."""
    root: Array = np.sign(rows) * np.sqrt(np.abs(rows))
    return root


def _same(rows: Array) -> Array:
    return rows


@dataclass(frozen=True)
class _Variant:
    """What the released codes differ in.

    Attributes:
        learned: what mean and covariance are of.
        asked: what is compared with the means.
        centre: class means (C, F) of the features, and of what is ``learned``, to what is compared.
        diagonal, off_diagonal: default a1 and a2.
        rounds: how often the covariance is shrunk.
        of_rows: shrink by a1 I, and correlate the rows of what comes of it.
    """

    learned: Callable[[Array], Array]
    asked: Callable[[Array], Array]
    centre: Callable[[Array, Array], Array]
    diagonal: float
    off_diagonal: float
    rounds: int = 1
    of_rows: bool = False


def _unit_root(rows: Array) -> Array:
    return unit_rows(_root(rows))


VARIANTS = {
    "vit": _Variant(unit_rows, unit_rows, lambda plain, learned: learned, 1.0, 0.0),
    "resnet": _Variant(_root, _unit_root, lambda plain, learned: _unit_root(plain), 1.0, 1.0, 2),
    "avalanche": _Variant(_root, _unit_root, lambda plain, learned: unit_rows(learned), 1.0, 1.0, 2),
    "pilot": _Variant(_same, unit_rows, lambda plain, learned: unit_rows(learned), 100.0, 0.0, of_rows=True),
}


class FeCAM(Head):
    """Mahalanobis distance to each class's mean under the class's own correlations.

    score_c = -(z - m_c)' R_c^-1 (z - m_c), z = x / |x|, with m_c the mean of z over the class and
    R_c the correlations of its covariance, divisor n - 1, after shrinking:

        S + a1 mean(diag S) I + a2 mean(off-diagonal S) (1 - I),

    where entries that are zero do not count in the second mean. Correlations make distances under
    different covariances comparable. A class without scatter (one sample, say) has R = I: plain
    distance, which is also where a1 takes all classes as it grows (nearest class mean).

    Counts, means and scatters are sums, kept for each class alone, so updates are exact in any
    order and ``remove`` leaves nothing behind. They take d (d + 1) / 2 + 2 d + 1 numbers a class
    for d features, 0.6 MB at d = 384, and twice that while in use; once there are scores, R^-1 of
    each class as much again. After an update only the classes in it are solved anew, O(d^3) each.
    A class that returns has mean and covariance of all its samples; in the released codes those of
    the newest task replace the earlier ones, which ``remove`` before the update does, too.

    Args:
        alpha1: a1, above 0; None: the variant's.
        alpha2: a2, at least 0; None: the variant's.
        variant: "vit", as above with (a1, a2) = (1, 0); the authors' script takes (10, 10) for
            ImageNet-R. Or another form in which the method was released:
            "resnet": the covariance is of the features' square roots (negative ones keep their
            sign), shrunk twice with (1, 1); the features and the mean of the features are rooted,
            then brought to length one.
            "avalanche": the same, but with the mean of the square roots.
            "pilot": covariance of the features themselves plus 100 I (a1 in place of 100; a2 has
            no place), and in place of its correlations those between its rows.

    Raises:
        ValueError: An argument out of range.

    Source: Goswami, Liu, Twardowski and van de Weijer, "FeCAM: Exploiting the Heterogeneity of
    Class Distributions in Exemplar-Free Continual Learning", NeurIPS 2023, arXiv 2309.14062,
    section 3, and the released code.

    >>> head = FeCAM()
    >>> head.update(np.array([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), ["a", "a", "b"])
    >>> head.scores(np.array([[4.0, 3.0]])).round(3)
    array([[-0.4, -0.8]])
    """

    kind: ClassVar[str] = "fecam"

    def __init__(
        self, alpha1: float | None = None, alpha2: float | None = None, variant: str = "vit"
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(map(repr, VARIANTS))}")
        if alpha1 is not None and not 0 < alpha1 < np.inf:
            raise ValueError(f"alpha1 is {alpha1!r}; it must be above 0")
        if alpha2 is not None and not 0 <= alpha2 < np.inf:
            raise ValueError(f"alpha2 is {alpha2!r}; it must be at least 0")
        self._variant = VARIANTS[variant]
        self._name = variant
        self._alpha1 = float(self._variant.diagonal if alpha1 is None else alpha1)
        self._alpha2 = float(self._variant.off_diagonal if alpha2 is None else alpha2)
        if self._variant.of_rows and self._alpha2:
            raise ValueError(f"alpha2 is {alpha2!r}; with variant={variant!r} it must be 0")
        self._learned_means = np.zeros((0, 0))
        self._scatters: list[GramSum] = []
        self._inverses: list[Array | None] = []

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {"alpha1": self._alpha1, "alpha2": self._alpha2, "variant": self._name}

    def correlations(self, label: str) -> Array:
        """The matrix R (F, F) under which distances to a class are taken.

        Raises:
            ValueError: No such class.
        """
        if label not in self.classes:
            raise ValueError(f"no class {label!r}; known classes: {', '.join(map(repr, self.classes))}")
        return self._correlations(self.classes.index(label))

    def _score(self, rows: Array) -> Array:
        rows = self._variant.asked(rows)
        centres = self._variant.centre(self._means, self._learned_means)
        scores = np.empty((len(rows), len(centres)))
        for place, centre in enumerate(centres):
            gap = rows - centre
            np.einsum("bf,bf->b", gap @ self._inverse(place), gap, out=scores[:, place])
        return -scores

    def _inverse(self, place: int) -> Array:
        inverse = self._inverses[place]
        if inverse is None:
            matrix = self._correlations(place)
            if self._variant.of_rows:  # of mean zero, so one direction short
                inverse = np.asarray(np.linalg.pinv(matrix, rcond=1e-12, hermitian=True), dtype=np.float64)
            else:
                inverse = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
            self._inverses[place] = inverse
        return inverse

    def _correlations(self, place: int) -> Array:
        covariance = self._scatters[place].value() / max(int(self._counts[place]) - 1, 1)
        identity = np.eye(len(covariance))
        if self._variant.of_rows:
            covariance = covariance + self._alpha1 * identity
            covariance = covariance - covariance.mean(axis=1, keepdims=True)
            covariance = covariance @ covariance.T
        else:
            for _ in range(self._variant.rounds):
                apart = covariance[identity == 0]
                apart = apart[apart != 0]
                common = self._alpha2 * apart.mean() if len(apart) else 0.0
                spread = self._alpha1 * np.diag(covariance).mean()
                covariance = covariance + spread * identity + common * (1 - identity)
        deviation = np.sqrt(np.diag(covariance))
        # Less than this is the rounding of a class whose samples are all alike.
        if not deviation.min() ** 2 > np.square(self._learned_means[place]).mean() * 1e-24:
            return identity
        correlations: Array = covariance / np.outer(deviation, deviation)
        return correlations

    def _start_shared(self, width: int) -> None:
        self._learned_means = np.zeros((0, width))

    def _grow_shared(self, new: int) -> None:
        width = self._means.shape[1]
        self._learned_means = np.concatenate([self._learned_means, np.zeros((new, width))])
        self._scatters += [GramSum(width) for _ in range(new)]
        self._inverses += [None] * new

    def _join(self, place: int, before: int, count: int, mean: Array) -> None:
        """Join a group of samples, whose own scatter is in already, into a class."""
        gap = mean - self._learned_means[place]
        share = count / (before + count)
        self._learned_means[place] += share * gap
        if before:
            self._scatters[place].add(np.sqrt(before * share) * gap[None])
        self._inverses[place] = None

    def _learn_shared(self, rows: Array, means: Array, codes: NDArray[np.intp], joined: Joined) -> None:
        learned = self._variant.learned(rows)
        for place, before in zip(joined.places.tolist(), joined.counts.tolist(), strict=True):
            own = learned[codes == place]
            mean = own.mean(axis=0)
            if len(own) > 1:
                self._scatters[place].add(own - mean)
            self._join(place, before, len(own), mean)

    def _merge_shared(self, other: FeCAM, joined: Joined) -> None:
        counts = (self._counts[joined.places] - joined.counts).tolist()
        groups = zip(
            joined.places.tolist(), joined.counts.tolist(), counts, other._learned_means.copy(), strict=True
        )
        for scatter, (place, before, count, mean) in zip(list(other._scatters), groups, strict=True):
            self._scatters[place].merge(scatter)
            self._join(place, before, count, mean)

    def _carry_shared(self, before: Array, after: Array, drift: Drift) -> None:
        drift = affine_drift(self._variant.learned(before), self._variant.learned(after))
        self._learned_means = drift.move(self._learned_means)
        for scatter, count in zip(self._scatters, self._counts.tolist(), strict=True):
            scatter.transform(drift.linear, (count - 1) * drift.left_over)
        self._inverses = [None] * len(self._inverses)

    def _remove_shared(self, place: int) -> None:
        self._learned_means = np.delete(self._learned_means, place, axis=0)
        del self._scatters[place], self._inverses[place]

    def _settle_shared(self) -> None:
        for scatter in self._scatters:
            scatter.fold()

    def _shared_nbytes(self) -> int:
        width = self._means.shape[1]
        return self._learned_means.nbytes + 8 * len(self._counts) * packed_size(width)

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
