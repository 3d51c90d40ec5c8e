"""What a head knows, in features that have changed; and what of it is new since an earlier time."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.heads.classes import Classes
from everlearn_runtime.heads.confidence import Confidence
from everlearn_runtime.heads.drift import Drift, affine_drift
from everlearn_runtime.heads.registry import HeadState, from_state, make
from everlearn_runtime.heads.statistics import ClassStatistics, describe
from everlearn_runtime.heads.sums import Joined, join

if TYPE_CHECKING:
    from everlearn_runtime.heads.base import Head

# Features of the same images before (B, F) and after (B, G).
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


class Transferable(ClassStatistics):
    """Statistics that follow the features, go over to another model, and split by time: see `Head`."""

    carries: ClassVar[bool] = True

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
            same = from_state(self.state())
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

    # What a head whose classes share more than counts and means overrides.

    def _drift(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> Drift:
        """How the features of some images (B, F) have moved."""
        return affine_drift(before, after)

    def _move(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift) -> None:
        self._catch_up()
        self._means = drift.move(self._means)
        self._carry_shared(before, after, drift)
        self._solution = None

    def _carry_shared(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift) -> None:
        """Move along, given the same images' features (B, F) before and after, and their drift."""

    def _move_expanded(self, drift: Drift, like: Any, images: Pair) -> None:
        """Move all along to another model, see :meth:`moved`; of a head that ``expands``."""

    def _move_shared(self, drift: Drift) -> None:
        """Move along by a map that is known, the class means having moved; if ``movable``."""

    def _since_shared(self, now: Any, earlier: Any, joined: Joined) -> None:
        """Take over what one head has more than an earlier one, of a head that ``splits``.

        ``joined`` says how the samples of this head's classes, set already, met those before them.
        """
