"""ONNX Runtime, on the CPU or whatever execution provider is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import BundleError, MissingExtra

CHUNK_IMAGES = 32


class OnnxRuntime:
    """A session on one ONNX file: uint8 NHWC images to features.

    Args:
        path: The ONNX file.
        providers: Execution providers, the preferred one first.
        threads: CPU threads inside an operator; None: all cores.

    Raises:
        MissingExtra: onnxruntime is not installed.
        BundleError: Not a readable graph, or one with other inputs and outputs.
        ValueError: A provider that is not there. ONNX Runtime itself would go on without it, on
            the CPU and in silence.
    """

    def __init__(
        self,
        path: str | Path,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int | None = None,
    ) -> None:
        if isinstance(providers, str) or not providers:
            raise ValueError(f"providers is {providers!r}; give a list, for example ['CPUExecutionProvider']")
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(f"threads is {threads!r}; give None or a whole number, at least 1")
        gpu = any(name.startswith(("CUDA", "Tensorrt")) for name in providers)
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("running a bundle", "gpu" if gpu else "cpu") from None

        present = onnxruntime.get_available_providers()
        if missing := [name for name in providers if name not in present]:
            raise ValueError(
                f"{', '.join(missing)} is not in this build of onnxruntime, which has {', '.join(present)}; "
                'for a GPU: pip install "everlearn[gpu]"'
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise BundleError(f"{path}: ONNX Runtime cannot load this graph ({error})") from error
        if missing := [name for name in providers if name not in session.get_providers()]:
            raise ValueError(
                f"{', '.join(missing)} could not be loaded and ONNX Runtime fell back to "
                f"{', '.join(session.get_providers())}; mend the driver or library, or leave it out"
            )
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if (
            len(inputs) != 1
            or len(outputs) != 1
            or inputs[0].type != "tensor(uint8)"
            or len(inputs[0].shape) != 4
        ):
            raise BundleError(
                f"{path}: the graph must take one uint8 NHWC tensor and give one; export it again"
            )
        self._session: Any = session
        self._input: str = inputs[0].name

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of a batch; large batches go through in parts, so that memory stays bounded.

        Args:
            images: uint8 (B, H, W, 3), B at least 1.

        Returns:
            float32 (B, F).

        Raises:
            ValueError: The backend is closed, the graph does not take these images, or it gave
                NaN or infinite features.
        """
        if self._session is None:
            raise ValueError("this backend is closed; make a new one")
        parts = []
        for start in range(0, len(images), CHUNK_IMAGES):
            try:
                parts.append(self._session.run(None, {self._input: images[start : start + CHUNK_IMAGES]})[0])
            except Exception as error:  # onnxruntime's errors have no base class of their own
                raise ValueError(f"the graph failed on images of shape {images.shape}: {error}") from error
        features: NDArray[np.float32] = np.concatenate(parts).astype(np.float32, copy=False)
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"the graph gave shape {features.shape} for {len(images)} images; export it again"
            )
        if not np.isfinite(features).all():
            raise ValueError(
                "the graph gave NaN or infinite features; check its precision with the parity figures"
            )
        return features

    def close(self) -> None:
        """Give the session back."""
        self._session = None
