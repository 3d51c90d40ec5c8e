"""What a head knows: samples and mean feature of each class, and what its kind keeps beside them.

The hooks at the end are what a kind of head fills in.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.heads.checks import check_arrays, check_labels, check_rows
from everlearn_runtime.heads.classes import Classes
from everlearn_runtime.heads.confidence import Confidence, Judgement
from everlearn_runtime.heads.growing import GrowingRows, PerClass
from everlearn_runtime.heads.registry import HeadState, make, own_kind
from everlearn_runtime.heads.sums import Joined, group_sums, join, join_each
from everlearn_runtime.words import plural

if TYPE_CHECKING:
    from typing_extensions import Self

    from everlearn_runtime.heads.base import Head


# So many single samples wait to be learned together.
WAITING_ROWS = 256

# Weights (M, C), bias (C,), and the factor that scores still lack; good until the next update.
Solution = tuple[NDArray[np.float64], NDArray[np.float64], float]

FIGURES = "confidence."  # before the names of the arrays of `Confidence` in a state


class ClassStatistics(ABC):
    """Sums over samples that are learned exactly, forgotten, merged, kept and brought back: see `Head`."""

    kind: ClassVar[str]
    exact: ClassVar[bool] = True

    # Whether single samples wait, to be learned together: where `_learn_each` says the same as
    # `_learn_shared`, so not in a subclass that learns in another way and has no `_learn_each`.
    _gathers: ClassVar[bool] = True
    _counts = PerClass[np.int64]()
    _means = PerClass[np.float64]()

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "_learn_shared" in vars(cls):
            cls._gathers = "_learn_each" in vars(cls)

    def __init__(self) -> None:
        self._classes = Classes()
        self._per_class: dict[str, GrowingRows[Any]] = {}
        self._width = 0
        self._counts = np.zeros(0, dtype=np.int64)
        self._means = np.zeros((0, 0))
        self._solution: Solution | None = None
        self._waiting: list[NDArray[np.float64]] = []  # single samples (1, F)
        self._waiting_places: list[int] = []
        self._waiting_room = 0  # for so many
        self._confidence = Confidence()

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        samples = int(self._counts.sum()) + len(self._waiting_places)
        what = f"{plural(len(self._classes), 'class')}, {plural(samples, 'sample')}"
        return f"<{type(self).__name__}({options}): {what}, {plural(self._width, 'feature')}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of first appearance; the columns of :meth:`scores`."""
        return self._classes.names

    @property
    def counts(self) -> NDArray[np.int64]:
        """Samples per class, int64 (C,), in the order of ``classes``."""
        self._catch_up()
        return np.array(self._counts)

    @property
    def prototypes(self) -> NDArray[np.float64]:
        """Class means, float64 (C, F), in the order of ``classes``."""
        self._catch_up()
        return np.array(self._means)

    @property
    def width(self) -> int | None:
        """The number of features F; None before the first update."""
        return self._width or None

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in :meth:`state`: what is kept between tasks."""
        per_class = sum(rows.nbytes for rows in self._per_class.values())
        return per_class + self._shared_nbytes() + self._confidence.nbytes

    def check(self, features: ArrayLike, labels: Sequence[str]) -> tuple[NDArray[np.float64], list[str]]:
        """Raise whatever :meth:`update` would raise, and change nothing.

        Args:
            features: (B, F), any real dtype.
            labels: B class names.

        Returns:
            A float64 copy of the features, and the names as plain ``str``.

        Raises:
            ValueError: As in :meth:`update`.
        """
        rows = self._rows(features)
        names = check_labels(labels)
        if len(names) != len(rows):
            raise ValueError(f"{len(names)} labels for {len(rows)} samples; give one label per sample")
        return rows, names

    def update(self, features: ArrayLike, labels: Sequence[str]) -> None:
        """Learn from labelled features, of old and new classes alike.

        Args:
            features: (B, F), any real dtype; computed with in float64.
            labels: B class names.

        Raises:
            ValueError: An empty batch, NaN or infinite features, another width than before,
                another number of labels than of rows, or a label that is no non-empty ``str``.
        """
        name = labels[0] if type(labels) is list and len(labels) == 1 else None
        if type(name) is str and name in self._classes:
            rows = self._rows(features)
            if len(rows) == 1:  # one sample of a known class: the same, without the detours
                self._learn_one(rows, self._classes.place(name))
                self._solution = None
                return
        rows, names = self.check(features, labels)
        self._set_width(rows.shape[1])
        known = len(self._classes)
        try:
            self._learn(rows, self._places(names))
        except BaseException:
            for name in reversed(self.classes[known:]):
                self._drop(name)
            raise

    def remove(self, label: str) -> None:
        """Forget a class: its name, count, mean and column go.

        Where :meth:`removes_exactly` says so, the head is then, but for rounding, one
        that has never seen the class. Otherwise statistics that all classes share cannot be taken apart
        again; what the class's samples said there stays, as each head defines ("pooled").

        Args:
            label: A known class.

        Raises:
            ValueError: No such class.
        """
        self._classes.place(label)
        self._catch_up()
        self._drop(label)

    def removes_exactly(self, label: str) -> bool:
        """Whether :meth:`remove` leaves nothing of this class behind.

        Args:
            label: A known class.

        Raises:
            ValueError: No such class.
        """
        self._classes.place(label)
        return False

    def to_removable(self) -> Self:
        """A copy of this head that removes exactly the classes that it will learn from now on.

        Classes known now go exactly only where they already do: what they have added to statistics
        that all share was not kept apart. What a class takes more is said by each head.

        Raises:
            ValueError: This kind of head cannot remove a class exactly.
        """
        raise ValueError(
            f"{type(self).__name__} cannot remove a class exactly; Prototypes and FeCAM always do, and LDA, "
            "EvidenceLDA and Ridge with removable=True"
        )

    def merge(self, other: Head) -> None:
        """Add, in place, everything another head has seen.

        Args:
            other: A head of the same kind, options and width; it stays as it is.

        Raises:
            ValueError: The heads do not fit together, or of this kind none do.
        """
        self._check_merge(other)
        if other.width is None:
            return
        other._catch_up()
        merged = copy.deepcopy(self)  # takes this head's place if all goes well
        merged._merge(other)
        self.__dict__.update(merged.__dict__)

    @property
    def confidence(self) -> Confidence:
        """The running figures of how sure this head may be; to be read, not changed."""
        return self._confidence

    def note(self, judgement: Judgement) -> None:
        """Add to the figures of :attr:`confidence` what :meth:`judge` gave."""
        self._confidence.note(judgement)

    def settle(self) -> None:
        """Finish what :meth:`update` put off, at a moment of the caller's choice.

        Updates gather rows and work them in together; when they do so shows in the last bits.
        After this, a head and one rebuilt from its :meth:`state` go on to the same bits.
        """
        self._catch_up()
        self._settle_shared()

    def state(self) -> HeadState:
        """A copy of all statistics; ``from_state`` brings the head back to the bit.

        Raises:
            ValueError: The class has no ``kind`` of its own.
        """
        kind = own_kind(type(self))
        self._catch_up()
        arrays = {"counts": self.counts, "means": self.prototypes, **self._shared_arrays()}
        figures = {FIGURES + name: array for name, array in self._confidence.arrays().items()}
        return HeadState(kind, self.classes, self.options, arrays | figures)

    @classmethod
    def from_state(cls, state: HeadState) -> Self:
        """Rebuild a head.

        Args:
            state: What :meth:`state` gave.

        Raises:
            ValueError: Another kind of head, or statistics that do not fit together.
        """
        if state.kind != own_kind(cls):
            raise ValueError(f"the state is of a head of kind {state.kind!r}, not {cls.kind!r}")
        head = make(state.kind, state.options)
        assert isinstance(head, cls)
        names = check_labels(state.classes) if state.classes else []
        if len(set(names)) != len(names):
            raise ValueError("the state names a class twice")
        given = {name: array for name, array in state.arrays.items() if not name.startswith(FIGURES)}
        figures = {
            name[len(FIGURES) :]: array for name, array in state.arrays.items() if name.startswith(FIGURES)
        }
        means = given.get("means", np.zeros(0))
        width = means.shape[1] if means.ndim == 2 else 0
        if names and not width:
            raise ValueError(f"the class means have shape {means.shape}; expected ({len(names)}, features)")
        shapes = {"counts": (len(names),), "means": (len(names), width)}
        # Checked before anything of that size is made.
        arrays = check_arrays(given, {**shapes, **head._shared_shapes(len(names), width)})
        if (arrays["counts"] < 1).any():
            raise ValueError("the state has a class without samples")
        head._set_width(width)
        head._take_names(Classes(names))
        head._counts, head._means = arrays["counts"], arrays["means"]
        head._restore_shared(arrays)
        head._confidence = Confidence.from_arrays(figures)
        return head

    @classmethod
    def read_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a state as the constructor takes them now; for heads that once had others."""
        return dict(options)

    def _rows(self, features: ArrayLike) -> NDArray[np.float64]:
        """A checked float64 copy of features."""
        rows = check_rows(features)
        width, known = rows.shape[1], self._width
        if width != known:
            if known:
                raise ValueError(f"features are {width} wide; this head has learned from width {known}")
            self._check_width(width)
        return rows

    def _set_width(self, width: int) -> None:
        if not self._width and width:
            self._check_width(width)
            self._means = np.zeros((0, width))
            self._start_shared(width)
            self._width = width

    def _places(self, names: list[str]) -> list[int]:
        """The place of each name; new names get new, empty rows."""
        places = self._classes.places(names)
        self._make_room()
        return places

    def _make_room(self) -> None:
        """Give every class a row."""
        new = len(self._classes) - len(self._per_class["_counts"])
        if new:
            for rows in self._per_class.values():
                rows.grow(new)
            self._grow_shared(new)

    def _take_names(self, classes: Classes) -> None:
        """Let this object own the order of the classes."""
        self._classes = classes

    def _drop(self, label: str) -> None:
        """Take out a class that is known, all samples having been worked in."""
        self._drop_rows(self._classes.place(label))
        self._classes.remove(label)

    def _drop_rows(self, place: int) -> None:
        """Take out what belongs to the class at this place, all but its name."""
        self._remove_shared(place)
        for rows in self._per_class.values():
            rows.remove(place)
        self._solution = None

    def _learn(self, rows: NDArray[np.float64], places: list[int]) -> None:
        """Learn checked rows (B, F) of the classes at these places."""
        if len(places) == 1:
            self._learn_one(rows, places[0])
        else:
            self._catch_up()
            codes = np.array(places, dtype=np.intp)
            found, counts, sums = group_sums(rows, codes)
            means = sums / counts[:, None]
            joined = self._join(found, counts, means)
            self._learn_shared(rows, means[np.searchsorted(found, codes)], codes, joined)
            self._keep(joined)
        self._solution = None

    def _learn_one(self, rows: NDArray[np.float64], place: int) -> None:
        """Learn one sample (1, F) of the class at this place, or let it wait."""
        if len(self._waiting) >= self._waiting_room:
            self._catch_up()
            self._waiting_room = self._room() if self._gathers else 0
        if self._waiting_room:
            self._waiting.append(rows)
            self._waiting_places.append(place)
            return
        count = int(self._counts[place])
        before = self._means[place][None].copy()
        gap = rows - before
        after = before + gap * (1 / (count + 1))
        gap *= math.sqrt(count / (count + 1))
        counts = np.array([count])
        where = np.array([place], dtype=np.intp)
        joined = Joined(where, counts, before, gap if count else gap[:0], counts + 1, after)
        self._learn_shared(rows, rows, where, joined)
        self._keep(joined)

    def _catch_up(self) -> None:
        """Work in single samples that wait; the bits do not depend on when this happens."""
        if self._waiting:
            rows, places = np.concatenate(self._waiting), self._waiting_places
            self._waiting, self._waiting_places = [], []
            self._learn_each(rows, places)
        self._waiting_room = 0

    def _join_each(
        self, rows: NDArray[np.float64], places: list[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Join samples into their classes, one after the other, to the bit as each alone.

        Returns each less the mean of its class's earlier samples, (B, F), and their number, (B,).
        """
        return join_each(self._counts, self._means, rows, places)

    def _join(
        self, places: NDArray[np.intp], counts: NDArray[np.int64], means: NDArray[np.float64]
    ) -> Joined:
        """What comes of joining groups of samples into the classes at these places, no place twice."""
        return join(places, self._counts[places], self._means[places], counts, means)

    def _keep(self, joined: Joined) -> None:
        """Take over counts and means of what was joined."""
        self._counts[joined.places] = joined.counts_after
        self._means[joined.places] = joined.means_after

    def _check_merge(self, other: Head) -> None:
        """Raise a ValueError if the other head cannot be merged into this one."""
        if type(other) is not type(self) or other.options != self.options:
            raise ValueError(
                f"cannot merge {describe(other)} into {describe(self)}; both need the same kind and options"
            )
        if self.width is not None and other.width not in (None, self.width):
            raise ValueError(f"cannot merge a head of {other.width} features into one of {self.width}")

    def _merge(self, other: Head) -> None:
        """Add what a head that fits has seen, all its samples having been worked in."""
        self._set_width(other._width)
        self._catch_up()
        places = np.array(self._places(list(other.classes)), dtype=np.intp)
        joined = self._join(places, other._counts, other._means)
        self._merge_shared(other, joined)
        self._keep(joined)
        self._confidence.merge(other._confidence)
        self._solution = None

    # What a head whose classes share more than counts and means overrides.

    def _check_width(self, width: int) -> None:  # noqa: B027 - nothing to check is a good default
        """Raise a ValueError if the options do not go with this width."""

    def _start_shared(self, width: int) -> None:  # noqa: B027
        """Make room, once the width is known."""

    def _grow_shared(self, new: int) -> None:  # noqa: B027
        """Make room for new classes in what is no `PerClass`."""

    def _room(self) -> int:
        """How many single samples may wait from now on, at least 1."""
        return WAITING_ROWS

    def _learn_each(self, rows: NDArray[np.float64], places: list[int]) -> None:
        """Learn rows (B, F) of the classes at these places one after the other, to the bit."""
        self._join_each(rows, places)

    def _learn_shared(  # noqa: B027
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        """Learn from rows (B, F), given for each the mean and place of its class in this batch.

        Counts and means of the classes do not hold the rows yet, so that nothing has happened if
        this raises before it assigns.
        """

    def _merge_shared(self, other: Any, joined: Joined) -> None:  # noqa: B027
        """Add the other head's shared statistics; counts and means of the classes come later."""

    def _settle_shared(self) -> None:  # noqa: B027
        """Work in what waits."""

    def _remove_shared(self, place: int) -> None:  # noqa: B027
        """Drop what belongs to one class in what is no `PerClass`, whose rows go after this."""

    def _shared_nbytes(self) -> int:
        return 0

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return {}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:  # noqa: B027
        """Take over checked arrays from a state."""


def describe(head: ClassStatistics) -> str:
    """The head as it was constructed, for messages."""
    return f"{type(head).__name__}({', '.join(f'{name}={value!r}' for name, value in head.options.items())})"
