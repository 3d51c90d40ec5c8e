"""What runs a graph where nobody says, and what is said where it is not what was hoped for."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from everlearn_runtime import Bundle, EdgeLearner, MissingExtra, OnnxRuntime
from everlearn_runtime.backends import gpu, open_backend, providers
from everlearn_runtime.cli import main

MakeImages = Callable[..., NDArray[np.uint8]]
ORT = f"onnxruntime {onnxruntime.__version__}"


@pytest.fixture
def for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu, on a machine without a driver."""
    present = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    monkeypatch.setattr(gpu, "LIBRARY", "libcuda-of-nobody.so.1")


def test_a_learner_says_what_runs_its_graph(bundle: Path, make_images: MakeImages) -> None:
    with EdgeLearner.open(bundle) as learner:
        assert learner.backend == f"{ORT}, CPUExecutionProvider"
        expected = learner.predict(make_images("mug")).scores
    with EdgeLearner.open(bundle, backend="onnxruntime", providers=["CPUExecutionProvider"]) as learner:
        np.testing.assert_array_equal(learner.predict(make_images("mug")).scores, expected)


@pytest.mark.usefixtures("for_cuda")
@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_a_cpu_instead_of_a_gpu_is_not_taken_in_silence(
    bundle: Path, make_images: MakeImages, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    reason = r"runs on the CPU: CUDAExecutionProvider cannot be used: no NVIDIA driver here \(libcuda"
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        learner = EdgeLearner.open(bundle, backend=backend)
    assert caught[0].filename == __file__  # whose line it is
    assert learner.backend == f"{ORT}, CPUExecutionProvider"
    assert set(learner.predict(make_images("mug")).labels) == {"mug"}
    learner.close()
    assert capfd.readouterr() == ("", "")  # nor is ONNX Runtime's log full of it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EdgeLearner.open(bundle, providers=["CPUExecutionProvider"]).close()  # it was asked for


@pytest.mark.usefixtures("for_cuda")
def test_the_library_that_is_missing_is_named(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "first_gpu", lambda: gpu.Gpu("Orin", (8, 7)))
    (tmp_path / "capi").mkdir()
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.write_bytes(b"no library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    said = rf"a library is missing \({library}.*\): pip install \"onnxruntime-gpu\[cuda,cudnn\]\""
    with pytest.warns(RuntimeWarning, match=said):
        EdgeLearner.open(bundle).close()
    # In the build, but not to be loaded: ONNX Runtime goes on without it, in silence.
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda graph, options, providers, **more: real(graph, options, providers=providers[1:], **more),
    )
    with pytest.raises(ValueError, match=f"fell back to CPUExecutionProvider; {said}"):
        EdgeLearner.open(bundle, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_a_provider_of_a_plugin(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    expected = OnnxRuntime(bundle / "features.onnx").run(images)
    # The CPU's own provider has a device like those of plugins.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["OtherExecutionProvider"])
    given = ("CPUExecutionProvider", {"device": "0", "use_arena": 1})
    backend = OnnxRuntime(bundle / "features.onnx", providers=[given])
    np.testing.assert_array_equal(backend.run(images), expected)
    assert backend.name == f"{ORT}, CPUExecutionProvider"
    with pytest.raises(ValueError, match="CPUExecutionProvider: device is 1; it has 1, numbered from 0"):
        OnnxRuntime(bundle / "features.onnx", providers=[("CPUExecutionProvider", {"device": 1})])


def test_a_plugin_whose_library_does_not_load(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"no library")
    path = bundle / "features.onnx"
    with pytest.raises(ValueError, match=f"MyProvider: ONNX Runtime cannot load its library {library}"):
        OnnxRuntime(path, providers=[("MyProvider", {"library": library})])
    # The library of an installed package needs no path.
    package = f"def get_ep_names(): return ['MyProvider']\ndef get_library_path(): return {str(library)!r}\n"
    (tmp_path / "onnxruntime_ep_mine.py").write_text(package)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"MyProvider: ONNX Runtime cannot load its library {library}"):
        OnnxRuntime(path, providers=["MyProvider"])
    with pytest.raises(ValueError, match=r"OtherProvider is not in this build.* a plugin must be registered"):
        OnnxRuntime(path, providers=["OtherProvider"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": "cuda"}, "backend is 'cuda'; give one of 'auto', 'onnxruntime', 'tensorrt'"),
        ({"backend": "tensorrt", "providers": ["CPUExecutionProvider"]}, "providers belong to ONNX Runtime"),
    ],
)
def test_no_such_backend(bundle: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        open_backend(Bundle.open(bundle), **options)


def test_without_onnxruntime_a_gpu_is_not_looked_for(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"everlearn\[cpu\]"):
        EdgeLearner.open(bundle)


def test_from_the_command_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    provider = "CPUExecutionProvider,arena_extend_strategy=kSameAsRequested,use_arena=1"
    given = ["--backend", "onnxruntime", "--provider", provider]
    assert main(["status", str(bundle), *given]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["backend", f"{ORT}, CPUExecutionProvider"] in lines
    assert main(["status", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == f"{ORT}, CPUExecutionProvider"
    for wrong in ("CPUExecutionProvider,use_arena", "CPUExecutionProvider,=1", ""):
        with pytest.raises(SystemExit):
            main(["status", str(bundle), "--provider", wrong])
        assert "is not NAME or NAME,KEY=VALUE,..." in capsys.readouterr().err


@pytest.mark.usefixtures("for_cuda")
def test_the_command_line_warns_in_a_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["status", str(bundle)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "everlearn-device: the graph runs on the CPU: CUDAExecutionProvider cannot be used"
    )
