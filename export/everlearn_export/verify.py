"""The parity gate: a graph leaves the workstation only if it computes what torch computes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads import Head

BATCHES = (1, 2, 32)
"""Batch sizes the gate runs: one, the exporter's own, and a large one."""

Features = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class ParityError(ValueError):
    """The exported graph does not compute what the model in torch does."""


@dataclass(frozen=True)
class Parity:
    """How close a graph is to its model, over all batch sizes.

    Attributes:
        images: number of images compared.
        batches: the batch sizes.
        max_abs_difference: the largest difference of a feature.
        min_cosine: the smallest cosine between the two feature vectors of an image.
        top1_agreement: share of images that the head puts into the same class, in [0, 1].
    """

    images: int
    batches: tuple[int, ...]
    max_abs_difference: float
    min_cosine: float
    top1_agreement: float


def verify(
    reference: Features,
    exported: Features,
    images: NDArray[np.uint8],
    head: Head,
    *,
    tolerance: float = 1e-4,
    batches: tuple[int, ...] = BATCHES,
) -> Parity:
    """Compare two ways to compute features, and what the head makes of them.

    Args:
        reference: the model in torch: uint8 (B, H, W, 3) to float32 (B, F).
        exported: the graph, the same way.
        images: real images, uint8 (N, H, W, 3). Every batch size sees all of them; where there
            are fewer than a batch needs, they are repeated.
        head: names classes by features.
        tolerance: largest absolute difference of a feature that passes.
        batches: batch sizes to run.

    Raises:
        ParityError: when a feature differs by more than ``tolerance``, a shape differs, a value
            is not finite, or an image changes its class.
    """
    images = np.concatenate([images] * -(-max(batches) // len(images)))
    expected = np.concatenate([reference(part) for part in _split(images, max(batches))])
    classes = head.predict(expected)
    difference, cosine, agreement = 0.0, 1.0, 1.0
    for batch in batches:
        got = np.concatenate([exported(part) for part in _split(images, batch)])
        if got.shape != expected.shape:
            raise ParityError(f"at batch {batch} the graph gives {got.shape}, torch {expected.shape}")
        if not np.isfinite(got).all():
            raise ParityError(f"at batch {batch} the graph gives values that are not finite")
        difference = max(difference, float(np.abs(got - expected).max()))
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        cosine = min(cosine, float(((got * expected).sum(1) / np.maximum(norms, 1e-30)).min()))
        same = [a == b for a, b in zip(head.predict(got), classes, strict=True)]
        agreement = min(agreement, float(np.mean(same)))
    parity = Parity(len(images), batches, difference, cosine, agreement)
    if difference > tolerance or agreement < 1:
        raise ParityError(
            f"the exported graph is not the model: features differ by up to {difference:.2g} (allowed "
            f"{tolerance:.2g}), {agreement:.1%} of the classes agree (all must), on {len(images)} images at "
            f"batch sizes {', '.join(map(str, batches))}; no bundle was written"
        )
    return parity


def _split(images: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    return [images[start : start + size] for start in range(0, len(images), size)]
