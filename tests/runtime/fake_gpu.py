"""A stand-in for CUDA and for TensorRT's running part, for what the backend does with them.

Memory is memory of the host, a stream does at once what it is given unless it is being captured, and an
"engine" is a note of its batches that gives each image's mean colour. That the real libraries behave so
can only be seen on a GPU.
"""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Status = IntEnum("Status", {"OK": 0, "NO_MEMORY": 2, "NOT_CAPTURED": 900})
STREAM = 77


class FakeCuda(ModuleType):
    """``cuda.bindings.runtime``: each call gives a status and what it returns."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: Counter[str] = Counter()
        self.blocks: dict[int, Any] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.fails: set[str] = set()
        self.live = 0  # streams, graphs and blocks that are not given back
        self.driver = "580.1"
        self.compiled: list[int] = []  # batches whose kernels TensorRT-RTX has compiled

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        work = getattr(FakeCuda, "_" + name[4:])

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] += 1
            if name in self.fails:
                return (Status.NO_MEMORY, None)
            result = work(self, *arguments)
            return result if isinstance(result, tuple) else (Status.OK, result)

        return call

    def put(self, work: Callable[[], None]) -> None:
        """Do it, or write it down while a capture goes on."""
        work() if self.recording is None else self.recording.append(work)

    def at(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes that lie within one block."""
        for start, block in self.blocks.items():
            if start <= address and address + nbytes <= start + len(block):
                return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        raise AssertionError(f"{nbytes} bytes at {address} are nobody's")

    def _Malloc(self, nbytes: int) -> int:  # noqa: N802
        block = (ctypes.c_uint8 * nbytes)()
        self.blocks[ctypes.addressof(block)] = block
        self.live += 1
        return ctypes.addressof(block)

    _MallocHost = _Malloc

    def _Free(self, address: int) -> tuple[Status]:  # noqa: N802
        del self.blocks[address]
        return self._Destroy(address)

    _FreeHost = _Free

    def _Destroy(self, _: object) -> tuple[Status]:  # noqa: N802
        self.live -= 1
        return (Status.OK,)

    _StreamDestroy = _GraphDestroy = _GraphExecDestroy = _Destroy

    def _StreamCreate(self) -> int:  # noqa: N802
        self.live += 1
        return STREAM

    def _MemcpyAsync(self, to: int, of: int, nbytes: int, kind: int, stream: int) -> tuple[Status]:  # noqa: N802
        assert stream == STREAM

        def copy() -> None:
            self.at(to, nbytes)[:] = self.at(of, nbytes)

        self.put(copy)
        return (Status.OK,)

    def _StreamSynchronize(self, stream: int) -> tuple[Status]:  # noqa: N802
        assert self.recording is None, "nothing can be waited for within a capture"
        return (Status.OK,)

    def _StreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:  # noqa: N802
        self.recording = []
        return (Status.OK,)

    def _StreamEndCapture(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        recorded, self.recording = self.recording, None
        self.live += 1
        return (Status.OK, recorded)

    def _GraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        self.live += 1
        return graph

    def _GraphLaunch(self, graph: Any, stream: int) -> tuple[Status]:  # noqa: N802
        for work in graph:
            work()
        return (Status.OK,)

    def _GetErrorString(self, status: Status) -> bytes:  # noqa: N802
        return status.name.lower().encode()


class Engine:
    """What the engine's bytes say, see `engine`."""

    device_memory_size_v2 = 512
    num_io_tensors = 2

    def __init__(self, cuda: FakeCuda, said: dict[str, Any]) -> None:
        self.cuda, self.batches, self.side = cuda, said["batches"], said["side"]
        self.broken = said["broken"]
        self.num_optimization_profiles = len(self.batches)

    def get_tensor_name(self, index: int) -> str:
        return ("images", "features")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "images" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, self.side, self.side, 3) if name == "images" else (-1, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(self.batches[profile], self.side, self.side, 3)] * 3

    def create_execution_context(self, given: str | RuntimeConfig) -> Context:
        config = given if isinstance(given, RuntimeConfig) else None
        assert (given if config is None else config.strategy) == "user"
        return Context(self, config)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self)


class RuntimeConfig:
    """TensorRT-RTX's: how kernels are compiled when an engine runs."""

    dynamic_shapes_kernel_specialization_strategy = "lazy"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.strategy = "static"
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.engine.cuda)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """TensorRT-RTX's: for which batches kernels are there, with the driver that they are for."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.batches: list[int] = []

    def compile(self, batch: int) -> None:
        if batch not in self.batches:
            self.cuda.compiled.append(batch)
            self.batches.append(batch)

    def serialize(self) -> memoryview:
        return memoryview(json.dumps([self.cuda.driver, self.batches]).encode())

    def deserialize(self, blob: bytes) -> bool:
        driver, batches = json.loads(blob)
        if driver == self.cuda.driver:
            self.batches = batches
        return bool(driver == self.cuda.driver)


class Context:
    def __init__(self, engine: Engine, config: RuntimeConfig | None = None) -> None:
        self.engine, self.addresses = engine, dict[str, int]()
        self.config = config
        self.shape: tuple[int, ...] | None = None
        self.scratch: int | None = None
        self.profile: int | None = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.engine.cuda.at(address, nbytes)
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self.engine.broken != "not capturable")

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        assert self.scratch is not None
        assert self.profile is not None
        assert self.shape is not None
        assert self.shape[0] == self.engine.batches[self.profile]
        if self.engine.broken == "fails":
            return False
        if self.engine.broken == "fails when captured" and self.engine.cuda.recording is not None:
            return False
        if self.config is not None:
            assert self.config.dynamic_shapes_kernel_specialization_strategy == "eager"
            assert self.config.cache is not None
            self.config.cache.compile(self.shape[0])
        self.engine.cuda.put(self._work)
        return True

    def _work(self) -> None:
        assert self.shape is not None
        size = int(np.prod(self.shape))
        images = self.engine.cuda.at(self.addresses["images"], size).reshape(self.shape)
        features = self.engine.cuda.at(self.addresses["features"], self.shape[0] * 12).view(np.float32)
        features[:] = expected(images).ravel()
        if self.engine.broken == "nan":
            features[0] = np.nan


def expected(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the engine gives."""
    means: NDArray[np.float32] = images.mean(axis=(1, 2), dtype=np.float32)
    return means


def engine(*batches: int, side: int = 8, broken: str = "") -> bytes:
    """The bytes of an engine."""
    return json.dumps({"batches": batches, "side": side, "broken": broken}).encode()


def fake_trt(cuda: Any, engine: type[Engine] = Engine, *, rtx: bool = False) -> Any:
    """The module ``tensorrt``, or ``tensorrt_rtx``, with engines of that kind."""

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            if not data.startswith(b"{"):
                self.log.log(severity.ERROR, "serialized\nengine is cut short")
                return None
            return engine(cuda, json.loads(data))

    severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)
    trt: Any = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    trt.__version__ = "1.7.1" if rtx else "10.3.0"
    if rtx:
        trt.ComputeCapability = SimpleNamespace(SM86=86)
        trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager")
    trt.Runtime = Runtime
    trt.ILogger = type("ILogger", (), {"Severity": severity})
    trt.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    return trt
