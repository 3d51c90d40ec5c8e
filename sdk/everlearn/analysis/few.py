"""What a learner's head makes of new classes after k images of each: accuracy over k."""

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everlearn.data import as_images
from everlearn.learner import Learner

STEPS = (1, 2, 5, 10, 20)
"""Images of each new class that are tried, as far as there are so many."""


@dataclass(frozen=True)
class FewImages:
    """Accuracy over the number of images that new classes are learned from; shares in [0, 1].

    Attributes:
        images: k of each new class, (K,).
        taken: the new classes: those of the last task, or with one task the later half of its classes.
        left: number of the other classes, which the head knows as the run has learned them.
        new: on test images of the new classes, among all classes, (draws, K).
        old: on those of the others, (draws, K).
    """

    images: tuple[int, ...]
    taken: tuple[str, ...]
    left: int
    new: NDArray[np.float64]
    old: NDArray[np.float64]

    @property
    def harmonic(self) -> NDArray[np.float64]:
        """Harmonic mean of both, (draws, K)."""
        return 2 * self.new * self.old / np.maximum(self.new + self.old, 1e-12)

    @property
    def sentence(self) -> str:
        """What it comes to."""
        few, more = (100 * self.harmonic.mean(axis=0))[[0, -1]]
        one, many = (100 * self.new.mean(axis=0))[[0, -1]]
        count = len(self.taken)
        return (
            f"{count} {'class' if count == 1 else 'classes'} learned anew beside {self.left} others: from "
            f"{_images(self.images[0])} each, {one:.0f} % of their test images are named right, from "
            f"{_images(self.images[-1])} {many:.0f} %; the harmonic mean with the other classes goes from "
            f"{few:.0f} to {more:.0f} %."
        )


def over_images(
    learner: Learner,
    train: object,
    test: object,
    *,
    features: NDArray[np.float32] | None = None,
    draws: int = 3,
    seed: int = 0,
) -> FewImages | None:
    """Take the newest classes out of a copy of the head, and learn them again from few images.

    The learner stays as it is. Adapters stay as the run has trained them, and so do statistics that all
    classes share where a head cannot take a class out of them (`Head.removes_exactly`); both flatter.

    Args:
        learner: with classes.
        train: labelled images to draw from; as many of each class as the largest k in `STEPS` with enough of
            all new classes, and as many again where there are.
        test: labelled images that nothing was learned from; those of unknown classes are left out.
        features: of the test images, (N, F), where they have been computed: all of them, in their order.
        draws: of the images, at least 1.
        seed: of the draws.

    Returns:
        None with fewer than two classes beside the new ones, or no image of some to learn or test by.
    """
    shots, tested = as_images(train), as_images(test)
    taken = _newest(learner)
    left = [name for name in learner.classes if name not in taken]
    own = np.array([name in learner.classes for name in tested.labels])
    labels = np.array(tested.labels)[own]
    is_new = np.isin(labels, taken)
    places = {name: np.flatnonzero(np.array(shots.labels) == name) for name in taken}
    most = min((len(some) for some in places.values()), default=0)
    steps = tuple(step for step in STEPS if step <= most)
    if len(left) < 2 or not steps or is_new.all() or not is_new.any():
        return None
    rng = np.random.default_rng(seed)
    pool = {name: rng.permutation(some)[: 2 * steps[-1]] for name, some in places.items()}
    rows = {name: learner.features(shots.subset(sorted(some.tolist()))) for name, some in pool.items()}
    found = (learner.features(tested) if features is None else features)[own]
    bare = copy.deepcopy(learner.head)
    for name in taken:
        bare.remove(name)
    new, old = np.zeros((draws, len(steps))), np.zeros((draws, len(steps)))
    for draw in range(draws):
        order = {name: rng.permutation(len(some)) for name, some in rows.items()}
        for column, step in enumerate(steps):
            head = copy.deepcopy(bare)
            head.update(
                np.concatenate([some[order[name][:step]] for name, some in rows.items()]),
                [name for name in rows for _ in range(step)],
            )
            right = np.array(head.predict(found)) == labels
            new[draw, column], old[draw, column] = right[is_new].mean(), right[~is_new].mean()
    return FewImages(steps, taken, len(left), new, old)


def _newest(learner: Learner) -> tuple[str, ...]:
    known = set(learner.classes)
    last = tuple(name for name in learner.tasks[-1] if name in known) if learner.tasks else ()
    if len(known) - len(last) >= 2:
        return last
    return tuple(learner.classes[(len(known) + 1) // 2 :])


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
