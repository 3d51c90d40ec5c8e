"""What a learner answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.guard import Suspect
from everlearn_runtime.heads.confidence import probabilities
from everlearn_runtime.state import Version
from everlearn_runtime.words import plural

MOST = 5  # images that a representation names


@dataclass(frozen=True, repr=False)
class Prediction:
    """What a learner makes of a batch.

    Args:
        labels: The best class of each image, B names.
        scores: float64 (B, C); larger is better, on the head's own scale.
        classes: The names of the columns.
        temperature: T of the probabilities, see `Head.temperature`.
        calibrated: Whether enough images, 200, were judged before they were learned, on this device, or held
            out by the workstation, to say how sure the learner may be.
        known: Whether each image looks like one of a known class, bool (B,). Of images of known classes about
            5 %, or what ``EdgeLearner.open(false_alarm=...)`` says, are called unknown. True as long as the
            learner is not ``calibrated``.
        strangeness: float64 (B,), at least 0, what ``known`` is decided by, see `Head.strangeness`; NaN as
            long as the learner is not ``calibrated``.
    """

    labels: list[str]
    scores: NDArray[np.float64]
    classes: tuple[str, ...]
    temperature: float
    calibrated: bool
    known: NDArray[np.bool_]
    strangeness: NDArray[np.float64]

    def __repr__(self) -> str:
        told = [
            f"{label!r} {share:.1%}{'' if known else ' (unknown)'}"
            for label, share, known in zip(
                self.labels[:MOST], self.probabilities[:MOST].max(axis=1), self.known, strict=False
            )
        ]
        more = ", ..." if len(self.labels) > MOST else ""
        rest = "" if self.calibrated else "; not calibrated"
        return f"<Prediction of {plural(len(self.labels), 'image')}: {', '.join(told)}{more}{rest}>"

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Of an image of a known class to be of each, float64 (B, C), each row adding up to 1.

        They keep what they say only if ``calibrated``.
        """
        return probabilities(self.scores, self.temperature)

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k most probable classes of each image with their probabilities, the best first.

        Args:
            k: How many; of fewer classes all are given.

        Raises:
            ValueError: k is no whole number of at least 1.
        """
        if type(k) is not int or k < 1:
            raise ValueError(f"k is {k!r}; give a whole number, at least 1")
        # By scores, for probabilities of zero are all alike; of equal scores the first, as in ``labels``.
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :k]
        return [
            [(self.classes[column], float(row[column])) for column in columns]
            for row, columns in zip(self.probabilities, order.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Learned(Version):
    """What was learned: a version, and the images that raise doubts.

    Args:
        suspects: Images whose label is to be checked; `EdgeLearner.undo` takes back all of the call.
            Empty until the figures are calibrated, and for classes that were not known.
    """

    suspects: tuple[Suspect, ...] = ()
