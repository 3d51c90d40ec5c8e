"""The few calls of CUDA that running an engine needs, through NVIDIA's own bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import MissingExtra


class CudaError(ValueError):
    """CUDA refused a call."""


class Cuda:
    """Memory, one stream and captured graphs on the first GPU.

    All that is taken is given back by :meth:`close`.

    Raises:
        MissingExtra: ``cuda-bindings`` is not installed.
        CudaError: There is no GPU, or not enough memory.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise MissingExtra("running an engine (package cuda-bindings)", "tensorrt") from None
        self._cuda: Any = runtime
        self._give_back: list[Callable[[], object]] = []
        self.stream: int = 0
        handle = self._call("cudaStreamCreate")
        self._give_back.append(lambda: self._call("cudaStreamDestroy", handle))
        self._handle, self.stream = handle, int(handle)

    def device_memory(self, nbytes: int) -> int:
        """The address of memory on the GPU."""
        address = self._call("cudaMalloc", max(nbytes, 1))
        self._give_back.append(lambda: self._call("cudaFree", address))
        return int(address)

    def host_memory(self, nbytes: int) -> NDArray[np.uint8]:
        """Memory of the host that the GPU copies from and to by itself."""
        address = self._call("cudaMallocHost", max(nbytes, 1))
        self._give_back.append(lambda: self._call("cudaFreeHost", address))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(address)))

    def to_device(self, address: int, array: NDArray[Any]) -> None:
        """Copy to the GPU, in the stream's turn."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._handle)

    def to_host(self, array: NDArray[Any], address: int) -> None:
        """Copy from the GPU, in the stream's turn."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._handle)

    def wait(self) -> None:
        """Until all that the stream was given is done."""
        self._call("cudaStreamSynchronize", self._handle)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Record what a call puts into the stream, without doing it.

        Returns:
            What does all of it at once.

        Raises:
            CudaError: Something in it cannot be recorded.
        """
        # Of this thread: what others allocate meanwhile does not spoil it.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._handle, mode)
        try:
            enqueue()
        except BaseException:
            self._cuda.cudaStreamEndCapture(self._handle)  # the stream is of use again after it
            raise
        graph = self._call("cudaStreamEndCapture", self._handle)
        try:
            ready = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        self._give_back.append(lambda: self._call("cudaGraphExecDestroy", ready))
        return lambda: self._call("cudaGraphLaunch", ready, self._handle)

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        while self._give_back:
            with suppress(CudaError):  # at the end of a process the driver may be gone first
                self._give_back.pop()()

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._cuda, name)(*arguments)
        if int(status):
            _, text = self._cuda.cudaGetErrorString(status)
            said = text.decode(errors="replace") if isinstance(text, bytes) else text
            raise CudaError(f"{name}: {said} (CUDA error {int(status)})")
        return values[0] if values else None
