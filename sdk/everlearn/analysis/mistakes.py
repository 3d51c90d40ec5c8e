"""What is mistaken for what, with pictures of both."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from everlearn.data import as_images
from everlearn.learner import Learner

SIDE = 96
"""Pixels of a picture's longer side."""


@dataclass(frozen=True)
class Mistake:
    """Test images of one class that were taken for another.

    Attributes:
        actual: their class.
        predicted: the class that they were taken for.
        count: how many.
        of: how many test images the class has.
        mistaken: pictures of some of them, at most `SIDE` pixels a side, the surest answers first.
        alike: test images of the other class, for each of them the most similar one.
    """

    actual: str
    predicted: str
    count: int
    of: int
    mistaken: tuple[Image.Image, ...] = ()
    alike: tuple[Image.Image, ...] = ()


def find_mistakes(
    learner: Learner,
    test: object,
    *,
    features: NDArray[np.float32] | None = None,
    pairs: int = 6,
    pictures: int = 3,
) -> tuple[Mistake, ...]:
    """The commonest mistakes of a learner, by the share of the class that they concern.

    Args:
        learner: with classes.
        test: labelled images; those of unknown classes are left out.
        features: of the test images, (N, F), where they have been computed: all of them, in their order.
        pairs: most pairs of classes.
        pictures: most pictures of each class of a pair.
    """
    images = as_images(test)
    own = [index for index, name in enumerate(images.labels) if name in learner.classes]
    if not own:
        return ()
    found = (learner.features(images) if features is None else features)[own]
    labels = np.array(images.labels)[own]
    scores = learner.head.scores(found)
    answers = np.array(learner.head.classes)[scores.argmax(axis=1)]
    ahead = np.ptp(np.sort(scores, axis=1)[:, -2:], axis=1)  # of the second; 0 with one class
    unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    sizes = Counter(labels.tolist())
    wrong = Counter((a, p) for a, p in zip(labels.tolist(), answers.tolist(), strict=True) if a != p)
    order = sorted(wrong, key=lambda pair: (-wrong[pair] / sizes[pair[0]], -wrong[pair], pair))

    def shown(rows: list[int]) -> tuple[Image.Image, ...]:
        return tuple(_small(images[own[row]][0]) for row in rows)

    mistakes = []
    for actual, predicted in order[:pairs]:
        rows = np.flatnonzero((labels == actual) & (answers == predicted))
        rows = rows[np.argsort(-ahead[rows], kind="stable")][:pictures]
        others = np.flatnonzero(labels == predicted)
        nearest: list[int] = []
        for row in rows:
            free = [other for other in others.tolist() if other not in nearest]
            if free:
                nearest.append(free[int((unit[free] @ unit[row]).argmax())])
        mistakes.append(
            Mistake(
                actual,
                predicted,
                wrong[actual, predicted],
                sizes[actual],
                shown(rows.tolist()),
                shown(nearest),
            )
        )
    return tuple(mistakes)


def _small(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((SIDE, SIDE))
    return upright
