"""NTK-CL as the authors' released code computes it, to the last digit."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from everlearn.methods.losses import batch_wide_info_nce, complement_sum
from everlearn.methods.ntkcl.hybrid import FourPasses

if TYPE_CHECKING:
    from everlearn.methods.ntkcl.method import NTKCL


class Released(FourPasses):
    """The hybrid view with what the release does otherwise than the paper, in six places.

    - Prompts start at zero, where only one of their four parameters ever learns.
    - The fusion attends to one token, so half of it never learns.
    - L_dis is `batch_wide_info_nce`, which pushes a class apart, with at most as many old prototypes
      as images, drawn anew at each step.
    - L_orth is `complement_sum`, over ``rank`` directions of which those beyond the old classes are
      whatever the SVD returns.
    - The old classes are counted as ``C - increment``.
    - Dropout is active in the averaged adapters, too.

    One thing differs: the release does not average after the last task of a fixed stream, but a stream
    without an end has no last task, so this averages after every one.
    """

    steady: ClassVar[bool] = False
    zero_start: ClassVar[bool] = True
    one_token: ClassVar[bool] = True

    def remember(self, method: NTKCL, prototypes: Tensor, classes: int) -> None:
        """Take a row for every class, this task's too, which have no prototype yet."""
        unit = F.normalize(F.pad(prototypes, (0, 0, 0, classes)), dim=1)
        method.basis = torch.linalg.svd(unit.T).U[:, : method.rank].T
        method.old = unit[: max(len(unit) - (method.increment or classes), 0)]

    def negatives(self, method: NTKCL, count: int) -> Tensor:
        """At most ``count`` of the old prototypes, drawn from torch's global generator."""
        return torch.randperm(len(method.old))[:count].to(method.old.device)

    def dissimilarity(self, method: NTKCL, features: Tensor, targets: Tensor) -> Tensor:
        """L_dis of features (B, F) with targets int64 (B,)."""
        rows = method.negatives(len(features))
        labels = torch.cat([targets + method.first_target, rows])
        return batch_wide_info_nce(torch.cat([features, method.old[rows]]), labels, method.temperature)

    def in_old_span(self, features: Tensor, basis: Tensor) -> Tensor:
        """L_orth of one view, (B, F), and orthonormal rows (R, F)."""
        return complement_sum(features, basis)
