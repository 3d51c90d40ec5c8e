"""What is done with an engine, on a stand-in for the GPU: see `fake_gpu`."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import MissingExtra
from everlearn_runtime.backends.tensorrt import TensorRT, library, open_engine, running
from everlearn_runtime.backends.tensorrt.cache import EngineCache, KernelFile, Key
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


# What TensorRT-RTX compiles when an engine first runs


def kept(tmp_path: Path) -> KernelFile:
    return KernelFile(tmp_path / "engine.kernels")


def test_kernels_are_compiled_once(cuda: FakeCuda, tmp_path: Path) -> None:
    trt = fake_trt(cuda, rtx=True)
    for compiled in ([1, 16], []):
        cuda.compiled.clear()
        backend = TensorRT(engine(1, 16), trt, kept(tmp_path))
        assert backend.name == "tensorrt_rtx 1.7.1, batches of 1 and 16, CUDA graphs"
        np.testing.assert_array_equal(backend.run(pictures(17)), expected(pictures(17)))
        backend.close()
        assert cuda.compiled == compiled
        assert [path.name for path in tmp_path.iterdir()] == ["engine.kernels"]
    cuda.compiled.clear()
    TensorRT(engine(1, 16), trt).close()  # kept nowhere
    assert cuda.compiled == [1, 16]


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped", "empty", "another driver", "no file"])
def test_kernels_that_cannot_be_taken_are_compiled_anew(cuda: FakeCuda, tmp_path: Path, damage: str) -> None:
    trt, file = fake_trt(cuda, rtx=True), kept(tmp_path)
    TensorRT(engine(2), trt, file).close()
    whole = file.path.read_bytes()
    if damage == "another driver":
        cuda.driver = "590.2"
    elif damage == "no file":
        file.path.unlink()
    else:
        flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
        file.path.write_bytes({"cut short": whole[:-3], "a bit flipped": flipped, "empty": b""}[damage])
    for compiled in ([2], []):  # and kept, in place of what was there
        cuda.compiled.clear()
        TensorRT(engine(2), trt, file).close()
        assert cuda.compiled == compiled


def test_an_engine_runs_where_no_kernels_can_be_kept(cuda: FakeCuda, tmp_path: Path) -> None:
    backend = TensorRT(engine(2), fake_trt(cuda, rtx=True), KernelFile(tmp_path / "gone" / "engine.kernels"))
    np.testing.assert_array_equal(backend.run(pictures(2)), expected(pictures(2)))
    (tmp_path / "engine.kernels").mkdir()  # in the way
    TensorRT(engine(2), fake_trt(cuda, rtx=True), kept(tmp_path)).close()
    assert [path.name for path in tmp_path.iterdir()] == ["engine.kernels"]


def test_kernels_lie_beside_their_engine_and_go_with_it(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt, cache = fake_trt(cuda, rtx=True), EngineCache(tmp_path / "engines")
    key = Key("0" * 64, "tensorrt_rtx 1.7.1", "SM86", (1, 4), "fp32", None, 3)

    def put() -> None:
        with cache.building(key) as (part, _):
            (part / "features.engine").write_bytes(engine(1, 4))
            cache.put(key, part / "features.engine")

    put()
    monkeypatch.setattr(library, "load", lambda: trt)
    monkeypatch.setattr(running, "target", lambda library: "SM86")
    monkeypatch.setattr(running, "graph_of", lambda bundle: key.graph)
    open_engine(None, build=False, cache=cache.folder).close()  # type: ignore[arg-type]
    assert cuda.compiled == [1, 4]
    assert (cache.folder / f"{key.name}.kernels").exists()
    open_engine(None, build=False, cache=cache.folder).close()  # type: ignore[arg-type]
    assert cuda.compiled == [1, 4]
    put()  # another engine of the same key
    assert not (cache.folder / f"{key.name}.kernels").exists()


def test_tensorrt_itself_compiles_when_it_builds(cuda: FakeCuda, tmp_path: Path) -> None:
    TensorRT(engine(2), fake_trt(cuda), kept(tmp_path)).close()
    assert not cuda.compiled
    assert not list(tmp_path.iterdir())


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
    from .fake_gpu import Context, Engine, RuntimeCache, RuntimeConfig

    for ours, theirs in (
        (Engine, trt.ICudaEngine),
        (Context, trt.IExecutionContext),
        (RuntimeConfig, trt.IRuntimeConfig),
        (RuntimeCache, trt.IRuntimeCache),
    ):
        names = [name for name in vars(ours) if name[0] != "_" and name != "compile"]
        assert [name for name in names if not hasattr(theirs, name)] == []
    assert hasattr(trt.TensorIOMode, "INPUT")
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert "runtime_config: tensorrt_rtx" in trt.ICudaEngine.create_execution_context.__doc__
    assert hasattr(trt.IHostMemory, "__buffer__") or "nbytes" in vars(trt.IHostMemory)
