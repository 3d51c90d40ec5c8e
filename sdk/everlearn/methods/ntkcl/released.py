"""NTK-CL as the authors' released code computes it, to the last digit."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

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


def batch_wide_info_nce(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Minus InfoNCE with all positive pairs in one logarithm, as released: it pushes a class apart.

    ``log sum_{pairs of a class} exp(s_ij) - mean_i log sum_{j != i} exp(s_ij)``, with s the cosine
    over the temperature, over all rows (the batch and the old prototypes).

    Args:
        features: (B, F), of any length.
        labels: int64 (B,).
        temperature: divides the cosines.

    Returns:
        The term, 0 without any pair of a class (where the formula gives minus infinity).

    >>> pair = torch.eye(2)[[0, 0]]
    >>> round(batch_wide_info_nce(pair, torch.tensor([0, 0]), 0.1).item(), 4)
    0.6931
    """
    unit = F.normalize(features, dim=1)
    similar = unit @ unit.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool, device=unit.device)
    positive = (labels[:, None] == labels[None]) & ~itself
    if not positive.any():
        return 0.0 * features.sum()
    others = similar.masked_fill(itself, torch.finfo(similar.dtype).min).logsumexp(1)
    return similar[positive].logsumexp(0) - others.mean()


def complement_sum(features: Tensor, basis: Tensor) -> Tensor:
    """Sum of all elements of unit features' parts outside a span, signs included, as released.

    Args:
        features: (B, F), of any length.
        basis: orthonormal rows (R, F).

    >>> complement_sum(torch.tensor([[3.0, 0.0], [0.0, -2.0]]), torch.eye(1, 2)).item()
    -1.0
    """
    unit = F.normalize(features, dim=1)
    return (unit - unit @ basis.T @ basis).sum()
