"""What is done with an engine, on a stand-in for the GPU: see `fake_gpu`."""

from __future__ import annotations

import gc
import sys
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import MissingExtra
from everlearn_runtime.backends.tensorrt import TensorRT
from everlearn_runtime.backends.tensorrt.running import parts

from .fake_gpu import FakeCuda, engine, expected, fake_trt


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake, package = FakeCuda(), ModuleType("cuda.bindings")
    package.runtime = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("batches", [(1, 16), (4,), (1, 2, 8)])
def test_any_number_of_images_goes_through(cuda: FakeCuda, batches: tuple[int, ...]) -> None:
    backend = TensorRT(engine(*batches), fake_trt(cuda))
    for count in (1, 2, 3, 5, 16, 17, 40):
        images = pictures(count, seed=count)
        np.testing.assert_array_equal(backend.run(images), expected(images))


def test_memory_is_bound_once_and_each_batch_is_one_graph(cuda: FakeCuda) -> None:
    backend = TensorRT(engine(1, 16), fake_trt(cuda))
    assert backend.name == "tensorrt 10.3.0, batches of 1 and 16, CUDA graphs"
    before = cuda.calls.copy()
    assert before["cudaMalloc"] == 3  # scratch space, input and output of all batches
    assert before["cudaMallocHost"] == 2
    assert before["cudaGraphInstantiate"] == 2
    for count in (1, 1, 16, 37):
        backend.run(pictures(count))
    after = cuda.calls - before
    assert after == {"cudaGraphLaunch": 6, "cudaStreamSynchronize": 6}  # and no call more


@pytest.mark.parametrize("broken", ["not capturable", "fails when captured"])
def test_an_engine_that_cannot_be_captured_runs_all_the_same(cuda: FakeCuda, broken: str) -> None:
    backend = TensorRT(engine(1, 16, broken=broken), fake_trt(cuda))
    assert backend.name == "tensorrt 10.3.0, batches of 1 and 16, no CUDA graph"
    np.testing.assert_array_equal(backend.run(pictures(5)), expected(pictures(5)))
    assert cuda.calls["cudaGraphLaunch"] == 0


@pytest.mark.parametrize("left", ["closed", "dropped"])
def test_what_was_taken_is_given_back(cuda: FakeCuda, left: str) -> None:
    backend: TensorRT | None = TensorRT(engine(1, 16), fake_trt(cuda))
    assert cuda.live > 0
    if left == "closed":
        assert backend is not None
        for _ in range(2):
            backend.close()
        assert cuda.live == 0
        with pytest.raises(ValueError, match="this backend is closed"):
            backend.run(pictures(1))
    backend = None
    gc.collect()
    assert cuda.live == 0
    assert not cuda.blocks


@pytest.mark.parametrize("call", ["cudaStreamCreate", "cudaMalloc", "cudaMallocHost"])
def test_what_cuda_refuses(cuda: FakeCuda, call: str) -> None:
    cuda.fails.add(call)
    with pytest.raises(ValueError, match=rf"{call}: no_memory \(CUDA error 2\)"):
        TensorRT(engine(1, 16), fake_trt(cuda))
    gc.collect()
    assert cuda.live == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"xx", "tensorrt 10.3.0 cannot load this engine: serialized engine is cut short"),
        (engine(1, broken="fails"), "the engine failed: no reason given"),
    ],
)
def test_an_engine_that_does_not_work(cuda: FakeCuda, data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TensorRT(data, fake_trt(cuda))
    gc.collect()
    assert cuda.live == 0


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 9, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3))]
)
def test_images_that_do_not_fit(cuda: FakeCuda, images: NDArray[Any]) -> None:
    backend = TensorRT(engine(1), fake_trt(cuda))
    with pytest.raises(ValueError, match=r"the engine takes uint8 \(B, 8, 8, 3\), B at least 1"):
        backend.run(images)


def test_features_that_are_not_finite(cuda: FakeCuda) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        TensorRT(engine(1, broken="nan"), fake_trt(cuda)).run(pictures(1))


def test_threads_take_turns(cuda: FakeCuda) -> None:
    backend = TensorRT(engine(1, 4), fake_trt(cuda))
    wrong: list[int] = []

    def work(seed: int) -> None:
        images = pictures(9, seed)
        for _ in range(30):
            if not np.array_equal(backend.run(images), expected(images)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_the_bindings_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(
        MissingExtra, match=r"\(package cuda-bindings\) needs: pip install .everlearn\[tensorrt\]"
    ):
        TensorRT(b"", fake_trt(FakeCuda()))


@pytest.mark.parametrize("batches", [(1,), (16,), (1, 16), (2, 3, 5), (4, 32)])
def test_parts_hold_all_images_and_are_rarely_filled_up(batches: tuple[int, ...]) -> None:
    for count in range(1, 100):
        found = parts(count, batches)
        assert sum(images for images, _ in found) == count
        for images, batch in found:
            assert batch in batches
            assert images == batch or 4 * images >= batch or batch == min(batches)


def test_the_real_bindings_have_all_that_is_called() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="the extra trt-rtx is not installed")
    calls = [
        name[1:] for name in vars(FakeCuda) if name[:1] == "_" and name[1].isupper() and name != "_Destroy"
    ]
    assert len(calls) > 10
    assert [name for name in calls if not callable(getattr(runtime, f"cuda{name}"))] == []
    assert int(runtime.cudaStream_t(7)) == 7
    for kind in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        for name in vars(getattr(FakeCuda, kind)):
            assert hasattr(getattr(runtime, kind), name)


def test_the_real_library_has_all_that_is_called() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="the extra trt-rtx is not installed")
    from .fake_gpu import Context, Engine

    for ours, theirs in ((Engine, trt.ICudaEngine), (Context, trt.IExecutionContext)):
        names = [name for name in vars(ours) if name[0] != "_"]
        assert [name for name in names if not hasattr(theirs, name)] == []
    assert hasattr(trt.TensorIOMode, "INPUT")
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
