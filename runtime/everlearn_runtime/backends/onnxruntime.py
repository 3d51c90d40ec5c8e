"""ONNX Runtime, on the CPU or whatever execution provider is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.backends.base import check_features
from everlearn_runtime.backends.graph import check_graph
from everlearn_runtime.backends.providers import (
    DEVICE,
    LIBRARY,
    Provider,
    pairs,
    plugin_devices,
    preload,
    why_not,
)
from everlearn_runtime.errors import BundleError, MissingExtra

CHUNK_IMAGES = 32
CPU = "CPUExecutionProvider"
TOKENS = "tokens"  # a second output, on which a training step of the last blocks trains


class OnnxRuntime:
    """A session on one ONNX file: uint8 NHWC images to features.

    Args:
        path: The ONNX file, or its bytes.
        providers: Execution providers, the preferred one first: names, or pairs of a name and its
            options, which go to ONNX Runtime as they are, a TensorRT engine cache among them. A plugin
            (a provider in a library of its own) counts too, see
            `everlearn_runtime.backends.providers.plugin_devices`.
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
        path: str | Path | bytes,
        providers: Sequence[Provider] = (CPU,),
        threads: int | None = None,
    ) -> None:
        wanted = pairs(providers)
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(f"threads is {threads!r}; give None or a whole number, at least 1")
        gpu = any(name.startswith(("CUDA", "Tensorrt")) for name in wanted)
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("running a bundle", "gpu" if gpu else "cpu") from None

        present = onnxruntime.get_available_providers()
        plugins = {
            name: plugin_devices(onnxruntime, name, given)
            for name, given in wanted.items()
            if name not in present
        }
        if missing := [name for name, devices in plugins.items() if devices is None]:
            raise ValueError(_not_there(missing, present))
        preload(onnxruntime, wanted)
        # Bytes, not a path: what is checked is what is loaded, and ONNX Runtime spells paths in its
        # own encoding.
        try:
            graph = path if isinstance(path, bytes) else Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise BundleError(f"{path!s}: cannot load this graph ({error})") from error
        path = "the graph" if isinstance(path, bytes) else path
        check_graph(graph, str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            if plugins:
                for name, given in wanted.items():
                    _add(options, name, given, plugins.get(name))
                session = onnxruntime.InferenceSession(graph, options, enable_fallback=False)
            else:
                session = onnxruntime.InferenceSession(
                    graph, options, providers=list(wanted.items()), enable_fallback=False
                )
            inputs = [(node.name, node.type, len(node.shape)) for node in session.get_inputs()]
            outputs = [node.name for node in session.get_outputs()]
        except Exception as error:  # onnxruntime's errors have no base class of their own
            for name in wanted:
                if reason := why_not(onnxruntime, name):
                    raise ValueError(f"{name} cannot be used: {reason}") from error
            raise BundleError(f"{path}: ONNX Runtime cannot load this graph ({error})") from error
        if missing := [name for name in wanted if name not in session.get_providers()]:
            reasons = dict.fromkeys(reason for name in missing if (reason := why_not(onnxruntime, name)))
            raise ValueError(
                f"{', '.join(missing)} could not be loaded and ONNX Runtime fell back to "
                f"{', '.join(session.get_providers())}; {'; '.join(reasons) or 'its log says why'}"
            )
        session.disable_fallback()  # nor later, in the middle of a run
        gives = bool(outputs) and outputs[1:] in ([], [TOKENS])
        if not gives or len(inputs) != 1 or inputs[0][1:] != ("tensor(uint8)", 4):
            raise BundleError(
                f"{path}: the graph must take one uint8 NHWC tensor and give one; export it again"
            )
        self._session: Any = session
        self._input: str = inputs[0][0]
        self._outputs: list[str] = outputs
        self._providers = tuple(providers)
        self.threads = threads
        self._name = f"onnxruntime {onnxruntime.__version__}, {', '.join(wanted)}"

    @property
    def name(self) -> str:
        """Version and execution providers."""
        return self._name

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
        return check_features(self._run(self._outputs[0], images), len(images))

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

    def with_graph(self, graph: bytes) -> OnnxRuntime:
        """The same on a graph that differs in its weights only.

        Raises:
            ValueError: A provider that builds engines and knows them again by the graph without its weights.
            BundleError: As the constructor.
        """
        if engines := [name for name in pairs(self._providers) if "tensorrt" in name.lower()]:
            raise ValueError(
                f"{engines[0]} keeps engines with the weights in them, and may take an old one for the new "
                "weights; open with backend='onnxruntime' and providers of the CPU or CUDA"
            )
        return OnnxRuntime(graph, self._providers, self.threads)

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
                own = type(error).__module__.startswith("onnxruntime")
                if not (own or isinstance(error, (RuntimeError, TypeError, ValueError))):
                    raise  # a signal handler's, that ends what takes too long
                raise ValueError(f"the graph failed on images of shape {images.shape}: {error}") from error
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        values: NDArray[np.float32] = whole.astype(np.float32, copy=False)
        return values


def _add(options: Any, name: str, given: dict[str, Any], devices: list[Any] | None) -> None:
    """Put a provider into a session's options, which is the way of plugins."""
    if devices is None:
        options.add_provider(name, {key: str(value) for key, value in given.items()})
    else:
        theirs = {key: str(value) for key, value in given.items() if key not in (LIBRARY, DEVICE)}
        options.add_provider_for_devices(devices, theirs)


def _not_there(missing: list[str], present: list[str]) -> str:
    """What to say of providers that are neither built in nor plugins."""
    gpu = any(name.startswith(("CUDA", "Tensorrt")) for name in missing)
    mend = (
        'for an NVIDIA GPU: pip install "everlearn[gpu]"'
        if gpu
        else "a plugin must be registered or its package (onnxruntime-ep-...) installed, or give its path as "
        "the option 'library'"
    )
    return f"{', '.join(missing)} is not in this build of onnxruntime, which has {', '.join(present)}; {mend}"
