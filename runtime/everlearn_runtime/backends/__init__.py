"""What runs the compiled graph."""

from everlearn_runtime.backends.base import Adaptable, Backend
from everlearn_runtime.backends.choice import BACKENDS, open_backend
from everlearn_runtime.backends.onnxruntime import OnnxRuntime
from everlearn_runtime.backends.providers import Provider

__all__ = ["BACKENDS", "Adaptable", "Backend", "OnnxRuntime", "Provider", "open_backend"]
