"""What every head is: statistics that add, and scores that follow from them in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.heads.checks import check_arrays, check_labels, check_rows
from everlearn_runtime.heads.drift import Drift, affine_drift

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class HeadState:
    """All that a head knows, as plain data.

    Args:
        kind: Which head this is: ``Head.kind``.
        classes: Names in the order of first appearance.
        options: The constructor's arguments, as JSON.
        arrays: Named numpy arrays; ``counts`` int64 (C,), ``means`` float64 (C, F), and the
            head's own.
    """

    kind: str
    classes: tuple[str, ...]
    options: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


# Weights (M, C), bias (C,), and the factor that scores still lack; good until the next update.
Solution = tuple[NDArray[np.float64], NDArray[np.float64], float]


class Joined(NamedTuple):
    """What joining groups of samples into classes did.

    Attributes:
        places: of the classes (k,).
        counts: of their samples before (k,).
        means: theirs before (k, F).
        between: rows (at most k, F), one for each class that had samples, whose outer products
            are what the within-class scatter gains by the joining: n1 n2 / (n1 + n2) of the outer
            product of the difference of means (Chan, Golub and LeVeque 1983, eq. 2.1).
    """

    places: NDArray[np.intp]
    counts: NDArray[np.int64]
    means: NDArray[np.float64]
    between: NDArray[np.float64]


class Head(ABC):
    """Class statistics on features, learned exactly and in any order.

    Every head keeps the number of samples and the mean feature of each class (means rather than
    sums: Chan's update of a mean is the one that also gives exact scatter). A batch update, the
    same samples one by one, in another order, or spread over two heads that are merged give the
    same statistics up to rounding, in every head that is ``exact``. A call that raises leaves the
    head as it was.

    A head does not lock: callers that share one between threads hold a lock of their own.

    Attributes:
        kind: its name in a :class:`HeadState`.
        exact: updates are sums: independent of the order and of the cut into batches, and
            mergeable. A head that cannot promise that says False, and its docstring why.
    """

    kind: ClassVar[str]
    exact: ClassVar[bool] = True

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._counts = np.zeros(0, dtype=np.int64)
        self._means = np.zeros((0, 0))
        self._solution: Solution | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of first appearance; the columns of :meth:`scores`."""
        return tuple(self._index)

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
        return self._means.shape[1] or None

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in :meth:`state`: what is kept between tasks."""
        return self._counts.nbytes + self._means.nbytes + self._shared_nbytes()

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
        rows, names = self.check(features, labels)
        self._set_width(rows.shape[1])
        if len(rows) == 1:  # the same, without the detours
            place = self._index.get(names[0])
            self._learn_one(rows, self._places(names)[0] if place is None else place)
        else:
            self._catch_up()
            codes = np.array(self._places(names), dtype=np.intp)
            places, counts, sums = group_sums(rows, codes)
            means = sums / counts[:, None]
            joined = self._combine(places, counts, means)
            self._learn_shared(rows, means[np.searchsorted(places, codes)], codes, joined)
        self._solution = None

    def remove(self, label: str) -> None:
        """Forget a class: its name, count, mean and column go.

        Statistics that all classes share cannot be taken apart again; what the class's samples
        said there stays, as each head defines.

        Args:
            label: A known class.

        Raises:
            ValueError: No such class.
        """
        if label not in self._index:
            known = ", ".join(map(repr, self._index)) or "none"
            raise ValueError(f"no class {label!r} to remove; known classes: {known}")
        self._catch_up()
        place = self._index[label]
        names = [name for name in self._index if name != label]
        self._index = {name: number for number, name in enumerate(names)}
        self._counts = np.delete(self._counts, place)
        self._means = np.delete(self._means, place, axis=0)
        self._remove_shared(place)
        self._solution = None

    def merge(self, other: Head) -> None:
        """Add, in place, everything another head has seen.

        Args:
            other: A head of the same kind, options and width; it stays as it is.

        Raises:
            ValueError: The heads do not fit together.
        """
        if type(other) is not type(self) or other.options != self.options:
            raise ValueError(
                f"cannot merge {describe(other)} into {describe(self)}; both need the same kind and options"
            )
        if other.width is None:
            return
        if self.width is not None and other.width != self.width:
            raise ValueError(f"cannot merge a head of {other.width} features into one of {self.width}")
        self._set_width(other.width)
        self._catch_up()
        other._catch_up()
        places = np.array(self._places(list(other._index)), dtype=np.intp)
        self._merge_shared(other, self._combine(places, other._counts, other._means))
        self._solution = None

    def carry(self, before: ArrayLike, after: ArrayLike) -> None:
        """Move all statistics along when the features themselves have changed.

        Training changes what the features of old images would be, but the images are gone. So
        the change is fitted on images that are at hand, as an affine map of what the statistics
        are sums of (:func:`~everlearn_runtime.heads.drift.affine_drift`), and applied to the sums.
        Scatters also gain what the map leaves over. Where the change is affine the result is exact,
        given more images than features by two, and where there was none it is the same to the bit.
        With fewer images, features move as far as these can tell; one image alone moves nothing.

        Args:
            before: features (B, F) of some images as they were when this head learned.
            after: features (B, F) of the same images now.

        Raises:
            ValueError: the two differ in shape, or are not as in :meth:`update`.
        """
        old, new = self._rows(before), self._rows(after)
        if old.shape != new.shape:
            raise ValueError(
                f"features of shape {old.shape} before and {new.shape} after; give those of the same images"
            )
        if self.width is None or np.array_equal(old, new):
            return
        self._move(old, new, self._drift(old, new))

    def scores(self, features: ArrayLike) -> NDArray[np.float64]:
        """Score every class; the largest is the prediction.

        Args:
            features: (B, F), any real dtype.

        Returns:
            float64 (B, C), columns in the order of ``classes``.

        Raises:
            ValueError: The head knows no class, or the features are not as in :meth:`update`.
        """
        if not self._index:
            raise ValueError("this head knows no class yet; update it with labelled features first")
        rows = self._rows(features)
        self._catch_up()
        return self._score(rows)

    def predict(self, features: ArrayLike) -> list[str]:
        """The best class of each row of features (B, F); raises like :meth:`scores`."""
        names = self.classes
        return [names[column] for column in self.scores(features).argmax(axis=1)]

    def settle(self) -> None:
        """Finish what :meth:`update` put off, at a moment of the caller's choice.

        Updates gather rows and work them in together; when they do so shows in the last bits.
        After this, a head and one rebuilt from its :meth:`state` go on to the same bits.
        """
        self._catch_up()
        self._settle_shared()

    def state(self) -> HeadState:
        """A copy of all statistics; ``from_state`` brings the head back to the bit."""
        self._catch_up()
        arrays = {"counts": self.counts, "means": self.prototypes, **self._shared_arrays()}
        return HeadState(self.kind, self.classes, self.options, arrays)

    @classmethod
    def from_state(cls, state: HeadState) -> Self:
        """Rebuild a head.

        Args:
            state: What :meth:`state` gave.

        Raises:
            ValueError: Another kind of head, or statistics that do not fit together.
        """
        if state.kind != cls.kind:
            raise ValueError(f"the state is of a head of kind {state.kind!r}, not {cls.kind!r}")
        try:
            head = cls(**state.options)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"wrong options for a {cls.kind} head: {error}") from None
        names = check_labels(state.classes) if state.classes else []
        if len(set(names)) != len(names):
            raise ValueError("the state names a class twice")
        means = state.arrays.get("means", np.zeros(0))
        width = means.shape[1] if means.ndim == 2 else 0
        if names and not width:
            raise ValueError(f"the class means have shape {means.shape}; expected ({len(names)}, features)")
        shapes = {"counts": (len(names),), "means": (len(names), width)}
        # Checked before anything of that size is made.
        arrays = check_arrays(state.arrays, {**shapes, **head._shared_shapes(len(names), width)})
        if (arrays["counts"] < 1).any():
            raise ValueError("the state has a class without samples")
        head._set_width(width)
        head._index = {name: place for place, name in enumerate(names)}
        head._counts, head._means = arrays["counts"], arrays["means"]
        head._restore_shared(arrays)
        return head

    def _rows(self, features: ArrayLike) -> NDArray[np.float64]:
        """A checked float64 copy of features."""
        rows = check_rows(features)
        width, known = rows.shape[1], self._means.shape[1]
        if width != known:
            if known:
                raise ValueError(f"features are {width} wide; this head has learned from width {known}")
            self._check_width(width)
        return rows

    def _set_width(self, width: int) -> None:
        if self.width is None and width:
            self._check_width(width)
            self._means = np.zeros((0, width))
            self._start_shared(width)

    def _places(self, names: list[str]) -> list[int]:
        """The column of each name; new names get new, empty columns."""
        places = [self._index.setdefault(name, len(self._index)) for name in names]
        new = len(self._index) - len(self._counts)
        if new:
            self._counts = np.concatenate([self._counts, np.zeros(new, dtype=np.int64)])
            self._means = np.concatenate([self._means, np.zeros((new, self._means.shape[1]))])
            self._grow_shared(new)
        return places

    def _combine(
        self, places: NDArray[np.intp], counts: NDArray[np.int64], means: NDArray[np.float64]
    ) -> Joined:
        """Join groups of samples into the classes at these places, no place twice."""
        before, old_means = self._counts[places], self._means[places]
        gap = means - old_means
        share = counts / (before + counts)
        self._means[places] = old_means + share[:, None] * gap
        self._counts[places] = before + counts
        scaled = np.sqrt(before * share)[:, None] * gap
        return Joined(places, before, old_means, scaled if before.all() else scaled[before > 0])

    def _learn_one(self, rows: NDArray[np.float64], place: int) -> None:
        """Learn one sample (1, F) of the class at this place."""
        count = int(self._counts[place])
        mean = self._means[place]
        before = mean[None].copy()
        gap = rows - before
        mean += gap[0] * (1 / (count + 1))
        self._counts[place] = count + 1
        gap *= math.sqrt(count / (count + 1))
        places = np.array([place], dtype=np.intp)
        joined = Joined(places, np.array([count]), before, gap if count else gap[:0])
        self._learn_shared(rows, rows, places, joined)

    def _score(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (B, C) of checked features (B, F); a head whose scores are not linear overrides this."""
        if self._solution is None:
            self._solution = self._solve()
        weights, bias, factor = self._solution
        scores: NDArray[np.float64] = (self._map(rows) @ weights + bias) * factor
        return scores

    def _solve(self) -> Solution:
        """Weights (M, C), bias (C,) and a factor, from the statistics alone."""
        raise NotImplementedError

    def _map(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Features (B, F) to what the weights multiply (B, M)."""
        return rows

    # Statistics that the classes share; a head that has some overrides these.

    def _check_width(self, width: int) -> None:  # noqa: B027 - nothing to check is a good default
        """Raise a ValueError if the options do not go with this width."""

    def _start_shared(self, width: int) -> None:  # noqa: B027
        """Make room, once the width is known."""

    def _grow_shared(self, new: int) -> None:  # noqa: B027
        """Make room for new classes."""

    def _learn_shared(  # noqa: B027
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        """Learn from rows (B, F), given for each the mean and place of its class in this batch."""

    def _merge_shared(self, other: Any, joined: Joined) -> None:  # noqa: B027
        """Add the other head's shared statistics."""

    def _carry_shared(  # noqa: B027
        self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift
    ) -> None:
        """Move along, given the same images' features (B, F) before and after, and their drift."""

    def _drift(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> Drift:
        """How the features of some images (B, F) have moved."""
        return affine_drift(before, after)

    def _move(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift) -> None:
        self._catch_up()
        self._means = drift.move(self._means)
        self._carry_shared(before, after, drift)
        self._solution = None

    def _catch_up(self) -> None:  # noqa: B027
        """Work in single samples that wait; the bits must not depend on when this happens."""

    def _settle_shared(self) -> None:  # noqa: B027
        """Work in what waits."""

    def _remove_shared(self, place: int) -> None:  # noqa: B027
        """Drop what belongs to one class."""

    def _shared_nbytes(self) -> int:
        return 0

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return {}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:  # noqa: B027
        """Take over checked arrays from a state."""


def unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (B, F) brought to length one; a row of zeros stays."""
    # Scaled first, so that squaring neither overflows nor vanishes.
    scaled = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: NDArray[np.float64] = scaled / np.where(norm == 0, 1.0, norm)
    return unit


def group_sums(
    rows: NDArray[np.float64], places: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.float64]]:
    """Sum the rows (B, F) of each group.

    Returns the places that occur, ascending (k,), how often (k,), and the sums (k, F).
    """
    order = np.argsort(places, kind="stable")
    found, starts, counts = np.unique(places[order], return_index=True, return_counts=True)
    return found, counts, np.add.reduceat(rows[order], starts, axis=0)


def describe(head: Head) -> str:
    """The head as it was constructed, for messages."""
    return f"{type(head).__name__}({', '.join(f'{name}={value!r}' for name, value in head.options.items())})"
