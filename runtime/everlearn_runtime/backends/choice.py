"""Which backend runs a bundle's graph: what the device has, or what was asked for."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from everlearn_runtime.backends.base import Backend
from everlearn_runtime.backends.gpu import NoGpu, first_gpu
from everlearn_runtime.backends.onnxruntime import CPU, OnnxRuntime
from everlearn_runtime.backends.providers import Provider, preload, why_not
from everlearn_runtime.errors import MissingExtra

if TYPE_CHECKING:
    from everlearn_runtime.bundle import Bundle

BACKENDS = ("auto", "onnxruntime", "tensorrt")
CUDA = "CUDAExecutionProvider"


def open_backend(
    bundle: Bundle,
    backend: str = "auto",
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
) -> Backend:
    """Open a bundle's graph on the best that is there, or on what is asked for.

    ``"auto"`` takes TensorRT if `everlearn-device build` has made an engine of this graph for this GPU,
    else ONNX Runtime on the GPU, else on the CPU. Where ONNX Runtime was installed for a GPU, or TensorRT
    is there, and the graph runs on the CPU all the same, a warning says why.

    Args:
        bundle: Whose graph.
        backend: ``"auto"``; ``"onnxruntime"``; or ``"tensorrt"``, which builds the engine first if there is
            none, in minutes.
        providers: ONNX Runtime execution providers, the preferred one first; not with ``"tensorrt"``.
        threads: CPU threads inside an operator; None: all cores.

    Raises:
        MissingExtra: The backend is not installed.
        BundleError: The graph cannot be loaded.
        ValueError: No such backend or provider, or it cannot be used here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; give one of {', '.join(map(repr, BACKENDS))}")
    if backend == "tensorrt":
        if providers is not None:
            raise ValueError(
                "providers belong to ONNX Runtime; leave them out with backend='tensorrt', or give "
                "backend='onnxruntime' for its own TensorrtExecutionProvider"
            )
        from everlearn_runtime.backends.tensorrt import open_engine

        return open_engine(bundle)
    if providers is not None:
        return OnnxRuntime(bundle.features, providers, threads)
    reasons: list[str] = []
    if backend == "auto" and (engine := _engine(bundle, reasons)) is not None:
        return engine
    if _built_for_cuda() and (session := _cuda(bundle, threads, reasons)) is not None:
        return session
    if reasons:
        warnings.warn(f"the graph runs on the CPU: {'; '.join(reasons)}", RuntimeWarning, stacklevel=3)
    return OnnxRuntime(bundle.features, (CPU,), threads)


def _engine(bundle: Bundle, reasons: list[str]) -> Backend | None:
    """The engine that was built for this graph and GPU; None if there is none."""
    if not any(map(importlib.util.find_spec, ("tensorrt", "tensorrt_rtx"))):
        return None
    try:
        first_gpu()
    except NoGpu:
        return None
    from everlearn_runtime.backends.tensorrt import open_engine

    try:
        return open_engine(bundle, build=False)
    except (ValueError, MissingExtra) as error:
        reasons.append(str(error))
    return None


def _built_for_cuda() -> bool:
    try:
        import onnxruntime
    except ImportError:
        return False
    return CUDA in onnxruntime.get_available_providers()


def _cuda(bundle: Bundle, threads: int | None, reasons: list[str]) -> Backend | None:
    """The graph on onnxruntime-gpu; None if that cannot be, which would fill its log with errors if tried."""
    import onnxruntime

    preload(onnxruntime, (CUDA,))
    try:
        if (reason := why_not(onnxruntime, CUDA)) is None:
            return OnnxRuntime(bundle.features, (CUDA, CPU), threads)
        reasons.append(f"{CUDA} cannot be used: {reason}")
    except ValueError as error:
        reasons.append(str(error))
    return None
