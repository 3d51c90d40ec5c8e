"""ONNX Runtime, on the CPU or whatever execution provider is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.backends.graph import check_graph
from everlearn_runtime.errors import BundleError, MissingExtra

CHUNK_IMAGES = 32
TOKENS = "tokens"  # a second output, on which a training step of the last blocks trains
Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]


class OnnxRuntime:
    """A session on one ONNX file: uint8 NHWC images to features.

    Args:
        path: The ONNX file.
        providers: Execution providers, the preferred one first: names, or pairs of a name and its
            options.
        threads: CPU threads inside an operator; None: all cores.

    Raises:
        MissingExtra: onnxruntime is not installed.
        BundleError: Not a readable graph, one that needs other files, or one with other inputs and
            outputs.
        ValueError: A provider that is not there. ONNX Runtime itself would go on without it, on
            the CPU and in silence.
    """

    def __init__(
        self,
        path: str | Path,
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
        threads: int | None = None,
    ) -> None:
        wanted = _pairs(providers)
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(f"threads is {threads!r}; give None or a whole number, at least 1")
        gpu = any(name.startswith(("CUDA", "Tensorrt")) for name in wanted)
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("running a bundle", "gpu" if gpu else "cpu") from None

        present = onnxruntime.get_available_providers()
        if missing := [name for name in wanted if name not in present]:
            raise ValueError(
                f"{', '.join(missing)} is not in this build of onnxruntime, which has {', '.join(present)}; "
                'for a GPU: pip install "everlearn[gpu]"'
            )
        # Bytes, not a path: what is checked is what is loaded, and ONNX Runtime spells paths in its
        # own encoding.
        try:
            graph = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot load this graph ({error})") from error
        check_graph(graph, str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=list(wanted.items()))
            inputs = [(node.name, node.type, len(node.shape)) for node in session.get_inputs()]
            outputs = [node.name for node in session.get_outputs()]
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise BundleError(f"{path}: ONNX Runtime cannot load this graph ({error})") from error
        if missing := [name for name in wanted if name not in session.get_providers()]:
            raise ValueError(
                f"{', '.join(missing)} could not be loaded and ONNX Runtime fell back to "
                f"{', '.join(session.get_providers())}; mend the driver or library, or leave it out"
            )
        session.disable_fallback()  # nor later, in the middle of a run
        if len(inputs) != 1 or outputs[1:] not in ([], [TOKENS]) or inputs[0][1:] != ("tensor(uint8)", 4):
            raise BundleError(
                f"{path}: the graph must take one uint8 NHWC tensor and give one; export it again"
            )
        self._session: Any = session
        self._input: str = inputs[0][0]
        self._outputs: list[str] = outputs

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
        features = self._run(self._outputs[0], images)
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"the graph gave shape {features.shape} for {len(images)} images; export it again"
            )
        if not np.isfinite(features).all():
            raise ValueError(
                "the graph gave NaN or infinite features; check its precision with the parity figures"
            )
        return features

    def tokens(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What a training step of the last blocks trains on, of a graph that gives it.

        Args:
            images: uint8 (B, H, W, 3), B at least 1.

        Returns:
            float32 (B, N, d).

        Raises:
            ValueError: As in :meth:`run`, or the graph gives features only.
        """
        if TOKENS not in self._outputs:
            raise ValueError("this graph gives no tokens; export it with train_step='last2'")
        return self._run(TOKENS, images)

    def close(self) -> None:
        """Give the session back."""
        self._session = None

    def _run(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self._session is None:
            raise ValueError("this backend is closed; make a new one")
        parts = []
        for start in range(0, len(images), CHUNK_IMAGES):
            try:
                feeds = {self._input: images[start : start + CHUNK_IMAGES]}
                parts.append(self._session.run([output], feeds)[0])
            except Exception as error:  # onnxruntime's errors have no base class of their own
                raise ValueError(f"the graph failed on images of shape {images.shape}: {error}") from error
        values: NDArray[np.float32] = np.concatenate(parts).astype(np.float32, copy=False)
        return values


def _pairs(providers: object) -> dict[str, dict[str, Any]]:
    """Names and options of execution providers, in their order."""
    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise ValueError(f"providers is {providers!r}; give a list, for example ['CPUExecutionProvider']")
    pairs = {}
    for given in providers:
        name, options = given if isinstance(given, (tuple, list)) and len(given) == 2 else (given, {})
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise ValueError(
                f"providers holds {given!r}; give names, or pairs of a name and its options, for example "
                "('CUDAExecutionProvider', {'device_id': 0})"
            )
        pairs[name] = dict(options)
    return pairs
