"""An engine at work: memory bound once, one CUDA graph a batch size."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.backends.base import check_features
from everlearn_runtime.backends.tensorrt import library
from everlearn_runtime.backends.tensorrt.building import build_engine, graph_of, target
from everlearn_runtime.backends.tensorrt.cache import EngineCache, KernelFile
from everlearn_runtime.backends.tensorrt.cuda import Cuda, CudaError

if TYPE_CHECKING:
    from everlearn_runtime.bundle import Bundle

# A larger batch is filled up with whatever lies there, rather than run as many small ones, from here on.
FILLED = 1 / 4


def open_engine(bundle: Bundle, *, build: bool = True, cache: str | Path | None = None) -> TensorRT:
    """Run a bundle's graph with TensorRT: with the newest engine in the cache for this graph and GPU.

    Args:
        bundle: Whose graph.
        build: Build one if there is none, in minutes.
        cache: Folder of engines.

    Raises:
        MissingExtra: TensorRT or cuda-bindings is not installed.
        ValueError: There is no engine and ``build`` is False, no GPU, or the engine cannot be built
            or loaded.
    """
    trt = library.load()
    engines = EngineCache(cache)
    for key in engines.find(graph_of(bundle), library.says(trt), target(trt)):
        if (engine := engines.get(key)) is not None:
            return TensorRT(engine, trt, engines.kernels(key))
    if not build:
        raise ValueError(
            f"{library.says(trt)} has no engine of this graph for this GPU yet: everlearn-device build "
            f"{bundle.path}"
        )
    key = build_engine(bundle, cache=cache).key
    engine = engines.get(key)
    assert engine is not None  # it was just put there
    return TensorRT(engine, trt, engines.kernels(key))


class TensorRT:
    """An engine of fixed batches: uint8 NHWC images to features.

    The engine's scratch memory, its input and its output are taken once and bound for good; all batch
    sizes share them, so that they run one at a time. For each size the copy to the GPU, the engine and
    the copy back are captured as one CUDA graph, where the engine allows it. Safe to share between
    threads.

    Args:
        engine: As `build_engine` made it on this device. It is executable code: never one from elsewhere.
        trt: The library, see `everlearn_runtime.backends.tensorrt.library.load`.
        kernels: Where the kernels are kept that TensorRT-RTX compiles when an engine first runs, which takes
            seconds; None: nowhere. TensorRT has none.

    Raises:
        MissingExtra: cuda-bindings is not installed.
        ValueError: The engine is another library's, GPU's or graph's, or memory ran out.
    """

    def __init__(self, engine: bytes, trt: Any, kernels: KernelFile | None = None) -> None:
        cuda = Cuda()
        self._left = weakref.finalize(self, cuda.close)
        self._turn = threading.Lock()
        try:
            self._load(engine, trt, cuda, kernels)
        except BaseException:
            self._left()
            raise

    def _load(self, data: bytes, trt: Any, cuda: Cuda, kernels: KernelFile | None) -> None:
        log = library.make_log(trt)
        self._runtime = trt.Runtime(log)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            reason = "; ".join(log.errors[-2:]) or "no reason given"
            raise ValueError(f"{library.says(trt)} cannot load this engine: {reason}")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(f"the engine has inputs {inputs} and outputs {outputs}; one each is expected")
        self._input, self._output = inputs[0], outputs[0]
        shapes = [
            tuple(engine.get_tensor_profile_shape(self._input, profile)[2])
            for profile in range(engine.num_optimization_profiles)
        ]
        self._image = shapes[0][1:]
        self.batches = tuple(shape[0] for shape in shapes)

        width = int(engine.get_tensor_shape(self._output)[-1])
        most = max(self.batches)
        images = most * int(np.prod(self._image))
        scratch = cuda.device_memory(engine.device_memory_size_v2)
        self._device = (cuda.device_memory(images), cuda.device_memory(4 * most * width))
        self._images = cuda.host_memory(images).reshape(most, *self._image)
        self._features = cuda.host_memory(4 * most * width).view(np.float32).reshape(most, width)
        self._cuda, self._engine, self._log = cuda, engine, log
        self._contexts: dict[int, Any] = {}
        given: Any = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        compiled = _Compiled(engine, trt, kernels) if library.is_rtx(trt) else None
        if compiled is not None:
            given = compiled.config
        for profile, shape in enumerate(shapes):
            context = engine.create_execution_context(given)
            if context is None:
                raise ValueError(f"no context for the engine: {'; '.join(log.errors[-2:])}")
            context.set_optimization_profile_async(profile, cuda.stream)
            cuda.wait()
            context.set_device_memory(scratch, engine.device_memory_size_v2)
            context.set_input_shape(self._input, shape)
            for name, address in zip((self._input, self._output), self._device, strict=True):
                context.set_tensor_address(name, address)
            self._contexts[shape[0]] = context
        self._steps = {batch: self._capture(batch) for batch in self.batches}
        if compiled is not None:
            compiled.keep()  # now that each batch has run
        sizes = " and ".join(map(str, sorted(self.batches)))
        captured = "CUDA graphs" if all(captured for _, captured in self._steps.values()) else "no CUDA graph"
        self._name = f"{library.says(trt)}, batches of {sizes}, {captured}"

    @property
    def name(self) -> str:
        """Version, batch sizes, and whether CUDA graphs were captured."""
        return self._name

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of a batch of any size, in parts of the engine's own sizes.

        Args:
            images: uint8 (B, H, W, 3), B at least 1.

        Returns:
            float32 (B, F).

        Raises:
            ValueError: The backend is closed, the engine does not take these images, or it failed, or
                gave NaN or infinite features.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self._image or not len(images):
            raise ValueError(
                f"images are {images.dtype} {images.shape}; the engine takes uint8 (B, "
                f"{', '.join(map(str, self._image))}), B at least 1"
            )
        with self._turn:
            if not self._left.alive:
                raise ValueError("this backend is closed; make a new one")
            features = np.empty((len(images), self._features.shape[1]), np.float32)
            start = 0
            for count, batch in parts(len(images), self.batches):
                self._images[:count] = images[start : start + count]
                self._steps[batch][0]()
                self._cuda.wait()
                features[start : start + count] = self._features[:count]
                start += count
        return check_features(features, len(images))

    def close(self) -> None:
        """Give the GPU's memory back."""
        with self._turn:
            self._contexts.clear()
            self._left()

    def _capture(self, batch: int) -> tuple[Callable[[], None], bool]:
        """What runs a batch, as one CUDA graph if that can be, and whether it could."""

        def enqueue() -> None:
            self._enqueue(batch)

        enqueue()  # an engine settles what is left open when it first runs, which no graph can hold
        self._cuda.wait()
        able = getattr(self._contexts[batch], "is_stream_capturable", None)
        if able is not None and not able(self._cuda.stream):
            return enqueue, False
        try:
            return self._cuda.capture(enqueue), True
        except CudaError:
            return enqueue, False

    def _enqueue(self, batch: int) -> None:
        to, back = self._device
        self._cuda.to_device(to, self._images[:batch])
        if not self._contexts[batch].execute_async_v3(self._cuda.stream):
            raise CudaError(f"the engine failed: {'; '.join(self._log.errors[-2:]) or 'no reason given'}")
        self._cuda.to_host(self._features[:batch], back)


class _Compiled:
    """How TensorRT-RTX compiles an engine's kernels on this GPU, and the cache that it puts them into.

    Args:
        engine: The engine.
        trt: The library.
        kernels: What an earlier process has kept, and where to keep more; None: nowhere.
    """

    def __init__(self, engine: Any, trt: Any, kernels: KernelFile | None) -> None:
        self.config = engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # All at the first run. By default a makeshift runs meanwhile, and a CUDA graph would hold on to it.
        self.config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._cache: Any = self.config.create_runtime_cache()
        self._kernels = kernels
        self._known = None if kernels is None else kernels.read()
        # Refused, and left empty, if it is of another version, GPU or driver.
        if self._known is not None and not self._cache.deserialize(self._known):
            self._known = None
        self.config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Keep what was compiled, if that is more than was known."""
        if self._kernels is not None:
            kernels = bytes(self._cache.serialize())
            if kernels != self._known:
                self._kernels.write(kernels)


def parts(count: int, batches: Sequence[int]) -> list[tuple[int, int]]:
    """How so many images go through an engine of these batches: pairs of images and the batch they go in.

    >>> parts(37, (1, 16))
    [(16, 16), (16, 16), (5, 16)]
    >>> parts(2, (1, 16))
    [(1, 1), (1, 1)]
    """
    found, sizes = [], sorted(batches)
    while count:
        whole = [size for size in sizes if size <= count]
        above = [size for size in sizes if size > count]
        if whole and not (above and whole[-1] < count and count >= FILLED * above[0]):
            size = whole[-1]
        else:
            size = above[0]
        found.append((min(size, count), size))
        count -= min(size, count)
    return found
