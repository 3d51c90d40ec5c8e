"""What heads on second-order statistics share: a sum of outer products, and its running solution.

LDA and ridge regression are the same computation. Both keep a matrix G, a sum of outer products over
all samples, and for each class a target t_c, a row; and both score with W = T (w G + r I)^-1.

    ridge:  G = sum h h',                           t_c = sum of h over the class
    LDA:    G = sum (x - mean) (x - mean)' within classes,  t_c = the class's mean

For LDA, G is built without ever knowing the final means. When n1 samples of a class meet n2 others,
the scatter around their common mean is the sum of both scatters and

    n1 n2 / (n1 + n2) (m1 - m2) (m1 - m2)'

(Chan, Golub and LeVeque 1983), one more outer product. A single sample is the case n2 = 1: it adds
n / (n + 1) of the outer product of its gap to the mean before it. So both heads only ever add rows to
G and change a few targets, which is what :class:`~everlearn_runtime.heads.running.RunningSolution`
follows, and because all are sums neither the order of the samples nor their cut into updates matters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Head
from everlearn_runtime.heads.drift import Drift
from everlearn_runtime.heads.gram import GramSum, packed_size
from everlearn_runtime.heads.running import RunningSolution, Step, rung

VANISHING = 1e-280


class SecondOrder(Head):
    """A head with a sum of outer products G over all samples, solved as samples come.

    The ridge r is relative to the trace of G, brought to a ladder of numbers (:func:`rung`): were it
    relative to the trace itself, r would move with every sample, and a change of r is one of full
    rank, which no step can follow. Small updates are noted as steps of the running solution while
    somebody asks every few samples. After large ones, and where classes go, heads merge and
    features move, all is solved anew when somebody asks.
    """

    ladder: ClassVar[float] = 10.0  # rungs for a factor of e in the trace
    gram_name: ClassVar[str] = "gram"

    def __init__(self) -> None:
        super().__init__()
        self._gram = GramSum(0)
        self._seen = 0
        self._running = RunningSolution()

    @abstractmethod
    def _targets(self) -> NDArray[np.float64]:
        """What the classes' weights solve for, (C, M)."""

    @abstractmethod
    def _targets_at(self, places: list[int]) -> NDArray[np.float64]:
        """Copies of some rows of the targets, (m, M)."""

    def _grow(self, rows: NDArray[np.float64], places: NDArray[np.intp], gain: float | None = None) -> None:
        """Add rows to G, the targets of the classes at these places having changed.

        ``gain``: as in :class:`Step`.
        """
        self._gram.add(rows)
        if self._running.follows:
            self._running.note(Step(rows, places.tolist(), gain))

    def _solved(self, weight: float, ridge: float) -> NDArray[np.float64]:
        """Targets times (w G + r I)^-1, (C, M); to be read, not written."""
        return self._running.weights(self._gram, weight, ridge, self._targets, self._targets_at)

    def _room(self) -> int:
        return self._gram.room

    @abstractmethod
    def _learn_each(self, rows: NDArray[np.float64], places: list[int]) -> None: ...

    def _size(self) -> float:
        """The trace of G on its ladder; 0 where G vanishes."""
        trace = self._gram.trace
        return rung(trace, self.ladder) if trace > VANISHING * self._gram.width else 0.0

    def _settle_shared(self) -> None:
        self._gram.fold()
        self._running.drop()

    def _carry_shared(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift) -> None:
        self._carry_gram(drift)
        self._settle_shared()

    def _move_shared(self, drift: Drift) -> None:
        self._carry_gram(drift)
        self._settle_shared()

    @abstractmethod
    def _carry_gram(self, drift: Drift) -> None:
        """Move G along, the class means having moved."""

    def _remove_shared(self, place: int) -> None:
        self._settle_shared()

    def _shared_nbytes(self) -> int:
        return 8 * packed_size(self._gram.width) + 8

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        return {self.gram_name: self._gram.packed(), "seen": np.array([self._seen], dtype=np.int64)}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return {self.gram_name: (packed_size(width),), "seen": (1,)}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._seen = int(arrays["seen"][0])
        if self._seen < self._counts.sum():
            raise ValueError(f"the state has seen {self._seen} samples but counts {self._counts.sum()}")
        self._gram = GramSum.from_packed(arrays[self.gram_name], self._gram.width)
        self._settle_shared()
