"""The parity gate: a graph leaves the workstation only if it computes what torch computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

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
        mean_cosine: the mean of the cosines.
        accuracy: share of the images whose class is known that the head gives that class to, by the
            model and by the graph; None without labels.
    """

    images: int
    batches: tuple[int, ...]
    max_abs_difference: float
    max_relative_difference: float
    min_cosine: float
    top1_agreement: float
    mean_cosine: float = 1.0
    accuracy: tuple[float, float] | None = None


@dataclass(frozen=True)
class Limits:
    """How near a graph must come to the model.

    Attributes:
        relative: largest difference of a feature that passes, relative to its size.
        cosine: smallest cosine between the two feature vectors of an image.
        agreement: smallest share of images that keep their class.
        lost: largest share of images with a known class that may be classified worse than by the model.
    """

    relative: float
    cosine: float
    agreement: float
    lost: float

    @classmethod
    def within(cls, tolerance: float) -> Limits:
        """The same to one number, and every image in its class.

        Raises:
            ValueError: It is no finite number above 0.
        """
        if not isinstance(tolerance, Real) or not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance!r}; give a finite number above 0, or None")
        return cls(tolerance, 1 - tolerance, 1.0, 0.0)

    def passed(self, parity: Parity) -> bool:
        """Whether a graph is near enough; what is not a number is not."""
        reference, exported = parity.accuracy or (0.0, 0.0)
        return (
            parity.max_relative_difference <= self.relative
            and parity.min_cosine >= self.cosine
            and parity.top1_agreement >= self.agreement
            and reference - exported <= self.lost
        )

    def beside(self, parity: Parity) -> str:
        """What was found beside what is allowed, for people."""
        must = "all must" if self.agreement == 1 else f"{self.agreement:.0%} must"
        text = (
            f"features differ by up to {parity.max_abs_difference:.2g}, "
            f"{parity.max_relative_difference:.2g} of their size (allowed {self.relative:.2g}), cosines fall "
            f"to {parity.min_cosine:.6g} (allowed {self.cosine:.6g}), {parity.top1_agreement:.1%} of the "
            f"classes agree ({must})"
        )
        if parity.accuracy is not None:
            reference, exported = parity.accuracy
            text += f", accuracy goes from {reference:.1%} to {exported:.1%} (allowed {self.lost:.1%} less)"
        return text


LIMITS = {
    "fp32": Limits.within(1e-4),
    "fp16": Limits(0.05, 0.9995, 0.98, 0.01),
    "int8": Limits(1.0, 0.97, 0.9, 0.02),
}
"""By precision. Of the bundled backbone, 16 bits differ by .006 at a cosine of .999999, and 8 bits have
cosines of .996 and more and lose .2 points; a layer that has gone wrong is far beyond that."""


def verify(
    reference: Features,
    exported: Features,
    images: NDArray[np.uint8],
    head: Head,
    *,
    own: Head | None = None,
    labels: Sequence[str] | None = None,
    sections: Sequence[int] = (),
    limits: Limits = LIMITS["fp32"],
    batches: tuple[int, ...] = BATCHES,
) -> Parity:
    """Compare two ways to compute features, and what the head makes of them.

    Args:
        reference: the model in torch: uint8 (B, H, W, 3) to float32 (B, F).
        exported: the graph, the same way.
        images: real images, uint8 (N, H, W, 3). Every batch size sees all of them; where there
            are fewer than a batch needs, they are repeated.
        head: names classes by the model's features.
        own: names classes by the graph's features, where its statistics have followed them; None: ``head``.
        labels: the N images' classes, to see how much accuracy the graph loses; None: not known.
        sections: widths of the parts that features consist of, each measured by its own size;
            none: one part.
        limits: what passes.
        batches: batch sizes to run.

    Raises:
        ValueError: no images, sections of another width, or another number of labels.
        ParityError: when the graph misses one of the limits, a shape differs, or a value is not
            finite.
    """
    if len(images) == 0:
        raise ValueError("there are no images to verify on; give at least one")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images; give one label per image")
    repeats = -(-max(batches) // len(images))
    images = np.concatenate([images] * repeats)
    right = None if labels is None else np.array(list(labels) * repeats)
    expected = np.concatenate([reference(part) for part in _split(images, max(batches))])
    classes = np.array(head.predict(expected))
    sizes = _sizes(expected, sections)
    absolute, relative, agreement, cosines, accuracy = 0.0, 0.0, 1.0, [], 1.0
    for batch in batches:
        got = np.concatenate([exported(part) for part in _split(images, batch)])
        if got.shape != expected.shape:
            raise ParityError(f"at batch {batch} the graph gives {got.shape}, torch {expected.shape}")
        if not np.isfinite(got).all():
            raise ParityError(f"at batch {batch} the graph gives values that are not finite")
        difference = np.abs(got.astype(np.float64) - expected).max(axis=0)
        absolute = max(absolute, float(difference.max()))
        relative = max(relative, float((difference / sizes).max()))
        cosines.append(_cosines(got, expected))
        found = np.array((own or head).predict(got))
        agreement = min(agreement, float(np.mean(found == classes)))
        if right is not None:
            accuracy = min(accuracy, float(np.mean(found == right)))
    parity = Parity(
        len(images),
        batches,
        absolute,
        relative,
        float(np.min(cosines)),
        agreement,
        float(np.mean(cosines)),
        None if right is None else (float(np.mean(classes == right)), accuracy),
    )
    if not limits.passed(parity):
        raise ParityError(
            f"the exported graph is not the model: {limits.beside(parity)}, on {len(images)} images at batch "
            f"sizes {', '.join(map(str, batches))}; no bundle was written"
        )
    return parity


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
