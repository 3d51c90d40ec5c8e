"""Graphs that TensorRT takes: parsed and built by the real one where it is installed."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from everlearn import LDA, NTKCL, Frozen, Learner
from everlearn_runtime import Bundle
from everlearn_runtime.backends.tensorrt import build_engine, library
from everlearn_runtime.backends.tensorrt.network import parse

from ..conftest import coloured, fit_all, make_learner

DEPTH = 2
PRECISIONS = ["fp32", "fp16", "int8"]


@pytest.fixture(scope="module")
def learner() -> Learner:
    return fit_all(make_learner(Frozen(patches=True), head=LDA()), [coloured("ab"), coloured("cd")])


@pytest.fixture(scope="module")
def bundles(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle of each precision, and one with adapters that were merged."""
    folder = tmp_path_factory.mktemp("tensorrt")
    for precision in PRECISIONS:
        images = coloured("abcd", 12)
        learner.export(folder / precision, precision=precision, target="tensorrt", images=images)
    fit_all(make_learner(NTKCL(), epochs=1), [coloured("ab")]).export(folder / "merged")
    return {path.name: Bundle.open(path) for path in folder.iterdir()}


@pytest.fixture
def rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "engines"))
    return pytest.importorskip("tensorrt_rtx", reason="the extra trt-rtx is not installed")


@pytest.mark.parametrize("name", PRECISIONS)
def test_nodes_that_a_gpu_fuses_stay_whole(bundles: dict[str, Bundle], name: str) -> None:
    graph = onnx.load(bundles[name].features).graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["LayerNormalization"] == 2 * DEPTH + 1
    assert counts["Gelu"] == counts["Softmax"] == DEPTH
    assert counts["MatMul"] == 6 * DEPTH  # qkv, two of attention, proj, fc1 and fc2
    assert counts["Conv"] == 1
    assert counts["Mul"] == 1 + DEPTH  # the normalisation of pixels, and a scale before each Softmax
    assert not {"Erf", "Tanh", "Pow", "Sqrt", "Div", "Sub", "Attention", "Resize"} & counts.keys()
    readers = [node.op_type for node in graph.node if graph.input[0].name in node.input]
    assert sorted(readers) == ["Cast", "Shape"]  # first of all: TensorRT turns no uint8
    whole = counts["QuantizeLinear"], counts["DequantizeLinear"]
    assert (whole == (0, 0)) == (name != "int8")


@pytest.mark.parametrize("name", [*PRECISIONS, "merged"])
def test_tensorrt_parses_it_as_it_is(rtx: Any, bundles: dict[str, Bundle], name: str) -> None:
    graph = bundles[name].features.read_bytes()
    _builder, network = parse(rtx, graph, name, library.make_log(rtx))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    counts = Counter(layer.type for layer in layers)
    nodes = Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)
    norms = 2 * DEPTH + 1 + (name == "merged")  # NTK-CL's head also sees an inner block, normalised
    assert counts[rtx.LayerType.NORMALIZATION] == nodes["LayerNormalization"] == norms
    assert counts[rtx.LayerType.ACTIVATION] == nodes["Gelu"] + nodes["Relu"]
    assert nodes["Gelu"] >= DEPTH
    products = [layer for layer in layers if layer.type == rtx.LayerType.MATRIX_MULTIPLY]
    assert len(products) == nodes["MatMul"] + nodes["Gemm"] >= 6 * DEPTH
    # Strongly typed: the graph's own types, which no flag of the builder changes.
    half = rtx.DataType.HALF if name == "fp16" else rtx.DataType.FLOAT
    assert {layer.get_output(0).dtype for layer in products} == {half}
    assert (network.get_input(0).dtype, network.get_output(0).dtype) == (
        rtx.DataType.UINT8,
        rtx.DataType.FLOAT,
    )


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("name", [*PRECISIONS, "merged"])
def test_tensorrt_builds_it(bundles: dict[str, Bundle], name: str) -> None:
    built = build_engine(bundles[name], sm="SM86")
    assert built.key.precision == ("fp32" if name == "merged" else name)
    assert built.key.batches == (1, 16)
    assert built.nbytes > 10_000


def test_a_graph_of_8_bits_for_a_cpu_is_refused_with_the_way_out(
    rtx: Any, learner: Learner, tmp_path: Path
) -> None:
    learner.export(tmp_path / "bundle", precision="int8", images=coloured("abcd", 12))
    with pytest.raises(
        ValueError, match=r"MatMulInteger|DynamicQuantizeLinear.*export it with target='tensorrt'"
    ):
        build_engine(Bundle.open(tmp_path / "bundle"), sm="SM86")
