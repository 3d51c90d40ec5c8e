"""What only a real GPU can show; skipped where there is none, or not what it takes to use it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import EdgeLearner
from everlearn_runtime.backends.gpu import NoGpu, first_gpu, free_memory
from everlearn_runtime.backends.providers import Provider
from everlearn_runtime.backends.tensorrt import TensorRT
from everlearn_runtime.backends.tensorrt.cuda import Cuda, CudaError

from . import fake_gpu

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
MakeImages = Callable[..., NDArray[np.uint8]]


@pytest.fixture(autouse=True)
def _gpu() -> None:
    try:
        first_gpu()
    except NoGpu as error:
        pytest.skip(str(error))


@pytest.fixture
def bindings() -> Any:
    return pytest.importorskip("cuda.bindings.runtime")


@pytest.fixture
def on_cuda() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is not onnxruntime-gpu")


class Context(fake_gpu.Context):
    """Gives the first twelve bytes of each image, which the GPU itself copies."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.shape is not None
        runtime, row = self.engine.cuda, int(np.prod(self.shape[1:]))
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        to, of = self.addresses["features"], self.addresses["images"]
        (status,) = runtime.cudaMemcpy2DAsync(to, 12, of, row, 12, self.shape[0], kind, stream_handle)
        return int(status) == 0

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.scratch = address


class Engine(fake_gpu.Engine):
    def create_execution_context(self, given: str | fake_gpu.RuntimeConfig) -> Context:
        return Context(self)


def pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Images whose first twelve bytes are three numbers, and these numbers."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(count, 3)).astype(np.float32)
    images = rng.integers(0, 256, (count, 8 * 8 * 3), dtype=np.uint8)
    images[:, :12] = numbers.view(np.uint8)
    return images.reshape(count, 8, 8, 3), numbers


def test_what_was_captured_runs_again_on_what_lies_there_now(bindings: Any) -> None:
    cuda = Cuda()
    host, back = cuda.host_memory(4096), cuda.host_memory(4096)
    device = cuda.device_memory(4096)

    def enqueue() -> None:
        cuda.to_device(device, host)
        cuda.to_host(back, device)

    back[:] = 0
    replay = cuda.capture(enqueue)
    assert not back.any()  # recorded, not done
    for seed in range(3):
        host[:] = np.random.default_rng(seed).integers(0, 256, 4096)
        replay()
        cuda.wait()
        np.testing.assert_array_equal(back, host)
    cuda.close()
    cuda.close()


def test_more_memory_than_there_is_is_refused_with_a_reason(bindings: Any) -> None:
    cuda = Cuda()
    with pytest.raises(CudaError, match=r"cudaMalloc: .*\(CUDA error 2\)"):
        cuda.device_memory(1 << 50)
    cuda.close()


@pytest.mark.parametrize("batches", [(1, 16), (4,)])
def test_an_engine_runs_from_fixed_memory_in_cuda_graphs(bindings: Any, batches: tuple[int, ...]) -> None:
    backend = TensorRT(fake_gpu.engine(*batches), fake_gpu.fake_trt(bindings, Engine))
    assert backend.name.endswith("CUDA graphs")
    for count in (1, 2, 16, 37, 1):
        images, numbers = pictures(count, seed=count)
        np.testing.assert_array_equal(backend.run(images), numbers)
    backend.close()
    with pytest.raises(ValueError, match="this backend is closed"):
        backend.run(pictures(1, 0)[0])


def test_threads_share_an_engine(bindings: Any) -> None:
    backend, wrong = TensorRT(fake_gpu.engine(1, 16), fake_gpu.fake_trt(bindings, Engine)), []

    def ask(seed: int) -> None:
        for turn in range(50):
            images, numbers = pictures(1 + (seed + turn) % 20, seed=1000 * seed + turn)
            if not np.array_equal(backend.run(images), numbers):
                wrong.append((seed, turn))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    backend.close()


def test_an_engine_gives_its_memory_back(bindings: Any) -> None:
    def use() -> None:
        backend = TensorRT(fake_gpu.engine(1, 16, side=1024), fake_gpu.fake_trt(bindings, Engine))
        backend.close()

    use()
    before = free_memory()
    for _ in range(20):
        use()
    assert free_memory() > before - (64 << 20)  # of 20 times 50 MB


@pytest.mark.usefixtures("on_cuda")
def test_auto_takes_the_gpu_and_learns_there_what_it_would_on_the_cpu(
    bundle: Path, make_images: MakeImages, tmp_path: Path
) -> None:
    found = {}
    for name, providers in (("gpu", None), ("cpu", [CPU])):
        backend = "auto" if providers is None else "onnxruntime"
        with EdgeLearner.open(
            bundle, backend=backend, providers=providers, state=tmp_path / f"{name}.db"
        ) as edge:
            assert (CUDA in edge.backend) == (name == "gpu")
            edge.learn(make_images("key", 5), ["key"] * 5)
            edge.learn(make_images("cup", 3), ["cup"] * 3)
            images = np.concatenate([make_images(label, 6, seed=9) for label in ("mug", "key", "cup")])
            found[name] = edge.predict(images)
    assert found["gpu"].labels == found["cpu"].labels
    np.testing.assert_allclose(found["gpu"].scores, found["cpu"].scores, rtol=2e-3, atol=2e-3)


@pytest.mark.usefixtures("on_cuda")
def test_options_of_the_provider_reach_it(bundle: Path, make_images: MakeImages) -> None:
    exactly: list[Provider] = [(CUDA, {"device_id": "0", "use_tf32": "0"}), CPU]
    nowhere: list[Provider] = [(CUDA, {"device_id": "99"}), CPU]
    images = make_images("mug", 5)
    with (
        EdgeLearner.open(bundle, backend="onnxruntime", providers=exactly) as gpu,
        EdgeLearner.open(bundle, backend="onnxruntime", providers=[CPU]) as cpu,
    ):
        np.testing.assert_allclose(gpu.predict(images).scores, cpu.predict(images).scores, rtol=1e-4)
    with pytest.raises(ValueError, match=CUDA):
        EdgeLearner.open(bundle, backend="onnxruntime", providers=nowhere)
