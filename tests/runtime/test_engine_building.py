"""Engines: built by the real TensorRT-RTX where it is installed, and kept where nobody else can write."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from everlearn_runtime import LDA, Bundle, EdgeLearner, MissingExtra
from everlearn_runtime.backends import gpu
from everlearn_runtime.backends.tensorrt import build_engine, building, library, open_engine
from everlearn_runtime.backends.tensorrt.cache import EngineCache, Key
from everlearn_runtime.backends.tensorrt.network import Request, build, parse
from everlearn_runtime.cli import main

KEY = Key("0" * 64, "tensorrt 10.3.0", "Orin, SM87", (1, 16), "fp16", None, 3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, to be."""
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "engines"))
    return tmp_path / "engines"


@pytest.fixture
def rtx(folder: Path) -> Path:
    """The cache's folder, where TensorRT-RTX is there to build."""
    pytest.importorskip("tensorrt_rtx", reason="the extra trt-rtx is not installed")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def _log() -> Any:
    return library.make_log(sys.modules["tensorrt_rtx"])


def put(cache: EngineCache, key: Key, data: bytes = b"engine") -> None:
    with cache.building(key) as (part, _):
        (part / "features.engine").write_bytes(data)
        cache.put(key, part / "features.engine")


def test_an_engine_is_found_by_what_it_was_made_for(folder: Path) -> None:
    cache = EngineCache()
    assert cache.get(KEY) is None
    put(cache, KEY)
    other = replace(KEY, batches=(8,))
    time.sleep(0.01)
    put(cache, other, b"other")
    assert (cache.get(KEY), cache.get(other)) == (b"engine", b"other")
    assert cache.find(KEY.graph, KEY.library, KEY.gpu) == [other, KEY]  # the newest first
    changes: list[dict[str, Any]] = [
        {"graph": "1" * 64},
        {"library": "tensorrt 10.3.1"},
        {"gpu": "Orin, SM86"},
        {"batches": (1,)},
        {"precision": "int8"},
        {"memory": 64},
        {"level": 2},
    ]
    for change in changes:
        assert cache.get(replace(KEY, **change)) is None
    for graph, name, where in (
        ("1", KEY.library, KEY.gpu),
        (KEY.graph, "2", KEY.gpu),
        (KEY.graph, KEY.library, "3"),
    ):
        assert cache.find(graph, name, where) == []


@pytest.mark.parametrize("what", ["engine", "json"])
def test_an_engine_that_is_not_what_was_built_is_not_taken(folder: Path, what: str) -> None:
    cache = EngineCache()
    put(cache, KEY)
    path = folder / f"{KEY.name}.{what}"
    path.write_bytes(path.read_bytes().replace(b"e", b"f"))
    assert cache.get(KEY) is None
    path.unlink()
    assert cache.get(KEY) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows closes a user's folders to others itself")
def test_a_folder_where_others_could_put_an_engine_is_refused(folder: Path, tmp_path: Path) -> None:
    put(EngineCache(), KEY)
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(folder)
    folder.chmod(0o770)
    for path in (folder, tmp_path / "link"):
        with pytest.raises(ValueError, match=f"must be a folder of yours .* chmod 700 {path}"):
            EngineCache(path)


def test_what_a_build_that_broke_off_left_goes(folder: Path) -> None:
    cache = EngineCache()

    def interrupted() -> None:
        with cache.building(KEY) as (part, _):
            (part / "half").write_bytes(b"half")
            with pytest.raises(ValueError, match="another process is building this"), cache.building(KEY):
                pass
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(folder) == [".lock"]
    (folder / f"{KEY.name}.part").mkdir()
    (folder / f"{KEY.name}.part" / "half").write_bytes(b"half")
    with cache.building(KEY) as (part, _):
        assert list(part.iterdir()) == []


def test_an_engine_is_built_once(
    bundle: Path, rtx: Path, make_bundle: Callable[..., Path], graph: bytes
) -> None:
    opened = Bundle.open(bundle)
    first = build_engine(opened, sm="SM86")
    assert (first.cached, first.key.gpu, first.key.precision) == (False, "SM86", "fp32")
    assert first.key.library.startswith("tensorrt_rtx 1.")
    assert names(rtx) == [".engine", ".json", ".lock"]
    second = build_engine(opened, sm="SM86")
    assert (second.cached, second.key, second.nbytes) == (True, first.key, first.nbytes)
    # Another graph, or library, or size, is another engine.
    model = onnx.load_from_string(graph)
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    other = make_bundle("other", LDA(), features=model.SerializeToString())
    for changed in (
        build_engine(Bundle.open(other), sm="SM86", memory=64),
        build_engine(opened, sm="SM89"),
        build_engine(opened, sm="SM86", batches=[3]),
    ):
        assert not changed.cached
    assert names(rtx).count(".engine") == 4


def test_an_engine_of_another_version_is_built_anew(
    bundle: Path, rtx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engine(Bundle.open(bundle), sm="SM86")
    monkeypatch.setattr(sys.modules["tensorrt_rtx"], "__version__", "1.6.0")
    again = build_engine(Bundle.open(bundle), sm="SM86")
    assert (again.cached, again.key.library) == (False, "tensorrt_rtx 1.6.0")


def test_what_only_a_training_step_needs_is_left_out(
    rtx: Path, make_bundle: Callable[..., Path], graph: bytes
) -> None:
    plain = make_bundle()
    model = onnx.load_from_string(graph)
    model.graph.output.append(helper.make_tensor_value_info("nchw", TensorProto.FLOAT, ["batch", 3, 8, 8]))
    with pytest.raises(ValueError, match="must take one uint8 NHWC tensor and give one"):
        parse(sys.modules["tensorrt_rtx"], model.SerializeToString(), "graph", _log())
    for name in [*(node.output for node in model.graph.node), *(node.input for node in model.graph.node)]:
        name[:] = ["tokens" if one == "nchw" else one for one in name]
    model.graph.output[1].name = "tokens"
    _, network = parse(sys.modules["tensorrt_rtx"], model.SerializeToString(), "graph", _log())
    assert [network.get_output(index).name for index in range(network.num_outputs)] == ["features"]
    trains = make_bundle("trains", features=model.SerializeToString())
    sizes = [build_engine(Bundle.open(path), sm="SM86").nbytes for path in (plain, trains)]
    assert sizes[1] <= sizes[0] + 1000


def test_a_killed_build_leaves_no_engine(bundle: Path, rtx: Path) -> None:
    arguments = [sys.executable, "-m", "everlearn_runtime.cli", "build", str(bundle), "--for", "SM86"]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = subprocess.Popen(
        arguments, env={**os.environ, **paths}, start_new_session=True, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not list(rtx.glob("*.part")) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)  # the build and its parent
    started.wait()
    assert ".engine" not in names(rtx)
    assert ".json" not in names(rtx)
    built = None
    while built is None:  # the kernel takes its time to end a process, and with it its lock
        try:
            built = build_engine(Bundle.open(bundle), sm="SM86")
        except ValueError as error:
            if "another process is building" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.1)
    assert not built.cached
    assert names(rtx) == [".engine", ".json", ".lock"]


def test_a_builder_that_is_killed_says_what_to_try(
    bundle: Path, rtx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "build_apart", die)
    with pytest.raises(ValueError, match=r"killed by signal 9; if memory ran out, .* \(--memory 256\)"):
        build_engine(Bundle.open(bundle), sm="SM86")
    assert names(rtx) == [".lock"]


def die(asked: dict[str, Any]) -> None:
    """What the kernel does where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("rtx")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_says_where(bundle: Path) -> None:
    asked = Request(str(bundle / "features.onnx"), "/dev/full", None, (1,), None, 0, "SM86")
    with pytest.raises(ValueError, match=r"cannot be kept in / \(No space left.*EVERLEARN_CACHE"):
        build(sys.modules["tensorrt_rtx"], asked)


def test_a_file_where_the_cache_should_be(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(ValueError, match=f"{folder} is no folder to keep engines in; name another"):
        EngineCache()


@pytest.mark.usefixtures("rtx")
def test_what_stands_in_the_way_of_the_cache_is_told(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("")
    below = folder / "engines"
    monkeypatch.setenv("EVERLEARN_CACHE", str(below))
    with pytest.raises(ValueError, match=f"cannot be kept in {below} .*EVERLEARN_CACHE"):
        build_engine(Bundle.open(bundle), sm="SM86")
    folder.unlink()
    folder.symlink_to(folder.parent / "gone")
    monkeypatch.setenv("EVERLEARN_CACHE", str(folder))
    with pytest.raises(ValueError, match=f"cannot be kept in {folder} .*EVERLEARN_CACHE"):
        build_engine(Bundle.open(bundle), sm="SM86")


def test_a_note_that_cannot_be_written_is_told(
    bundle: Path, rtx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match=r"cannot be kept in .* \(No space left.*EVERLEARN_CACHE"):
        build_engine(Bundle.open(bundle), sm="SM86")
    assert names(rtx) == [".lock"]


def test_a_graph_that_is_not_taken_is_named(
    rtx: Path, make_bundle: Callable[..., Path], graph: bytes
) -> None:
    model = onnx.load_from_string(graph)
    node = helper.make_node("DynamicQuantizeLinear", ["features"], ["a", "b", "c"], name="quantised")
    model.graph.node.append(node)
    model.graph.output[0].name = "a"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    path = make_bundle("strange", LDA(), features=model.SerializeToString())
    with pytest.raises(ValueError, match=r"does not take this graph \(.*; export it with target='tensorrt'"):
        build_engine(Bundle.open(path), sm="SM86")
    assert names(rtx) == [".lock"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batches": []}, r"batches is \[\]"),
        ({"batches": [0]}, r"batches is \[0\]; give whole numbers"),
        ({"memory": 0}, "memory is 0; give a whole number of MiB"),
        ({"level": 6}, "level is 6; give 0"),
        ({"sm": "SM87"}, "does not build for 'SM87'; it knows .*SM86"),
        ({}, "tensorrt_rtx 1.* cannot run here: no NVIDIA driver"),
    ],
)
def test_what_cannot_be_built(
    bundle: Path, rtx: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(gpu, "LIBRARY", "libcuda-of-nobody.so.1")
    with pytest.raises(ValueError, match=says):
        build_engine(Bundle.open(bundle), **changes)


@pytest.mark.usefixtures("folder")
def test_without_tensorrt_one_line_says_what_to_install(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in library.NAMES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r'with TensorRT .* needs: pip install "everlearn\[tensorrt\]"'):
        EdgeLearner.open(bundle, backend="tensorrt")
    assert main(["build", str(bundle)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_tensorrt_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    old = type(sys)("tensorrt")
    old.__version__ = "8.6.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(ValueError, match=r"TensorRT 8.6.1 is too old; 10.0"):
        library.load()


def test_an_engine_in_the_cache_is_taken_where_there_is_a_gpu(
    bundle: Path, rtx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle)
    monkeypatch.setattr(building, "first_gpu", lambda: gpu.Gpu("some RTX", (8, 6)))
    with pytest.raises(ValueError, match=f"has no engine of this graph .*: everlearn-device build {bundle}"):
        open_engine(opened, build=False)
    build_engine(opened, sm="SM86")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingExtra, match="running an engine"):  # the next step, which needs the GPU
        open_engine(opened, build=False)


def test_from_the_command_line(bundle: Path, rtx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["build", str(bundle), "--for", "SM86", "--batch", "2", "--memory", "128", "--level", "1"]
    assert main(given) == 0
    assert capsys.readouterr().out.startswith("built: fp32 engine of ")
    assert main([*given, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["cached"], said["batches"], said["memory"], said["level"]) == (True, [2], 128, 1)
