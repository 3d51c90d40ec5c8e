"""Terms of losses that act on features: NTK-CL's dissimilarity and orthogonality, SAFE's transfer."""

import torch
import torch.nn.functional as F
from torch import Tensor


def supervised_info_nce(features: Tensor, targets: Tensor, old: Tensor, temperature: float) -> Tensor:
    """Supervised InfoNCE: the same class attracts, other classes and old prototypes repel.

    Args:
        features: (B, F), of any length.
        targets: int64 (B,).
        old: unit vectors (K, F) that join as negatives; K may be 0.
        temperature: divides the cosines.

    Returns:
        The mean over the anchors that have a positive, 0 without any.

    Source: Khosla et al., "Supervised Contrastive Learning" (2020), L_out, equation 2.

    >>> pair = torch.eye(2)[[0, 0]]
    >>> supervised_info_nce(pair, torch.tensor([0, 0]), torch.zeros(0, 2), 0.1).item()
    0.0
    """
    count = len(features)
    unit = F.normalize(features, dim=1)
    similar = unit @ torch.cat([unit, old]).T / temperature
    itself = F.pad(torch.eye(count, dtype=torch.bool, device=unit.device), (0, len(old)))
    log_share = similar - similar.masked_fill(itself, torch.finfo(similar.dtype).min).logsumexp(
        1, keepdim=True
    )
    positive = (targets[:, None] == targets[None]) & ~itself[:, :count]
    pairs = positive.sum(1)
    per_anchor: Tensor = -(log_share[:, :count] * positive).sum(1) / pairs.clamp(min=1)
    return per_anchor.sum() / (pairs > 0).sum().clamp(min=1)


def overlap(features: Tensor, basis: Tensor) -> Tensor:
    """Mean squared norm of the part of unit features in a span: 0 outside it, 1 inside.

    Args:
        features: (B, F), of any length.
        basis: orthonormal rows (R, F); R may be 0.

    >>> overlap(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.eye(1, 2)).item()
    0.5
    """
    inside: Tensor = F.normalize(features, dim=1) @ basis.T
    return inside.square().sum(1).mean()


def transfer(features: Tensor, pretrained: Tensor) -> tuple[Tensor, Tensor]:
    """How far features are from pretrained ones, and how redundant: SAFE's transfer loss.

    With C as `cross_correlation` gives it.

    Args:
        features: (B, d).
        pretrained: (B, d); no gradient goes into it.

    Returns:
        sum_i (C_ii - 1)^2 and sum_{i != j} C_ij^2.

    Source: SAFE, arXiv 2411.02175, section 4.1, as released: C is not standardised.

    >>> diagonal, redundancy = transfer(torch.eye(2), 3 * torch.eye(2))
    >>> diagonal.item(), redundancy.item()
    (0.5, 0.0)
    """
    correlation = cross_correlation(features, pretrained.detach())
    own = correlation.diagonal()
    return (own - 1).square().sum(), correlation.square().sum() - own.square().sum()


def cross_correlation(features: Tensor, others: Tensor) -> Tensor:
    """C = S' P / B, (d, d), of features (B, d) each, with S and P their rows at unit length."""
    correlation: Tensor = F.normalize(features, dim=1).T @ F.normalize(others, dim=1) / len(features)
    return correlation
