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

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user"
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses = engine, dict[str, int]()
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


def fake_trt(cuda: Any, engine: type[Engine] = Engine) -> Any:
    """The module ``tensorrt``, with engines of that kind."""

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            if not data.startswith(b"{"):
                self.log.log(severity.ERROR, "serialized\nengine is cut short")
                return None
            return engine(cuda, json.loads(data))

    severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = "10.3.0"
    trt.Runtime = Runtime
    trt.ILogger = type("ILogger", (), {"Severity": severity})
    trt.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    return trt
