"""The map from the bundle that devices have to the one that replaces it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.backends.onnxruntime import OnnxRuntime
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.heads import Head
from everlearn_runtime.heads.drift import affine_map
from everlearn_runtime.identity import model_of
from everlearn_runtime.migration import Replaced

BATCH = 32
FOLDS = 5  # and at least as many images

Array = NDArray[np.float64]


def check_replaces(old: Bundle, head: Head) -> None:
    """Whether what devices have learned with an old bundle can go into a new one's head.

    Raises:
        ValueError: It cannot; says why.
    """
    base = old.head()
    try:
        base.check_movable()
        head.check_movable()
    except ValueError as error:
        raise ValueError(f"{old.path} cannot be replaced: {error}; export without replaces") from None
    if base.kind != head.kind:
        raise ValueError(
            f"{old.path} cannot be replaced: it has a {base.kind} head, this learner a {head.kind} head; "
            "give the learner a head of the same kind, or export without replaces"
        )
    kept_apart = [bool(one.options.get("removable")) for one in (base, head)]
    if base.expands != head.expands or kept_apart[0] != kept_apart[1]:
        raise ValueError(
            f"{old.path} cannot be replaced: of its head and this learner's, one alone has a projection or "
            "is removable; give the learner a head like it, or export without replaces"
        )


def fit_map(
    old: Bundle,
    head: Head,
    before_images: NDArray[np.uint8],
    after: NDArray[np.float32],
) -> Replaced:
    """Fit the map on some images, and see how good it is on such as it was not fitted on.

    Args:
        old: The bundle that is replaced.
        head: The new one's.
        before_images: The images as the old graph takes them, uint8 (B, H, W, 3).
        after: What the new graph makes of the same images, (B, G).

    Raises:
        ValueError: The heads do not go together, or there are too few images.
    """
    check_replaces(old, head)
    if len(before_images) < FOLDS:
        raise ValueError(
            f"{len(before_images)} images to fit the map from {old.path} on; give at least "
            f"{FOLDS}, better some hundreds"
        )
    backend = OnnxRuntime(old.features)
    try:
        before = in_batches(backend.run, before_images).astype(np.float64)
    finally:
        backend.close()
    rows = after.astype(np.float64)
    drift, misses = affine_map(before, rows)
    base = old.head()
    pair = (before, rows) if base.expands else None
    return Replaced(
        old.id,
        model_of(old.manifest),
        base.state(),
        drift,
        len(rows),
        _explained(rows, misses),
        _agreement(base, head, before, rows),
        pair,
    )


def in_batches(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """A graph's features of many images."""
    return np.concatenate([run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def _explained(rows: Array, misses: Array) -> float:
    """Share of the variance: an image that is left out is not in the mean either."""
    rest = (rows - rows.mean(axis=0)) * len(rows) / (len(rows) - 1)
    total = float((rest**2).sum())
    return 1 - float((misses**2).sum()) / total if total else 1.0


def _agreement(base: Head, head: Head, before: Array, after: Array) -> float | None:
    """Share of images in the same class before and after, each by a map fitted on other fifths."""
    if not base.classes:
        return None
    same = 0
    for fold in range(FOLDS):
        out = np.arange(len(before)) % FOLDS == fold
        drift, _ = affine_map(before[~out], after[~out])
        pair = (before[~out], after[~out]) if base.expands else None
        found = base.moved(drift, head, pair).predict(after[out])
        same += sum(a == b for a, b in zip(found, base.predict(before[out]), strict=True))
    return same / len(before)
