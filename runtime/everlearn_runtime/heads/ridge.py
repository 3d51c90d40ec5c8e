"""Ridge regression to one-hot targets, learned by sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.drift import Drift, affine_drift, affine_map
from everlearn_runtime.heads.growing import PerClass
from everlearn_runtime.heads.projection import RandomFeatures, random_features
from everlearn_runtime.heads.running import Step
from everlearn_runtime.heads.second_order import SecondOrder
from everlearn_runtime.heads.statistics import Solution
from everlearn_runtime.heads.sums import Joined, group_sums
from everlearn_runtime.heads.transfer import Pair

# Relative to the mean eigenvalue of G; below the first step float64 sums say nothing more.
GRID = 10.0 ** np.arange(-6, 3.01, 0.25)
CHUNK_ROWS = 512


class Ridge(SecondOrder):
    """W = (G + lambda I)^-1 Q with G = sum h h' and Q = sum h y', y one-hot; scores h' W.

    h is the feature vector itself, or, with ``projection``, max(R' x, 0) with R of independent
    N(0, 1) entries (RanPAC, arXiv 2307.02251, section 4). R is drawn anew from the seed and never
    stored: the stream of ``np.random.RandomState`` is frozen (NEP 19).

    ``regularisation="gcv"`` takes the lambda of a log grid with the smallest generalised
    cross-validation error (Golub, Heath and Wahba 1979, eq. 1.4),

        n |Y - H W|^2 / (n - tr(H (G + lambda I)^-1 H'))^2,

    from the sums alone. With G = V diag(e) V' and q_j^2 the squared length of row j of V' Q,

        |Y - H W|^2 = (|Y|^2 - sum_j q_j^2 / e_j) + sum_j q_j^2 / e_j (lambda / (e_j + lambda))^2
        n - tr(...) = (n - r) + sum_j lambda / (e_j + lambda)

    over the r eigenvalues that are not zero; the first bracket vanishes where r = n. So it needs
    no hold-out, remembers all tasks alike and does not depend on the order. Of values that are
    equal to one part in a million, the largest lambda is taken.

    Learning and predicting in turn costs O(M^2 + C M) for a sample with a number for
    ``regularisation``. With "gcv" a sample is learned as fast, but the first prediction after it
    takes an eigendecomposition, O(M^3), for lambda may move with any sample: 3 ms at M = 192, 14
    at 384 and 80 at 768 on a core on which a number takes 0.06, 0.1 and 0.3. To learn much and
    predict then, that is nothing; to predict after every sample, give a number.

    ``remove`` takes the class's mean, count and column of Q; G, n keep its samples, which become
    background with all-zero targets: the same as ridge regression on all rows ever seen with the
    removed class's targets set to zero. With ``removable`` nothing stays.

    Args:
        regularisation: "gcv", or a positive number r for lambda = r t / M, with t the trace of G
            rounded to the nearest exp(k / 10), k whole, so that it rests while G grows by a tenth.
        projection: M, the number of random features; None: the features as they are.
        seed: Of R, 0 to 2^32 - 1.
        removable: keep G of each class apart as well, so that ``remove`` is exact: G, Q and n are
            then those of a head that never saw the class. That takes 4 M (M + 1) + 8 bytes a class
            in a state, 0.6 MB at M = 384, 2.4 MB at 768 and 16 MB at 2,000, and up to four times
            that in use.

    Raises:
        ValueError: An argument out of range.

    >>> head = Ridge(projection=64)
    >>> head.update(np.eye(3), ["a", "b", "c"])
    >>> head.predict(np.eye(3))
    ['a', 'b', 'c']
    """

    kind: ClassVar[str] = "ridge"
    usual_temperature: ClassVar[float] = 0.06
    _sums = PerClass[np.float64]()

    def __init__(
        self,
        regularisation: float | str = "gcv",
        projection: int | None = None,
        seed: int = 0,
        removable: bool = False,
    ) -> None:
        super().__init__(removable)
        if isinstance(regularisation, str):
            if regularisation != "gcv":
                raise ValueError(f"regularisation is {regularisation!r}; give 'gcv' or a positive number")
        elif not 0 < regularisation < np.inf:
            raise ValueError(f"regularisation is {regularisation!r}; give 'gcv' or a positive number")
        else:
            regularisation = float(regularisation)
        self._regularisation = regularisation
        self._projection = projection
        self._seed = seed
        self._features = random_features(projection, seed)
        self._sums = np.zeros((0, projection or 0))
        self._background = np.zeros(0)  # the sum of removed classes' h

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        own = {"regularisation": self._regularisation, "projection": self._projection, "seed": self._seed}
        return {**own, **self._removable_option}

    @property
    def answers_soon(self) -> bool:
        """See `Head`: with "gcv" only if somebody has asked since the last update."""
        return self._solution is not None or (self._regularisation != "gcv" and super().answers_soon)

    def _map(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._features is None:
            return rows
        if self._features.matrix is None:
            self._features.matrix = self.random_projection(rows.shape[1])
        return self._features.of(rows)

    def _map_each(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map single samples (B, F) that are the next to be seen, each to the same bits in any company."""
        if self._features is None:
            return rows
        if self._features.matrix is None:
            self._features.matrix = self.random_projection(rows.shape[1])
        return self._features.of_each(rows, self._seen)

    def random_projection(self, width: int) -> NDArray[np.float64]:
        """Draw R, (width, M), from the seed; a subclass may have it from elsewhere."""
        return RandomFeatures(self._projection or width, self._seed).draw(width)

    def _solve(self) -> Solution:
        bias = np.zeros(len(self._counts))
        width = self._gram.width
        size = self._size()
        if size == 0:
            return np.zeros((width, len(bias))), bias, 1
        if isinstance(self._regularisation, float):
            return self._solved(1.0, self._regularisation * size / width).T, bias, 1
        values, vectors = np.linalg.eigh(self._gram.value())
        targets = vectors.T @ self._targets().T
        chosen = self._gcv(values, (targets**2).sum(axis=1), self._gram.trace / width * GRID)
        return vectors @ (targets / (np.maximum(values, 0) + chosen)[:, None]), bias, 1

    def _gcv(
        self, values: NDArray[np.float64], squares: NDArray[np.float64], grid: NDArray[np.float64]
    ) -> float:
        real = values > values[-1] * 1e-12
        real[: -self._seen] = False
        values, fitted = values[real], squares[real] / values[real]
        rank = len(values)
        outside = 0.0 if rank == self._seen else max(float(self._counts.sum() - fitted.sum()), 0.0)
        left = grid[:, None] / (values + grid[:, None])
        errors = (outside + left**2 @ fitted) / (self._seen - rank + left.sum(axis=1)) ** 2
        return float(grid[errors <= errors.min() * (1 + 1e-6)].max())

    def _start_shared(self, width: int) -> None:
        self._start_gram(self._projection or width)
        self._background = np.zeros(self._projection or width)

    def _targets(self) -> NDArray[np.float64]:
        return self._sums if self._projection else self._counts[:, None] * self._means

    def _targets_at(self, places: list[int]) -> NDArray[np.float64]:
        if self._projection:
            return self._sums[places]
        return self._counts[places, None] * self._means[places]

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        for start in range(0, len(rows), CHUNK_ROWS):
            hidden, owners = self._map(rows[start : start + CHUNK_ROWS]), codes[start : start + CHUNK_ROWS]
            if self._projection:
                found, _, sums = group_sums(hidden, owners)
                self._sums[found] += sums
            if len(rows) > CHUNK_ROWS:
                self._add(hidden, owners)
        if len(rows) > CHUNK_ROWS:
            self._settle_shared()
        else:
            self._grow(hidden, owners, joined.places, 1.0 if len(rows) == 1 else None)
        self._seen += len(rows)

    def _learn_each(self, rows: NDArray[np.float64], places: list[int]) -> None:
        hidden = self._map_each(rows)
        self._join_each(rows, places)
        self._seen += len(rows)
        if self._projection:
            sums = self._sums
            for place, row in zip(places, hidden, strict=True):
                sums[place] += row
        self._add_each(hidden, places)
        if self._running.follows:
            for place, row in zip(places, hidden, strict=True):
                self._running.note(Step(row[None], [place], 1.0))

    def _carry_shared(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift) -> None:
        if self._projection:  # the random features have a drift of their own, which is not affine in x
            drift = affine_drift(self._map(before), self._map(after))
            self._sums = self._sums @ drift.linear + self._counts[:, None] * drift.offset
        super()._carry_shared(before, after, drift)

    def _carry_gram(self, drift: Drift) -> None:
        gone = self._seen - int(self._counts.sum())
        self._background = self._background @ drift.linear + gone * drift.offset
        super()._carry_gram(drift)

    def _gain(self, drift: Drift, places: list[int], gone: int) -> NDArray[np.float64]:
        """With A' h + b for each h, G' = A' G A + g' b' + b g' - n b b', g' the sum of what h became."""
        seen, total = int(self._counts[places].sum()) + gone, self._targets_at(places).sum(axis=0)
        if gone:
            total = total + self._background
        gain = seen * drift.left_over
        shift = np.outer(total - 0.5 * seen * drift.offset, drift.offset)
        gain += shift
        gain += shift.T
        return gain

    @property
    def movable(self) -> bool:
        """Yes: G, Q and n."""
        return True

    @property
    def expands(self) -> bool:
        """With a projection."""
        return self._projection is not None

    def _move_expanded(self, drift: Drift, like: Ridge, images: Pair) -> None:
        hidden, _ = affine_map(self._map(images[0]), like._map(images[1]))
        self._means = drift.move(self._means)
        self._sums = self._sums @ hidden.linear + self._counts[:, None] * hidden.offset
        self._move_shared(hidden)

    @property
    def splits(self) -> bool:
        """Yes: G, Q and n."""
        return True

    def _since_shared(self, now: Ridge, earlier: Ridge, joined: Joined) -> None:
        self._since_gram(now, earlier, np.zeros((0, self._gram.width)), joined)
        if self._projection:
            self._sums = now._sums[joined.places]
            mine, theirs = self._met(earlier, joined)
            self._sums[mine] -= earlier._sums[theirs]
        before = earlier._total() - earlier._targets_at(self._gone_whole(now, earlier, joined)).sum(axis=0)
        self._background = now._total() - before - self._targets().sum(axis=0)

    def _total(self) -> NDArray[np.float64]:
        """The sum of all h."""
        total: NDArray[np.float64] = self._targets().sum(axis=0) + self._background
        return total

    def _merge_shared(self, other: Ridge, joined: Joined) -> None:
        none = np.zeros((0, self._gram.width)), np.zeros(0, dtype=np.intp)
        self._merge_gram(other, *none, joined)
        if self._projection:
            self._sums[joined.places] += other._sums
        self._background = self._background + other._background
        self._seen += other._seen
        self._settle_shared()

    def _remove_shared(self, place: int) -> None:
        rows, count = self._per_class, self._count_at(place)
        if count and (self._own is None or self._own.of(place) is None):
            gone = rows["_sums"].row(place) if self._projection else count * rows["_means"].row(place)
            self._background = self._background + gone
        super()._remove_shared(place)

    def _shared_nbytes(self) -> int:
        return super()._shared_nbytes() + self._background.nbytes

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        arrays = {**super()._shared_arrays(), "background": self._background.copy()}
        return {**arrays, "sums": self._sums.copy()} if self._projection else arrays

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        own = (self._projection or width) if width else 0
        shapes = {**super()._shared_shapes(classes, own), "background": (own,)}
        return {**shapes, "sums": (classes, self._projection)} if self._projection else shapes

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._background = arrays["background"]
        self._sums = arrays.get("sums", np.zeros((len(self._classes), 0)))
        super()._restore_shared(arrays)
