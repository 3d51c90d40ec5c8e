"""TensorRT itself, by either of its names: ``tensorrt`` (10 and 11), or ``tensorrt_rtx``."""

from __future__ import annotations

import importlib
import platform
from types import ModuleType
from typing import Any

from everlearn_runtime.errors import MissingExtra

NAMES = ("tensorrt", "tensorrt_rtx")
OLDEST = 10  # of TensorRT: the first whose strongly typed networks have all that a ViT needs


def load() -> Any:
    """The module, TensorRT before TensorRT-RTX.

    Raises:
        MissingExtra: Neither is installed.
        ValueError: A TensorRT that is too old.
    """
    for name in NAMES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if name == "tensorrt" and int(module.__version__.split(".")[0]) < OLDEST:
            raise ValueError(f"TensorRT {module.__version__} is too old; {OLDEST}.0 or a newer one is needed")
        return module
    where = (
        "which JetPack has, in a venv made with --system-site-packages"
        if platform.machine() == "aarch64"
        else "or with TensorRT-RTX, extra trt-rtx"
    )
    raise MissingExtra(f"running a bundle with TensorRT ({where})", "tensorrt")


def is_rtx(trt: ModuleType) -> bool:
    """Whether it is TensorRT-RTX, whose engines go with a compute capability rather than with one GPU."""
    return hasattr(trt, "ComputeCapability")


def says(trt: ModuleType) -> str:
    """Name and version, for people and for keys: ``"tensorrt 10.3.0"``."""
    return f"{trt.__name__} {trt.__version__}"


def make_log(trt: Any) -> Any:
    """A logger that prints nothing and keeps the errors, as ``errors``; TensorRT's own prints megabytes."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(text.split()))

    return Log()
