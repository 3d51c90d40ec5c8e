"""What SAFE's two variants differ in; here the mended one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from everlearn.methods.base import Batches, TaskInfo
from everlearn_runtime.heads import Aggregate, Head, Ridge

if TYPE_CHECKING:
    from everlearn.methods.safe.method import SAFE


class Mended:
    """Rows of new classes are imprinted, each learner has statistics of its own, scales stay learned.

    It keeps nothing: all that it makes and reads is the method's.

    Attributes:
        zero_start: whether prompts start at zero, where all of a block stay equal to each other.
    """

    zero_start: ClassVar[bool] = False

    def head(self, method: SAFE) -> Head:
        """Ridge regressions whose lambda comes by generalised cross-validation from all tasks' sums."""
        ridge = Ridge(projection=method.projection)
        return Aggregate(method.sections, [ridge, ridge], method.gamma, method.sharpness)

    def begin_task(self, method: SAFE, task: TaskInfo) -> None:
        """Imprint classes that a head of the user's own knew before: they have no row yet, but a mean."""
        others = [name for name in task.known if name not in task.classes]
        for name, mean in zip(others, task.prototypes, strict=True):
            if name in method.new:
                imprint(method, [name], trained(method, mean[None]))

    def survey(self, method: SAFE, batches: Batches) -> None:
        """Imprint new classes with the means of their features before training."""
        sums = method.fast_classifier.weight.new_zeros(2, len(method.task), method.backbone.width)
        with torch.no_grad():
            for images, targets in batches:
                both = trained(method, method.features(images))
                sums.index_add_(1, targets, both.to(sums))
        new = [position for position, name in enumerate(method.task) if name in method.new]
        imprint(method, [method.task[position] for position in new], sums[:, new])

    def end_first_task(self, method: SAFE) -> None:
        """Leave the scales of the classifiers as they were learned."""

    def teach(self, method: SAFE, head: Head) -> None:
        """Leave the head as it has learned: its sharpness is constant."""


def trained(method: SAFE, features: Tensor) -> Tensor:
    """Slow's and fast's part of features (B, F) that the classifiers see, without depths, (2, B, d)."""
    both = torch.unflatten(features, 1, (2, -1)).transpose(0, 1)
    return both[:, :, : method.backbone.width]


def imprint(method: SAFE, names: list[str], means: Tensor) -> None:
    """Write the directions of slow's and fast's means, (2, R, d), into the rows of these classes."""
    rows = method.classes.places(names)
    with torch.no_grad():
        for classifier, directions in zip(method.classifiers, F.normalize(means, dim=2), strict=True):
            classifier.weight[rows] = directions.to(classifier.weight)
