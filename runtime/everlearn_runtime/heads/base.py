"""What every head is: statistics that add, and scores that follow from them in closed form."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.arrays import all_finite
from everlearn_runtime.heads.checks import check_arrays, check_labels, check_rows
from everlearn_runtime.heads.classes import Classes
from everlearn_runtime.heads.confidence import Confidence, Judgement, Look, Opinion, look_at, probabilities
from everlearn_runtime.heads.drift import Drift, affine_drift
from everlearn_runtime.heads.growing import GrowingRows, PerClass
from everlearn_runtime.heads.registry import HeadState, from_state, make, own_kind, register
from everlearn_runtime.heads.sums import Joined, group_sums, join, join_each, squared_distances
from everlearn_runtime.products import product
from everlearn_runtime.words import plural

if TYPE_CHECKING:
    from typing_extensions import Self


# So many single samples wait to be learned together.
WAITING_ROWS = 256

# Features of the same images before (B, F) and after (B, G).
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]

# Weights (M, C), bias (C,), and the factor that scores still lack; good until the next update.
Solution = tuple[NDArray[np.float64], NDArray[np.float64], float]

FIGURES = "confidence."  # before the names of the arrays of `Confidence` in a state


class Head(ABC):
    """Class statistics on features, learned exactly and in any order.

    Every head keeps the number of samples and the mean feature of each class (means rather than
    sums: Chan's update of a mean is the one that also gives exact scatter). A batch update, the
    same samples one by one, in another order, or spread over two heads that are merged give the
    same statistics up to rounding, in every head that is ``exact``. A call that raises leaves the
    head as it was.

    A head does not lock: callers that share one between threads hold a lock of their own.

    A head of one's own is a subclass with a ``kind`` of its own, ``options`` and :meth:`_solve` or
    :meth:`_score`; what it keeps beside counts and means it works on in the hooks at the end. By
    being defined it is known to :func:`from_state`, and so to bundles, states and `Aggregate`, in
    every process that has imported it.

    Attributes:
        kind: its name in a :class:`HeadState`, of this class alone.
        exact: updates are sums: independent of the order and of the cut into batches, and
            mergeable. A head that cannot promise that says False, and its docstring why.
        carries: :meth:`carry` moves all that it scores by. A head whose weights were trained says False.
        usual_temperature: T of softmax(scores / T) for as long as too few images were judged: what others
            came to on the bundled backbone's features.
    """

    kind: ClassVar[str]
    exact: ClassVar[bool] = True
    carries: ClassVar[bool] = True
    usual_temperature: ClassVar[float] = 1.0

    # Whether single samples wait, to be learned together: where `_learn_each` says the same as
    # `_learn_shared`, so not in a subclass that learns in another way and has no `_learn_each`.
    _gathers: ClassVar[bool] = True
    _counts = PerClass[np.int64]()
    _means = PerClass[np.float64]()

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kind" in vars(cls):
            register(cls)
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
        rows, names = self.check(features, labels)
        self._set_width(rows.shape[1])
        if len(names) == 1 and names[0] in self._classes:  # the same, without the detours
            self._learn_one(rows, self._classes.place(names[0]))
            self._solution = None
            return
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

    def carry(self, before: ArrayLike, after: ArrayLike) -> None:
        """Move all statistics along when the features themselves have changed.

        Training changes what the features of old images would be, but the images are gone. So
        the change is fitted on images that are at hand, as an affine map of what the statistics
        are sums of (:func:`~everlearn_runtime.heads.drift.affine_drift`), and applied to the sums.
        Scatters also gain what the map leaves over. Where the change is affine the result is exact,
        given more images than features by two, and where there was none it is the same to the bit.
        With fewer images, features move as far as these can tell; one image alone moves nothing.
        What was judged goes: it does not say how sure the head is of the new features.

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
        self._confidence = Confidence()

    @property
    def movable(self) -> bool:
        """Whether :meth:`moved` works: all that is kept are sums of the features themselves and of their
        products."""
        return False

    @property
    def expands(self) -> bool:
        """Whether what is kept are sums of more features, made of those that are given: then :meth:`moved`
        takes images of which to learn how these move."""
        return False

    def check_movable(self) -> None:
        """Raise a ValueError if the head is not ``movable``."""
        if not self.movable:
            raise ValueError(
                f"{describe(self)} keeps more than sums of features, which no map of the features can move; "
                "Prototypes, LDA, WhitenedCosine, BalancedRidge and Ridge can be moved"
            )

    @property
    def splits(self) -> bool:
        """Whether :meth:`since` works: all that is kept are sums over samples."""
        return self.movable

    def check_splits(self) -> None:
        """Raise a ValueError if the head does not split."""
        if not self.splits:
            raise ValueError(
                f"{describe(self)} keeps more than sums of features, from which those of earlier samples "
                "could be taken out; Prototypes, LDA, WhitenedCosine, BalancedRidge and Ridge are such sums"
            )

    def kept(self, earlier: Head, forgotten: Collection[str] = ()) -> tuple[str, ...]:
        """Classes of an earlier form of this head that were not removed since.

        A class that was removed and came back counts as removed, which is seen from its place, its
        samples and its mean; from none of these, if it was the last and now has more samples. Who knows
        which classes were removed meanwhile, says so: ``forgotten``.
        """
        found: list[str] = []
        start = 0
        for place, name in enumerate(self.classes):
            if name in forgotten or name not in earlier.classes[start:]:
                break
            before = earlier.classes.index(name)
            more = int(self.counts[place] - earlier.counts[before])
            same = np.array_equal(self._means[place], earlier._means[before])
            if more < 0 or (more == 0 and not same):
                break
            found.append(name)
            start = before + 1
        return tuple(found)

    def since(self, earlier: Head, forgotten: Collection[str] = ()) -> Head:
        """What this head has learned since it was an earlier one, whose samples it has all seen.

        Merged into the earlier one, less what :meth:`kept` does not name, it gives this one, but for
        what was judged.

        Args:
            earlier: It; left as it is.
            forgotten: As :meth:`kept`.

        Raises:
            ValueError: The head does not split, or the earlier one is of another kind or width.
        """
        self.check_splits()
        self._check_merge(earlier)
        if self.width is None or earlier.width is None:
            same = copy.deepcopy(self)
            same._confidence = Confidence()
            return same
        self._catch_up()
        earlier._catch_up()
        kept = self.kept(earlier, forgotten)
        counts, means = np.zeros(len(self._counts), dtype=np.int64), np.zeros_like(self._means)
        for place, name in enumerate(kept):  # which are the first, in the same order
            before = earlier._classes.place(name)
            counts[place], means[place] = earlier._counts[before], earlier._means[before]
        more = self._counts - counts
        new = np.flatnonzero(more)
        sums = self._counts[:, None] * self._means - counts[:, None] * means
        head = make(self.kind, self.options)
        head._set_width(self._width)
        head._take_names(Classes(self.classes[place] for place in new))
        head._counts, head._means = more[new], sums[new] / more[new, None]
        head._since_shared(self, earlier, join(new, counts[new], means[new], more[new], head._means))
        return head

    def moved(self, drift: Drift, like: Head, images: Pair | None = None) -> Head:
        """What this head knows, in the features of another model, but for what was judged.

        Args:
            drift: Maps this head's features to the other model's.
            like: A head of the same kind, whose options the new one has.
            images: Features of some images by both models, (B, F) and (B, G): for a head that ``expands``.

        Raises:
            ValueError: The head is not ``movable``, or the map or the other head does not go with it.
        """
        self.check_movable()
        if like.kind != self.kind:
            raise ValueError(f"what a {self.kind} head keeps does not go into a {like.kind} head")
        if like.expands != self.expands:
            raise ValueError(
                f"what {describe(self)} keeps does not go into {describe(like)}; both need random features, "
                "or neither"
            )
        if self.expands and images is None:
            raise ValueError(
                f"how the random features of {describe(self)} move takes some images' features by both models"
            )
        if self.width not in (None, len(drift.linear)):
            raise ValueError(f"the map is of {len(drift.linear)} features, the head of {self.width}")
        moving = copy.deepcopy(self)
        if moving._width:
            moving._catch_up()
            if images is not None and self.expands:
                moving._move_expanded(drift, like, images)
            else:
                moving._means = drift.move(moving._means)
                moving._move_shared(drift)
        moving._confidence = Confidence()
        state = moving.state()
        return from_state(HeadState(state.kind, state.classes, like.options, state.arrays))

    def scores(self, features: ArrayLike) -> NDArray[np.float64]:
        """Score every class; the largest is the prediction.

        Args:
            features: (B, F), any real dtype.

        Returns:
            float64 (B, C), columns in the order of ``classes``.

        Raises:
            ValueError: The head knows no class, the features are not as in :meth:`update`, or its
                statistics contradict each other so that a score would not be finite.
        """
        return self._answer(features, self._score, "scores")

    def distances(self, features: ArrayLike) -> NDArray[np.float64]:
        """How far each row lies from each class: what tells the known from the unknown.

        Unlike a score, a distance compares a row with a class without a look at the other classes. It
        does not grow with the number of samples. Heads with a within-class scatter give the squared
        Mahalanobis distance to the class's mean, under the shrunk covariance that they score with,
        which lies about F for a row of the class; `FeCAM` under the class's own correlations. For all
        others it is the squared Euclidean distance to the class's mean.

        Args:
            features: (B, F), any real dtype.

        Returns:
            float64 (B, C), at least 0, columns in the order of ``classes``.

        Raises:
            ValueError: As in :meth:`scores`.
        """
        return self._answer(features, self._distances, "distances")

    def _answer(
        self,
        features: ArrayLike,
        answer: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        what: str,
    ) -> NDArray[np.float64]:
        """What is asked of checked rows, all samples having been worked in."""
        if not self._classes:
            raise ValueError("this head knows no class yet; update it with labelled features first")
        rows = self._rows(features)
        self._catch_up()
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = answer(rows)
        if not all_finite(found):
            raise ValueError(f"the head's statistics give {what} that are not finite; restore an older state")
        return found

    def predict(self, features: ArrayLike) -> list[str]:
        """The best class of each row of features (B, F); raises like :meth:`scores`."""
        names = self.classes
        return [names[column] for column in self._answer(features, self._rank, "scores").argmax(axis=1)]

    @property
    def confidence(self) -> Confidence:
        """The running figures of how sure this head may be; to be read, not changed."""
        return self._confidence

    @property
    def temperature(self) -> float:
        """T of softmax(scores / T): the judged images' own once they are enough, before the usual one."""
        return self._confidence.temperature if self._confidence.calibrated else self.usual_temperature

    def probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities (B, C) of scores (B, C) that this head gave, of images of classes that it knows.

        They are calibrated as far as `Confidence.calibrated` says so.
        """
        return probabilities(scores, self.temperature)

    def look(self, features: ArrayLike) -> Look:
        """How rows lie to the classes: how strange and how remote each is.

        Args:
            features: (B, F), any real dtype.

        Raises:
            ValueError: As in :meth:`scores`.
        """
        distances = self.distances(features)
        return look_at(distances, squared_distances(self._rows(features), self._means))

    def strangeness(self, features: ArrayLike) -> NDArray[np.float64]:
        """How little each row (B, F) is like any class, (B,), at least 0; raises like :meth:`scores`.

        Rows of known classes mostly give less than others, see
        :func:`~everlearn_runtime.heads.confidence.strangeness`.
        """
        return self.look(features).strangeness

    def opinion(self, features: ArrayLike, labels: Sequence[str]) -> Opinion:
        """What this head, as it is, thinks of labelled rows, before it learns them; nothing changes.

        Args:
            features: (B, F), any real dtype, which the head has not learned from.
            labels: B class names; rows of a class that is not known yet are left out.

        Raises:
            ValueError: As in :meth:`update`, or as in :meth:`scores` once a class is known.
        """
        rows, names = self.check(features, labels)
        known = np.array([index for index, name in enumerate(names) if name in self._classes], dtype=np.intp)
        truth = np.array([self._classes.place(names[index]) for index in known], dtype=np.intp)
        if not len(known):
            return Opinion(known, truth, np.zeros((0, len(self._classes))), Look(np.zeros(0), np.zeros(0)))
        return Opinion(known, truth, self.scores(rows[known]), self.look(rows[known]))

    def judge(self, features: ArrayLike, labels: Sequence[str]) -> Judgement | None:
        """The :meth:`opinion` of labelled rows as what :meth:`note` takes; None if no class is known."""
        return self.opinion(features, labels).judgement

    def calibrate(self, features: ArrayLike, labels: Sequence[str]) -> None:
        """Judge held-out rows, in place of whatever was judged before.

        Args:
            features: (B, F), any real dtype, which the head has not learned from.
            labels: B class names; rows of a class that is not known are left out.

        Raises:
            ValueError: As in :meth:`update`, or no class is known.
        """
        judgement = self.judge(features, labels)
        if judgement is None:
            raise ValueError(
                f"none of {len(labels)} rows to calibrate by is of a class that this head knows, of "
                f"{', '.join(map(repr, self.classes[:5])) or 'classes that it has learned'}"
            )
        self._confidence = Confidence()
        self.note(judgement)

    @property
    def answers_soon(self) -> bool:
        """Whether scores cost little now; after an update some heads solve at length before they answer."""
        return True

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

    def _score(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (B, C) of checked features (B, F); a head whose scores are not linear overrides this."""
        if self._solution is None:
            self._solution = self._solve()
        weights, bias, factor = self._solution
        scores: NDArray[np.float64] = product(self._map(rows), weights)
        scores += bias
        scores *= factor
        return scores

    def _rank(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores (B, C), each row perhaps times a positive number, where that costs less."""
        return self._score(rows)

    def _distances(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distances (B, C) of checked features (B, F)."""
        return squared_distances(rows, self._means)

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

    def _carry_shared(  # noqa: B027
        self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift
    ) -> None:
        """Move along, given the same images' features (B, F) before and after, and their drift."""

    def _since_shared(self, now: Any, earlier: Any, joined: Joined) -> None:  # noqa: B027
        """Take over what one head has more than an earlier one, of a head that ``splits``.

        ``joined`` says how the samples of this head's classes, set already, met those before them.
        """

    def _move_expanded(self, drift: Drift, like: Any, images: Pair) -> None:  # noqa: B027
        """Move all along to another model, see :meth:`moved`; of a head that ``expands``."""

    def _move_shared(self, drift: Drift) -> None:  # noqa: B027
        """Move along by a map that is known, the class means having moved; if ``movable``."""

    def _drift(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> Drift:
        """How the features of some images (B, F) have moved."""
        return affine_drift(before, after)

    def _move(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift) -> None:
        self._catch_up()
        self._means = drift.move(self._means)
        self._carry_shared(before, after, drift)
        self._solution = None

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


def describe(head: Head) -> str:
    """The head as it was constructed, for messages."""
    return f"{type(head).__name__}({', '.join(f'{name}={value!r}' for name, value in head.options.items())})"
