"""The parity gate: a graph leaves the workstation only if it computes what torch computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads import Head
from everlearn_runtime.heads.sums import unit_rows

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
        max_relative_difference: the largest difference of a feature relative to the size of its
            section, the root of the mean square over all images.
        min_cosine: the smallest cosine between the two feature vectors of an image.
        top1_agreement: share of images that the head puts into the same class, in [0, 1].
    """

    images: int
    batches: tuple[int, ...]
    max_abs_difference: float
    max_relative_difference: float
    min_cosine: float
    top1_agreement: float


def verify(
    reference: Features,
    exported: Features,
    images: NDArray[np.uint8],
    head: Head,
    *,
    sections: Sequence[int] = (),
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
        sections: widths of the parts that features consist of, each measured by its own size;
            none: one part.
        tolerance: largest relative difference of a feature that passes; so much may the cosine of
            an image's features be below one, too.
        batches: batch sizes to run.

    Raises:
        ValueError: no images, or sections of another width.
        ParityError: when features differ by more than ``tolerance``, a shape differs, a value is
            not finite, or an image changes its class.
    """
    if len(images) == 0:
        raise ValueError("there are no images to verify on; give at least one")
    images = np.concatenate([images] * -(-max(batches) // len(images)))
    expected = np.concatenate([reference(part) for part in _split(images, max(batches))])
    classes = head.predict(expected)
    sizes = _sizes(expected, sections)
    absolute, relative, cosine, agreement = 0.0, 0.0, 1.0, 1.0
    for batch in batches:
        got = np.concatenate([exported(part) for part in _split(images, batch)])
        if got.shape != expected.shape:
            raise ParityError(f"at batch {batch} the graph gives {got.shape}, torch {expected.shape}")
        if not np.isfinite(got).all():
            raise ParityError(f"at batch {batch} the graph gives values that are not finite")
        difference = np.abs(got.astype(np.float64) - expected).max(axis=0)
        absolute = max(absolute, float(difference.max()))
        relative = max(relative, float((difference / sizes).max()))
        cosine = min(cosine, float(_cosines(got, expected).min()))
        same = [a == b for a, b in zip(head.predict(got), classes, strict=True)]
        agreement = min(agreement, float(np.mean(same)))
    if not (relative <= tolerance and cosine >= 1 - tolerance and agreement == 1):
        raise ParityError(
            f"the exported graph is not the model: features differ by up to {absolute:.2g}, {relative:.2g} "
            f"of their size (allowed {tolerance:.2g}), cosines fall to {cosine:.6g} (allowed "
            f"{1 - tolerance:.6g}), "
            f"{agreement:.1%} of the classes agree (all must), on {len(images)} images at batch sizes "
            f"{', '.join(map(str, batches))}; no bundle was written"
        )
    return Parity(len(images), batches, absolute, relative, cosine, agreement)


def _sizes(features: NDArray[np.float32], sections: Sequence[int]) -> NDArray[np.float64]:
    """For each feature the root mean square of its section, over all images (N, F); (F,)."""
    widths = sections or [features.shape[1]]
    if sum(widths) != features.shape[1]:
        raise ValueError(
            f"sections {list(widths)} make {sum(widths)} features; torch gives {features.shape[1]}"
        )
    squares = (features.astype(np.float64) ** 2).mean(axis=0)
    parts = np.split(squares, np.cumsum(widths)[:-1])
    sizes = np.concatenate([np.full(len(part), np.sqrt(part.mean())) for part in parts])
    # Features that are all zero must stay so.
    floored: NDArray[np.float64] = np.maximum(sizes, np.finfo(np.float32).tiny)
    return floored


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each row with the other's (N, F); 1 where both are zero, 0 where one is."""
    rows, others = unit_rows(a.astype(np.float64)), unit_rows(b.astype(np.float64))
    products: NDArray[np.float64] = np.einsum("nf,nf->n", rows, others)
    products[~(rows.any(axis=1) | others.any(axis=1))] = 1.0
    return products


def _split(images: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    return [images[start : start + size] for start in range(0, len(images), size)]
