"""What a device would make of the test images: the figures of the exported artefact."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from everlearn.data import Images
from everlearn.data.loader import Loader
from everlearn_export.precision import check_precision
from everlearn_runtime.backends import OnnxRuntime
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.heads import Head

if TYPE_CHECKING:
    from everlearn.learner import Learner

PART = 512  # images that are in memory at once


def row_of(precision: str) -> str:
    """Name of a precision's row among the scores of a run."""
    return f"exported {precision}"


def on_a_device(
    learner: Learner, precision: str, known: Images, images: Images
) -> tuple[Head, NDArray[np.float32], int]:
    """Export a learner as it stands, and look at images as a device does.

    Args:
        learner: after at least one task; it stays as it is.
        precision: of the graph, see `Learner.export`.
        known: training images, to verify and calibrate on.
        images: what the device sees.

    Returns:
        The bundle's head, its graph's features of the images (N, F), and the bundle's size in bytes.

    Raises:
        ParityError: when the graph is not near enough to the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        learner.export(path, precision=precision, images=known)
        bundle = Bundle.open(path)
        backend = OnnxRuntime(bundle.features)
        try:
            loader = Loader(images, learner.backbone, learner.device, workers=learner.workers)
            parts = [range(start, min(start + PART, len(images))) for start in range(0, len(images), PART)]
            features = [backend.run(loader.pixels(part)) for part in parts]
        finally:
            backend.close()
        size = sum(file.stat().st_size for file in path.iterdir())
        return bundle.head(), np.concatenate(features), size


def check_exported(precisions: Sequence[str]) -> list[str]:
    """The precisions, each once.

    Raises:
        ValueError: there is no such precision.
    """
    for precision in precisions:
        check_precision(precision, "cpu")
    return list(dict.fromkeys(precisions))
