"""SAFE as the authors' released code computes it (MIFA-Lab/SAFE, commit c043ce3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import nn

from everlearn.methods.base import Batches, TaskInfo
from everlearn.methods.safe.rules import Mended
from everlearn_runtime.heads import Aggregate, Head, HeldOutRidge, SharedAggregate

if TYPE_CHECKING:
    from everlearn.methods.safe.method import SAFE


class Released(Mended):
    """What the release does otherwise, and this does the same.

    - New rows of both classifiers are zero, where the gradient of a cosine is 1e12-fold: fast's are
      thrown far out by their first step, which fixes their direction for good; slow's stay zero, so
      that slow never scores a later class in training.
    - Both learners add to one sum of statistics, so that each regresses on the other's features too,
      and fast sees less of the newest task than slow (`SharedAggregate`).
    - Lambda of the ridge comes from a fifth of the newest task alone (`HeldOutRidge`).
    - The scale of the cosine classifiers, learned in the first task, is set back to its start, and
      what later tasks make of it multiplies the ridge scores, so that it is a temperature of the
      aggregation; ours is the constant ``sharpness``.
    - Prompts start at zero.

    What it does otherwise, and nothing here does:

    - Before the second task only fast's head is asked (here both; they see the same features).
    - The rate's cosine ends after 20 epochs although later tasks have 15 (here with the task).
    - Cross-entropy and the other terms see separate passes with dropout drawn anew (here one pass).
    - Setting both weights of the transfer loss to 0 fails.
    - The better of fast and the aggregate, by the test images' labels, is what it reports.
    """

    zero_start: ClassVar[bool] = True

    def head(self, method: SAFE) -> Head:
        """Ridge regressions on one sum of statistics, lambda by hold-out."""
        ridge = HeldOutRidge(projection=method.projection, grid=(3, 8))
        return SharedAggregate(method.sections, [ridge, ridge], method.gamma, method.sharpness)

    def begin_task(self, method: SAFE, task: TaskInfo) -> None:
        """Start fast's rows at random in the first task."""
        if method.first:
            nn.init.kaiming_uniform_(method.fast_classifier.weight, a=5**0.5)

    def survey(self, method: SAFE, batches: Batches) -> None:
        """Leave new rows at zero."""

    def end_first_task(self, method: SAFE) -> None:
        """Set the scales back."""
        for classifier in method.classifiers:
            classifier.scale.fill_(method.sharpness)

    def teach(self, method: SAFE, head: Head) -> None:
        """Hand the classifiers' scales to the head as its sharpness."""
        if isinstance(head, Aggregate):
            head.sharpness = tuple(classifier.scale.item() for classifier in method.classifiers)
