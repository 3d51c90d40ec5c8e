"""LDA that also looks at which task an image seems to be of."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.drift import Drift, affine_drift, side_by_side, still
from everlearn_runtime.heads.lda import LDA
from everlearn_runtime.heads.scatter import WithinClass
from everlearn_runtime.heads.sums import Joined

# An image that looks like none of a class's tasks costs it this much, and no more: log(1e-6).
FLOOR = 1e-6


class EvidenceLDA(LDA):
    """LDA on all features but the last, which are evidence of the task an image is of.

    The last ``tasks`` features are shares p_t from 0 to 1, how much the image looks like task t. A
    class's mean m_c of them says which tasks it belongs to, so the classes of a task need not be
    written down, and a class that is learned on the device belongs where it looks like. The score is

        LDA_c(x) + strength log(m_c' p)

    where the largest share is ahead of the second by more than ``margin``, and LDA_c(x) elsewhere.
    For a class of one task, m_c' p is p_t. No more than sums is kept: m_c is part of the class mean.
    When features are carried along, evidence stays what it was: tasks that came later have none of
    an old class.

    Args:
        shrinkage: see `LDA`.
        tasks: how many of the features, from the end, are evidence.
        strength: factor of the logarithm.
        margin: how far the largest share has to be ahead, from 0 to 1.
        removable: see `LDA`.

    Raises:
        ValueError: Options out of range; features that are no wider than ``tasks``.

    Source: arXiv 2411.00623, as ``everlearn.DualLoRA`` reconstructs it.

    >>> head = EvidenceLDA(tasks=2)
    >>> head.update(np.array([[0.0, 1.0, 0.0], [0.1, 0.0, 1.0]]), ["a", "b"])
    >>> head.predict(np.array([[0.1, 0.9, 0.1]]))
    ['a']
    """

    kind: ClassVar[str] = "evidence_lda"

    def __init__(
        self,
        shrinkage: float = 1e-2,
        tasks: int = 1,
        strength: float = 1.0,
        margin: float = 0.0,
        removable: bool = False,
    ) -> None:
        super().__init__(shrinkage, removable)
        if type(tasks) is not int or tasks < 1:
            raise ValueError(f"tasks is {tasks!r}; give a number of features, at least 1")
        if not 0 <= strength < np.inf:
            raise ValueError(f"strength is {strength!r}; it must be at least 0, and finite")
        if not 0 <= margin <= 1:
            raise ValueError(f"margin is {margin!r}; it must be from 0 to 1")
        self._tasks = tasks
        self._strength = float(strength)
        self._margin = float(margin)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        own = {"tasks": self._tasks, "strength": self._strength, "margin": self._margin}
        return super().options | own

    def _score(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        shares = rows[:, -self._tasks :]
        agreement = shares @ self._means[:, -self._tasks :].T
        ranked = np.sort(np.pad(shares, ((0, 0), (1, 0))), axis=1)
        clear = ranked[:, -1] - ranked[:, -2] > self._margin
        return super()._score(rows) + self._strength * np.where(
            clear[:, None], np.log(np.maximum(agreement, FLOOR)), 0.0
        )

    # LDA's own part: everything but the evidence.

    def _map(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows[:, : -self._tasks]

    def _targets(self) -> NDArray[np.float64]:
        return self._means[:, : -self._tasks]

    def _targets_at(self, places: list[int]) -> NDArray[np.float64]:
        return self._means[places, : -self._tasks]

    def _check_width(self, width: int) -> None:
        if width <= self._tasks:
            raise ValueError(f"features are {width} wide, and the last {self._tasks} are evidence; give more")

    def _start_shared(self, width: int) -> None:
        super()._start_shared(width - self._tasks)

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return super()._shared_shapes(classes, max(width - self._tasks, 0))

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        super()._learn_shared(self._map(rows), self._map(means), codes, self._joined(joined))

    _learn_each = LDA._learn_each  # by way of this:

    def _join_each(
        self, rows: NDArray[np.float64], places: list[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        gaps, earlier = super()._join_each(rows, places)
        return self._map(gaps).copy(), earlier

    def _merge_shared(self, other: WithinClass, joined: Joined) -> None:
        super()._merge_shared(other, self._joined(joined))

    def _joined(self, joined: Joined) -> Joined:
        return joined._replace(means=self._map(joined.means), between=self._map(joined.between))

    @property
    def splits(self) -> bool:
        """No: as for ``movable``."""
        return False

    @property
    def movable(self) -> bool:
        """No: the evidence is not mapped as other features are."""
        return False

    def _drift(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> Drift:
        return side_by_side([affine_drift(self._map(before), self._map(after)), still(self._tasks)])

    def _carry_gram(self, drift: Drift) -> None:
        super()._carry_gram(drift.part(slice(None, -self._tasks)))
