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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Head
from everlearn_runtime.heads.drift import Drift
from everlearn_runtime.heads.gram import GramSum, packed_size
from everlearn_runtime.heads.own_sums import OwnSums
from everlearn_runtime.heads.running import RunningSolution, Step, rung
from everlearn_runtime.heads.sums import Joined

if TYPE_CHECKING:
    from typing_extensions import Self

VANISHING = 1e-280
# Up to this width of G a solution follows a sample in some milliseconds at most.
SOON_WIDTH = 256
# A G so wide is solved for a question that can wait once for so many rows: one learn in a hundred at most.
SELDOM_WIDTH, SELDOM_ROWS = 1024, 256


class SecondOrder(Head):
    """A head with a sum of outer products G over all samples, solved as samples come.

    The ridge r is relative to the trace of G, brought to a ladder of numbers (:func:`rung`): were it
    relative to the trace itself, r would move with every sample, and a change of r is one of full
    rank, which no step can follow. Small updates are noted as steps of the running solution while
    somebody asks every few samples. After large ones, and where classes go, heads merge and
    features move, all is solved anew when somebody asks.

    A class that is removed leaves its samples in G, unless the head is ``removable``: then each class
    has a G of its own beside, from its first sample on, and goes with it as if it had never been there.
    Classes that :meth:`to_removable` finds already known have none.
    """

    ladder: ClassVar[float] = 10.0  # rungs for a factor of e in the trace
    gram_name: ClassVar[str] = "gram"

    def __init__(self, removable: bool = False) -> None:
        super().__init__()
        if not isinstance(removable, bool):
            raise ValueError(f"removable is {removable!r}; give True or False")
        self._own = OwnSums(0) if removable else None
        self._gram = GramSum(0)
        self._seen = 0
        self._running = RunningSolution()
        self._solved_at = 0  # samples that had been seen when all was last solved anew

    @abstractmethod
    def _targets(self) -> NDArray[np.float64]:
        """What the classes' weights solve for, (C, M)."""

    @abstractmethod
    def _targets_at(self, places: list[int]) -> NDArray[np.float64]:
        """Copies of some rows of the targets, (m, M)."""

    @property
    def answers_soon(self) -> bool:
        """See `Head`: with a wide G only if somebody has asked since the last update.

        Between narrow and wide, if there are a few rows to work in, or nothing was solved for some hundred.
        """
        if self._solution is not None or self._gram.width <= SOON_WIDTH:
            return True
        if self._gram.width > SELDOM_WIDTH:
            return False
        if self._seen + len(self._waiting) - self._solved_at >= SELDOM_ROWS:
            return True
        if not self._is_ready():
            return False
        self._catch_up()  # the question would; what waits may be what moves the system
        return self._is_ready()

    def _is_ready(self) -> bool:
        system = self._system()
        return system is not None and self._running.ready(*system)

    def _system(self) -> tuple[float, float] | None:
        """w and r that a question would be answered with now; None: not known beforehand."""
        return None

    def removes_exactly(self, label: str) -> bool:
        """See `Head`."""
        place = self._classes.place(label)
        return self._own is not None and self._own.of(place) is not None

    def to_removable(self) -> Self:
        """See `Head`."""
        if not self.exact:
            return super().to_removable()
        state = self.state()
        if self._own is None:
            none = OwnSums(self._gram.width).packed()[1]
            flags = np.zeros(len(state.classes), dtype=np.int64)
            arrays = {**state.arrays, "removable": flags, self._own_name: none}
            state = replace(state, options={**state.options, "removable": True}, arrays=arrays)
        return type(self).from_state(state)

    @property
    def _own_name(self) -> str:
        return f"own_{self.gram_name}s"

    @property
    def _removable_option(self) -> dict[str, Any]:
        """Part of the options; left out as it is by default, for runtimes that do not know it."""
        return {} if self._own is None else {"removable": True}

    def _start_gram(self, width: int) -> None:
        self._gram = GramSum(width)
        if self._own is not None:
            self._own = OwnSums(width)

    def _grow_shared(self, new: int) -> None:
        if self._own is not None:
            self._own.grow(new)

    def _grow(
        self,
        rows: NDArray[np.float64],
        owners: NDArray[np.intp],
        places: NDArray[np.intp],
        gain: float | None = None,
    ) -> None:
        """Add rows (n, M) to G, the targets of the classes at these places having changed.

        ``owners``: the place of each row's class (n,). ``gain``: as in :class:`Step`.
        """
        self._add(rows, owners)
        if self._running.follows:
            self._running.note(Step(rows, places.tolist(), gain))

    def _add(self, rows: NDArray[np.float64], owners: NDArray[np.intp]) -> None:
        """Add rows (n, M) of the classes at the places ``owners`` (n,) to G."""
        if self._own is not None:
            self._own.add(rows, owners)
        self._gram.add(rows)

    def _add_each(self, rows: NDArray[np.float64], owners: list[int]) -> None:
        """The same, to the bit as one after the other."""
        if self._own is not None:
            self._own.add_each(rows, owners)
        self._gram.add(rows)

    def _merge_gram(
        self, other: SecondOrder, rows: NDArray[np.float64], owners: NDArray[np.intp], joined: Joined
    ) -> None:
        """Add the other's G, and rows (n, M) of the classes at the places ``owners`` (n,)."""
        if self._own is not None and other._own is not None:
            self._own.merge(other._own, joined.places.tolist())
            self._own.add(rows, owners)
        else:
            self._gram.merge(other._gram)
            self._gram.add(rows)

    def _met(self, earlier: Head, joined: Joined) -> tuple[list[int], list[int]]:
        """Places, here and in an earlier head, of this head's classes that had samples there."""
        mine = np.flatnonzero(joined.counts).tolist()
        return mine, [earlier._classes.place(self._classes[place]) for place in mine]

    def _gone_whole(self, now: SecondOrder, earlier: SecondOrder, joined: Joined) -> list[int]:
        """Places in an earlier head of classes that were removed since, of which nothing stayed in G."""
        own = earlier._own
        if own is None:
            return []
        _, theirs = self._met(earlier, joined)
        return [
            place
            for place, name in enumerate(earlier.classes)
            if own.of(place) is not None
            and place not in theirs
            # One that came back has nothing but new samples.
            and (name not in now._classes or name in self._classes)
        ]

    def _since_gram(
        self, now: SecondOrder, earlier: SecondOrder, between: NDArray[np.float64], joined: Joined
    ) -> None:
        """Take over what one head's G has more than an earlier one's.

        Args:
            now: The one.
            earlier: The other.
            between: Rows (k, M) that G gained when these samples met those before them, one for each class
                that had some, or none at all.
            joined: See `Head._since_shared`.
        """
        gone = self._gone_whole(now, earlier, joined)
        self._seen = now._seen - earlier._seen + int(earlier._counts[gone].sum())
        mine, theirs = self._met(earlier, joined)
        if self._own is None or now._own is None or earlier._own is None:
            self._gram = difference(now._gram, earlier._gram, between)
            return
        rest, parts = difference(now._own.rest, earlier._own.rest), list[GramSum | None]()
        met = dict(zip(mine, theirs, strict=True))
        rows = dict(zip(mine, between, strict=False))
        for place, where in enumerate(joined.places.tolist()):
            part = now._own.of(where)
            before = earlier._own.of(met[place]) if place in met else None
            row = rows[place][None] if place in rows else None
            if part is None:
                rest = difference(rest, before, row)
            else:
                part = difference(part, before, row)
            parts.append(part)
        self._own.put(rest, parts)
        self._settle_shared()

    def _solved(self, weight: float, ridge: float, inverse: bool = False) -> NDArray[np.float64]:
        """Targets times (w G + r I)^-1, (C, M); to be read, not written."""
        before = self._running.solves
        found = self._running.weights(self._gram, weight, ridge, self._targets, self._targets_at, inverse)
        if self._running.solves > before:
            self._solved_at = self._seen
        return found

    def _room(self) -> int:
        return self._gram.room

    @abstractmethod
    def _learn_each(self, rows: NDArray[np.float64], places: list[int]) -> None: ...

    def _size(self) -> float:
        """The trace of G on its ladder; 0 where G vanishes."""
        trace = self._gram.trace
        return rung(trace, self.ladder) if trace > VANISHING * self._gram.width else 0.0

    def _settle_shared(self) -> None:
        if self._own is None:
            self._gram.fold()
        else:
            self._own.fold()
            self._gram = self._own.total()
        self._running.drop()

    def _carry_shared(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift) -> None:
        self._carry_gram(drift)
        self._settle_shared()

    def _move_shared(self, drift: Drift) -> None:
        self._carry_gram(drift)
        self._settle_shared()

    def _carry_gram(self, drift: Drift) -> None:
        """Move G along, the class means having moved."""
        pooled, sum_of_them = list(range(len(self._counts))), self._gram
        if self._own is not None:
            pooled, sum_of_them = [], self._own.rest
            for place in range(len(self._counts)):
                own = self._own.of(place)
                if own is None:
                    pooled.append(place)
                else:
                    own.transform(drift.linear, self._gain(drift, [place], 0))
        gone = self._seen - int(self._counts.sum())
        sum_of_them.transform(drift.linear, self._gain(drift, pooled, gone))
        if self._own is not None:
            self._own.width = len(drift.offset)

    @abstractmethod
    def _gain(self, drift: Drift, places: list[int], gone: int) -> NDArray[np.float64]:
        """What the part of G that is of these classes gains beside the map; of so many samples of
        removed classes, too, if any."""

    def _remove_shared(self, place: int) -> None:
        if self._own is not None:
            if self._own.of(place) is not None:
                self._seen -= self._count_at(place)
            self._own.remove(place)
        self._settle_shared()

    def _count_at(self, place: int) -> int:
        """Samples of the class at a place; 0 of one whose first update has failed."""
        counts = self._per_class["_counts"]  # one is read, so that classes that go do not move all others
        return int(counts.row(place)) if place < len(counts) else 0

    def _shared_nbytes(self) -> int:
        own = 0 if self._own is None else self._own.nbytes
        return 8 * packed_size(self._gram.width) + 8 + own

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        seen = np.array([self._seen], dtype=np.int64)
        if self._own is None:
            return {self.gram_name: self._gram.packed(), "seen": seen}
        flags, own = self._own.packed()
        rest = self._own.rest.packed()
        return {self.gram_name: rest, "seen": seen, "removable": flags, self._own_name: own}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {self.gram_name: (packed_size(width),), "seen": (1,)}
        if self._own is None:
            return shapes
        return {**shapes, "removable": (classes,), self._own_name: (-1, packed_size(width))}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._seen = int(arrays["seen"][0])
        if self._seen < self._counts.sum():
            raise ValueError(f"the state has seen {self._seen} samples but counts {self._counts.sum()}")
        self._gram = GramSum.from_packed(arrays[self.gram_name], self._gram.width)
        if self._own is not None:
            flags, own = arrays["removable"], arrays[self._own_name]
            if (flags > 1).any() or flags.sum() != len(own):
                raise ValueError(
                    f"{self._own_name} holds the sums of {len(own)} classes, and removable says "
                    f"{flags.sum()}; expected a 1 for each of them and 0 for others"
                )
            self._own.restore(self._gram, flags, own)
        self._settle_shared()


def difference(now: GramSum, before: GramSum | None, rows: NDArray[np.float64] | None = None) -> GramSum:
    """What a sum has more than another one, and than the outer products of rows (k, M)."""
    found = GramSum(now.width)
    found.merge(now)
    if before is not None:
        found.subtract(before)
    if rows is not None and len(rows):
        products = GramSum(now.width)
        products.add(rows)
        found.subtract(products)
    return found
