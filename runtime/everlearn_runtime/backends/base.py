"""What every backend does."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Backend(Protocol):
    """Runs one static graph from images to features."""

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
