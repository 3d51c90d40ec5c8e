"""What runs a graph, and what it refuses to run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from everlearn_runtime import LDA, Bundle, BundleError, EdgeLearner, OnnxRuntime
from everlearn_runtime.backends.graph import check_graph

ZEROS = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.fixture
def model(graph: bytes) -> ModelProto:
    return onnx.load_from_string(graph)


def outside(tensor: TensorProto, where: str = "weights.bin") -> None:
    """Let a tensor's values lie in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", where


def branch(*nodes: NodeProto, weights: TensorProto | None = None) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    return helper.make_graph(nodes, "branch", [], [output], [weights] if weights is not None else [])


def engine() -> NodeProto:
    return helper.make_node(
        "EPContext", [], ["out"], domain="com.microsoft", embed_mode=0, ep_cache_context="x"
    )


def weights() -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "w")
    outside(tensor)
    return tensor


def as_initializer(model: ModelProto) -> None:
    outside(model.graph.initializer[0])


def as_constant(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=weights()))


def in_a_branch(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch(weights=weights())))


def in_a_branch_of_a_branch(model: ModelProto) -> None:
    inner = helper.make_node("If", ["x"], ["y"], then_branch=branch(weights=weights()))
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], else_branch=branch(inner)))


def sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(weights())


def in_a_function(model: ModelProto) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=weights())
    model.functions.append(helper.make_function("d", "f", [], ["c"], [constant], []))


def only_said(model: ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def only_named(model: ModelProto) -> None:
    model.graph.initializer[0].external_data.add().key = "location"


PLACES = [as_initializer, as_constant, in_a_branch, in_a_branch_of_a_branch, sparse, in_a_function]


@pytest.mark.parametrize("change", [*PLACES, only_said, only_named])
def test_a_graph_with_values_in_another_file_is_refused(
    make_bundle: Callable[..., Path], model: ModelProto, change: Callable[[ModelProto], None]
) -> None:
    change(model)
    path = make_bundle("outside", LDA(), features=model.SerializeToString())
    np.ones((12, 6), np.float32).tofile(path / "weights.bin")
    for opened in (
        lambda: Bundle.open(path),
        lambda: EdgeLearner.open(path),
        lambda: OnnxRuntime(path / "features.onnx"),
    ):
        with pytest.raises(BundleError, match="lies in another file, which the manifest does not cover"):
            opened()


def test_nor_are_they_looked_for_in_the_working_directory(
    make_bundle: Callable[..., Path], model: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_initializer(model)
    path = make_bundle("outside", LDA(), features=model.SerializeToString())
    np.ones((12, 6), np.float32).tofile(tmp_path / "weights.bin")
    monkeypatch.chdir(tmp_path)
    onnxruntime.InferenceSession(model.SerializeToString())  # as onnxruntime itself does
    with pytest.raises(BundleError, match="lies in another file"):
        OnnxRuntime(path / "features.onnx")


@pytest.mark.parametrize("nested", [False, True])
def test_a_compiled_engine_is_refused(graph: bytes, model: ModelProto, nested: bool) -> None:
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch(engine())) if nested else engine()
    model.graph.node.append(node)
    with pytest.raises(BundleError, match=r"compiled engine \(EPContext\)"):
        check_graph(model.SerializeToString(), "features.onnx")
    check_graph(graph, "features.onnx")


def test_a_field_number_that_only_protobuf_cuts_to_size_is_seen(model: ModelProto) -> None:
    as_initializer(model)
    body = model.graph.SerializeToString()
    key = (1 << 32 | 7 << 3 | 2).to_bytes(5, "little")
    long = bytes(
        (int.from_bytes(key, "little") >> shift & 0x7F) | (0x80 if shift < 28 else 0)
        for shift in range(0, 35, 7)
    )
    size = bytes([len(body) & 0x7F | 0x80, len(body) >> 7])
    with pytest.raises(BundleError, match="lies in another file"):
        check_graph(long + size + body, "features.onnx")


@pytest.mark.parametrize(
    "contents", [b"\xff" * 20, b"\x0b\x0c", b"\x3a\x7f", b"\x08", b"\x0d\0", b"ORTM" * 9], ids=str
)
def test_what_is_no_graph(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "features.onnx").write_bytes(contents)
    with pytest.raises(BundleError, match=r"features\.onnx: cannot load this graph"):
        OnnxRuntime(tmp_path / "features.onnx")


@pytest.mark.parametrize("name", [b"images", b"features"])
def test_a_name_that_is_not_utf_8(tmp_path: Path, graph: bytes, name: bytes) -> None:
    (tmp_path / "features.onnx").write_bytes(graph.replace(name, b"\xff" * len(name)))
    with pytest.raises(BundleError, match="cannot load this graph"):
        OnnxRuntime(tmp_path / "features.onnx")


def test_a_graph_without_an_input(tmp_path: Path, model: ModelProto) -> None:
    constant = numpy_helper.from_array(np.ones((1, 6), np.float32))
    nodes = [helper.make_node("Constant", [], ["features"], value=constant)]
    body = helper.make_graph(nodes, "g", [], model.graph.output)
    whole = helper.make_model(body, opset_imports=model.opset_import, ir_version=9)
    (tmp_path / "features.onnx").write_bytes(whole.SerializeToString())
    with pytest.raises(BundleError, match="must take one uint8 NHWC tensor"):
        OnnxRuntime(tmp_path / "features.onnx")


def test_a_graph_without_an_output(tmp_path: Path, model: ModelProto) -> None:
    nothing = ModelProto()
    nothing.CopyFrom(model)
    del nothing.graph.output[:]
    (tmp_path / "features.onnx").write_bytes(nothing.SerializeToString())
    with pytest.raises(BundleError, match="must take one uint8 NHWC tensor and give one"):
        OnnxRuntime(tmp_path / "features.onnx")


def test_a_path_that_onnxruntime_could_not_spell(tmp_path: Path, graph: bytes) -> None:
    folder = tmp_path / "Täßchen ☕"
    folder.mkdir()
    (folder / "features.onnx").write_bytes(graph)
    program = (
        "import sys, numpy as np; from pathlib import Path; from everlearn_runtime import OnnxRuntime; "
        "path, = Path(sys.argv[1]).glob('*/features.onnx'); "
        "OnnxRuntime(path).run(np.zeros((1, 8, 8, 3), np.uint8))"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=plain, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_providers_with_options(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(graph: bytes, options: Any, providers: list[Any], **more: Any) -> Any:
        given.append(providers)
        return real(graph, options, providers=providers, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    options = {"arena_extend_strategy": "kSameAsRequested"}
    path = bundle / "features.onnx"
    found = OnnxRuntime(path, providers=[("CPUExecutionProvider", options)]).run(ZEROS)
    assert given == [[("CPUExecutionProvider", options)]]
    np.testing.assert_array_equal(OnnxRuntime(path, providers=["CPUExecutionProvider"]).run(ZEROS), found)


@pytest.mark.parametrize(
    ("providers", "says"),
    [
        ([("TensorrtExecutionProvider", {"device_id": 0})], "TensorrtExecutionProvider is not in this build"),
        ([("CPUExecutionProvider", 3)], r"holds \('CPUExecutionProvider', 3\); give names, or pairs"),
        ([("CPUExecutionProvider", {}, {})], "give names, or pairs"),
        ([3], "providers holds 3; give names, or pairs"),
        (
            ["CPUExecutionProvider", ("CPUExecutionProvider", {})],
            "has CPUExecutionProvider twice; give it once",
        ),
        ({"CPUExecutionProvider": {}}, "give a list"),
        ([], "give a list"),
    ],
)
def test_providers_that_are_none(bundle: Path, providers: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OnnxRuntime(bundle / "features.onnx", providers=providers)


def test_a_run_does_not_fall_back_in_silence(bundle: Path) -> None:
    backend = OnnxRuntime(bundle / "features.onnx")
    assert backend._session._enable_fallback is False
    features: NDArray[np.float32] = backend.run(ZEROS)
    assert features.shape == (2, 6)
