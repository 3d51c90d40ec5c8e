"""A learner on a stream of domains, measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from everlearn.data.streams import DomainIncremental
from everlearn.evaluation.metrics import AccuracyMatrix, accuracy

if TYPE_CHECKING:
    from everlearn.learner import Learner


def measure_domains(learner: Learner, stream: DomainIncremental) -> AccuracyMatrix:
    """Learn one domain after the other, and measure all of them after each.

    Args:
        learner: a fresh one.
        stream: the domains.

    Returns:
        The matrix whose row i and column j is the accuracy on the test images of domain j after learning
        domain i, among all classes known then; later domains too (what they gain before they are learned, see
        `AccuracyMatrix.forward_transfer`), NaN where they test a class that is not known yet.

    Raises:
        ValueError: when the learner has learned something already.
    """
    if learner.started:
        raise ValueError(
            "this learner has learned already; give a fresh one, so that its figures are the stream's"
        )
    matrix = AccuracyMatrix()
    images = [len(domain.test) for domain in stream]
    for domain in stream:
        learner.fit(domain.train)
        row = []
        for other in stream:
            known = not other.test.unknown_to(learner.classes)
            row.append(accuracy(learner.predict(other.test), other.test.labels) if known else math.nan)
        matrix.record(row, images)
    return matrix
