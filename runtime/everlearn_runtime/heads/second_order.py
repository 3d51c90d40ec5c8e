"""What heads on second-order statistics share: a sum of outer products, and its running solution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Head, Joined
from everlearn_runtime.heads.gram import FOLD_ROWS, GramSum, packed_size
from everlearn_runtime.heads.running import FEW_ROWS, One, RunningSolution, Several, rung

VANISHING = 1e-280


class SecondOrder(Head):
    """A head with a sum of outer products G over all samples, solved as samples come.

    The ridge is relative to ``size``, the trace of G on a ladder (:func:`rung`). Small updates
    are noted as steps of the running solution; where the ladder's next rung is reached, rows have
    piled up, or classes go, heads merge and features move, all is folded in and solved anew when
    somebody asks. Both depend on what was learned alone.
    """

    ladder: ClassVar[float] = 10.0  # rungs for a factor of e in the trace
    gram_name: ClassVar[str] = "gram"

    def __init__(self) -> None:
        super().__init__()
        self._gram = GramSum(0)
        self._seen = 0
        self._size = 0.0
        self._running = self._new_running()

    def _new_running(self) -> RunningSolution:
        return RunningSolution()

    @abstractmethod
    def _targets(self) -> NDArray[np.float64]:
        """What the classes' weights solve for, (C, M)."""

    def _grow(self, rows: NDArray[np.float64], joined: Joined, before: NDArray[np.float64]) -> None:
        """Add rows to G, the targets of the joined classes having changed from ``before``."""
        self._gram.add(rows)
        if len(rows) > FEW_ROWS or self._is_due():
            self._settle_shared()
        else:
            self._running.note(Several(rows, joined.places, before, self._targets_at(joined.places)))

    def _grow_one(
        self, row: NDArray[np.float64], place: int, before: NDArray[np.float64], gain: float
    ) -> None:
        """Add one row (M,) to G, the target of a class having grown from ``before`` by ``gain`` rows."""
        self._gram.add(row[None])
        if self._is_due():
            self._settle_shared()
        else:
            self._running.note(One(row, place, before, gain))

    def _is_due(self) -> bool:
        """Whether rows have piled up, or the ladder's next rung is reached."""
        return self._gram.waiting == 0 or len(self._running) + 1 >= FOLD_ROWS or self._size != self._rung()

    @abstractmethod
    def _targets_at(self, places: NDArray[np.intp]) -> NDArray[np.float64]:
        """Copies of some rows of the targets, (m, M)."""

    def _rung(self) -> float:
        trace = self._gram.trace
        return rung(trace, self.ladder) if trace > VANISHING * self._gram.width else 0.0

    def _settle_shared(self) -> None:
        self._gram.fold()
        self._size = self._rung()
        self._running.restart(len(self._counts))

    def _carry_shared(
        self, before: NDArray[np.float64], after: NDArray[np.float64], drift: NDArray[np.float64]
    ) -> None:
        self._gram.transform(drift)
        self._settle_shared()

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
