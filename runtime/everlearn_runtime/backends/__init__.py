"""What runs the compiled graph."""

from everlearn_runtime.backends.base import Backend
from everlearn_runtime.backends.onnxruntime import OnnxRuntime, Provider

__all__ = ["Backend", "OnnxRuntime", "Provider"]
