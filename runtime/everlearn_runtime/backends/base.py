"""What every backend does."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.arrays import all_finite


class Backend(Protocol):
    """Runs one static graph from images to features."""

    @property
    def name(self) -> str:
        """What runs the graph, and on what, for people: ``"onnxruntime 1.32.0, CPUExecutionProvider"``."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of a batch.

        Args:
            images: uint8 (B, H, W, 3), B at least 1.

        Returns:
            float32 (B, F), all finite.

        Raises:
            ValueError: The graph does not take these images, or gave NaN or infinite features.
        """

    def close(self) -> None:
        """Give back what the backend holds; it cannot run afterwards."""


@runtime_checkable
class Adaptable(Backend, Protocol):
    """A backend that can run the same graph with other weights."""

    threads: int | None

    def tokens(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What a training step of the last blocks trains on, float32 (B, N, d).

        Args:
            images: uint8 (B, H, W, 3), B at least 1.

        Raises:
            ValueError: As :meth:`run`, or the graph gives no tokens.
        """

    def with_graph(self, graph: bytes) -> Backend:
        """Another backend like this one, on a graph that differs in its weights only.

        Raises:
            ValueError: It cannot be had.
        """


def check_features(features: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The features, or a ``ValueError`` if they are not ``count`` finite rows."""
    if features.ndim != 2 or len(features) != count:
        raise ValueError(f"the graph gave shape {features.shape} for {count} images; export it again")
    if not all_finite(features):
        raise ValueError(
            "the graph gave NaN or infinite features; check its precision with the parity figures"
        )
    return features
