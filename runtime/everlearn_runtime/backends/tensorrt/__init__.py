"""TensorRT: engines built on the device that runs them, kept in a cache, run from fixed memory."""

from everlearn_runtime.backends.tensorrt.building import BATCHES, Built, build_engine
from everlearn_runtime.backends.tensorrt.running import TensorRT, open_engine

__all__ = ["BATCHES", "Built", "TensorRT", "build_engine", "open_engine"]
