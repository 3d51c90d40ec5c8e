"""Graphs of lower precision: smaller, near enough, and held by the gate."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from timm.layers import SwiGLU, get_act_layer

from everlearn import LDA, Frozen, Learner
from everlearn import cli as command
from everlearn_export import LIMITS, Limits, ParityError
from everlearn_export import bundle as bundles
from everlearn_export.layers import worst_layers
from everlearn_export.onnx import to_onnx, with_preprocessing
from everlearn_export.precision import linear, lower
from everlearn_runtime import Bundle, EdgeLearner, OnnxRuntime

from ..conftest import coloured, fit_all, make_learner, pixels, vit

IMAGES = pixels(coloured("abcd", 12, seed=3))
FORMS = [("fp16", "cpu"), ("fp16", "tensorrt"), ("int8", "cpu"), ("int8", "tensorrt")]


@pytest.fixture(scope="module")
def learner() -> Learner:
    backbone = vit()
    for seed, weight in enumerate(backbone.parameters()):  # none is 0 or 1, so that the graph keeps them all
        weight.data += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    learner = make_learner(Frozen(patches=True), head=LDA(), backbone=backbone)
    return fit_all(learner, [coloured("ab"), coloured("cd")])


@pytest.fixture(scope="module")
def exact(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("precision") / "bundle"
    learner.export(path)
    return (path / "features.onnx").read_bytes()


def counted(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


def run(graph: bytes, folder: Path, images: NDArray[np.uint8] = IMAGES) -> NDArray[np.float32]:
    (folder / "graph.onnx").write_bytes(graph)
    backend = OnnxRuntime(folder / "graph.onnx", threads=1)
    features = backend.run(images)
    backend.close()
    return features


@pytest.mark.parametrize(("precision", "target"), FORMS)
def test_a_bundle_of_lower_precision_works_like_the_exact_one(
    learner: Learner, tmp_path: Path, precision: str, target: str
) -> None:
    images = coloured("abcd", 20, seed=5)
    manifest = learner.export(tmp_path / "bundle", precision=precision, target=target, images=images)
    parity = manifest.parity
    assert (parity["precision"], parity["target"]) == (precision, target)
    assert parity["max_abs_difference"] > 0
    assert LIMITS[precision].cosine <= parity["min_cosine"] <= parity["mean_cosine"] < 1
    before, after = parity["accuracy"]
    assert before - after <= LIMITS[precision].lost
    with EdgeLearner.open(tmp_path / "bundle", threads=1) as edge:
        frames = pixels(images)
        assert edge.predict(frames).labels == learner.predict(frames)
        edge.learn(pixels(coloured("e", 8, seed=6)), ["e"] * 8)
        assert set(edge.predict(pixels(coloured("e", 4, seed=7))).labels) == {"e"}


@pytest.mark.parametrize(("precision", "target"), FORMS)
def test_the_graph_is_smaller_and_takes_and_gives_the_same(
    exact: bytes, tmp_path: Path, precision: str, target: str
) -> None:
    graph = lower(exact, precision, target, IMAGES)
    model = onnx.load_from_string(graph)
    (images,), (features,) = model.graph.input, model.graph.output
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert features.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    kept = ("LayerNormalization", "Gelu", "Softmax")
    assert {kind: counted(graph)[kind] for kind in kept} == {kind: counted(exact)[kind] for kind in kept}
    for batch in (1, 2, 7):
        assert np.isfinite(run(graph, tmp_path, IMAGES[:batch])).all()


def test_half_a_graph_normalises_pixels_in_32_bits(exact: bytes) -> None:
    model = onnx.load_from_string(lower(exact, "fp16", "cpu", IMAGES))
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [types[name] for node in model.graph.node for name in node.input if name in types]
    first = next(node for node in model.graph.node if node.op_type == "Mul")
    assert [types[name] for name in first.input if name in types] == [onnx.TensorProto.FLOAT]
    assert weights.count(onnx.TensorProto.FLOAT16) > 20
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    makers = {output: node for node in model.graph.node for output in node.output}
    assert not [node for node in casts if node.input[0] in makers and makers[node.input[0]] in casts]
    assert {types[node.input[1]] for node in linear(model)} == {onnx.TensorProto.FLOAT16}


def test_every_linear_layer_is_quantised_for_a_cpu_and_nothing_else(exact: bytes) -> None:
    count = len(linear(onnx.load_from_string(exact)))
    kinds = counted(lower(exact, "int8", "cpu", IMAGES))
    assert kinds["MatMulInteger"] == count
    assert kinds["MatMul"] == counted(exact)["MatMul"] - count  # attention's own products


def test_for_tensorrt_what_comes_out_of_a_gelu_is_left_alone(exact: bytes) -> None:
    model = onnx.load_from_string(lower(exact, "int8", "tensorrt", IMAGES))
    makers = {output: node for node in model.graph.node for output in node.output}
    kinds = counted(model.SerializeToString())
    linears = [node for node in model.graph.node if node.op_type == "MatMul"]
    behind = [makers[node.input[0]].op_type for node in linears if node.input[0] in makers]
    assert behind.count("Gelu") == kinds["Gelu"]
    assert behind.count("DequantizeLinear") == len(linear(onnx.load_from_string(exact))) - kinds["Gelu"]
    zeros = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":  # symmetric, of 8 bits
            assert zeros[node.input[2]].dtype == np.int8
            assert not zeros[node.input[2]].any()
    assert "MatMulInteger" not in kinds
    assert "DynamicQuantizeLinear" not in kinds


def test_scales_come_from_the_images(exact: bytes) -> None:
    dark = lower(exact, "int8", "tensorrt", IMAGES // 8)
    assert dark != lower(exact, "int8", "tensorrt", IMAGES)
    assert dark == lower(exact, "int8", "tensorrt", IMAGES // 8)


def spoilt(graph: bytes, weight: str, factor: float) -> bytes:
    """The graph with one weight multiplied."""
    model = onnx.load_from_string(graph)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(weight))
    value = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    data: bytes = model.SerializeToString()
    return data


def test_statistics_follow_the_graph(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = learner.head.prototypes
    monkeypatch.setattr(bundles, "lower", lambda graph, *_: spoilt(graph, "model.norm.weight", 1.3))
    learner.export(tmp_path / "bundle", precision="int8", images=coloured("abcd", 60, seed=5), tolerance=2.0)
    np.testing.assert_array_equal(learner.head.prototypes, before)
    bias = np.tile(learner.backbone.vit.norm.bias.numpy(), 2)  # of both sections, and not multiplied
    expected = 1.3 * (before - bias) + bias
    got = Bundle.open(tmp_path / "bundle").head().prototypes
    assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(before - expected)


def test_a_failure_names_the_worst_layers(learner: Learner, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"in int8 most is lost at \S+ \+[\d.e-]+") as caught:
        learner.export(tmp_path / "bundle", precision="int8", tolerance=1e-9)
    assert not (tmp_path / "bundle").exists()
    assert "blocks." in str(caught.value)


def test_the_layer_that_was_spoilt_is_found(exact: bytes) -> None:
    other = spoilt(exact, "blocks.1.norm2.weight", 2)
    assert worst_layers(exact, other, IMAGES)[0].startswith("blocks.1.norm2 +")
    other = spoilt(exact, "blocks.0.mlp.fc1.bias", 5)
    assert worst_layers(exact, other, IMAGES)[0].startswith("blocks.0.mlp.fc1 +")
    assert worst_layers(exact, exact, IMAGES) == []


def plain(**weights: float) -> Learner:
    """A learner whose weights are as they were made, biases of 0 among them, but for these factors."""
    backbone = vit()
    for name, factor in weights.items():
        backbone.vit.get_parameter(name).data *= factor
    return Learner(backbone, Frozen(), head=LDA(), device="cpu").fit(coloured("ab"))


def test_every_layer_has_the_name_of_its_module(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"most is lost at (.*) \(of the values' size") as caught:
        plain().export(tmp_path / "bundle", precision="int8", tolerance=1e-9)
    said = str(caught.value).partition("most is lost at ")[2].partition(" (of")[0].split(", ")
    assert len(said) == 3
    assert all(re.fullmatch(r"blocks\.[01]\.(attn|mlp)\S* \+\S+", layer) for layer in said)
    plain().export(tmp_path / "bundle")
    names = [node.name for node in onnx.load(tmp_path / "bundle" / "features.onnx").graph.node]
    assert len(set(names)) == len(names)
    for block in (0, 1):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            assert any(name.startswith(f"blocks.{block}.{layer}/MatMul") for name in names)


def test_a_value_too_large_for_16_bits_is_found(tmp_path: Path) -> None:
    hidden = {"blocks.0.mlp.fc1.weight": 3e6, "blocks.0.mlp.fc2.weight": 1e-6}  # the product stays ordinary
    with pytest.raises(ParityError, match=r"in fp16 most is lost at blocks\.0\.mlp\.fc1 \+inf, \S+ \+0"):
        plain(**hidden).export(tmp_path / "bundle", precision="fp16")
    with pytest.raises(
        ParityError,
        match=r"gave NaN or infinite.*no bundle was written; in fp16 .* at blocks\.1\.mlp.fc2 \+inf",
    ):
        plain(**{"blocks.1.mlp.fc2.weight": 1e9}).export(tmp_path / "bundle", precision="fp16")
    # Behind queries, keys and values shapes change, and parts are taken, before the next layer.
    with pytest.raises(ParityError, match=r"in fp16 most is lost at blocks\.0\.attn\.qkv \+inf, (?!.*inf)"):
        plain(**{"blocks.0.attn.qkv.weight": 1e7}).export(tmp_path / "bundle", precision="fp16")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("act", "gated"), [("gelu_tanh", False), ("quick_gelu", False), ("silu", False), ("silu", True)]
)
def test_what_an_activation_gives_keeps_its_bits_for_tensorrt(act: str, gated: bool) -> None:
    backbone = vit(act_layer=act, depth=1)
    if gated:
        backbone.vit.blocks[0].mlp = SwiGLU(48, 96, act_layer=get_act_layer(act))
    module = with_preprocessing(backbone.vit, [0.5] * 3, [0.5] * 3)
    graph = onnx.load_from_string(lower(to_onnx(module, backbone.input), "int8", "tensorrt", IMAGES)).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    products = {node.name: makers[node.input[0]] for node in graph.node if node.op_type in ("MatMul", "Gemm")}
    eighths = {name.rpartition("/")[0] for name, maker in products.items() if maker == "DequantizeLinear"}
    layers = ("attn.qkv", "attn.proj", *(("mlp.fc1_g", "mlp.fc1_x") if gated else ("mlp.fc1",)))
    assert eighths == {f"blocks.0.{layer}" for layer in layers}
    assert any("mlp.fc2/" in name for name in products)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_nothing_to_quantise_is_not_everything(exact: bytes, target: str) -> None:
    weights = [node.input[1] for node in linear(onnx.load_from_string(exact))]
    with pytest.raises(ValueError, match=r"int8 quantises linear layers, and this graph has none"):
        lower(exact, "int8", target, IMAGES, weights)


def test_sums_of_what_is_true_stay_sums(tmp_path: Path) -> None:
    """As in EdgeNeXt's positions: the converter leaves CumSum in 32 bits, and casts around it."""
    one, axis = np.ones((4, 3, 1, 1), np.float32), np.array(1)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], "first", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "one"], ["sums"], "sums"),
        helper.make_node("GlobalAveragePool", ["sums"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flat"),
        helper.make_node("Greater", ["flat", "bound"], ["above"], "above"),
        helper.make_node("Cast", ["above"], ["ones"], "ones", to=TensorProto.FLOAT),
        helper.make_node("CumSum", ["ones", "axis"], ["features"], "count"),
    ]
    body = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(value, name)
            for value, name in ((one, "one"), (axis, "axis"), (np.array(384, np.float32), "bound"))
        ],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    half = lower(model.SerializeToString(), "fp16", "cpu", IMAGES)
    expected = run(model.SerializeToString(), tmp_path)
    assert set(np.unique(expected)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(run(half, tmp_path), expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_model_that_is_itself_at_fault_says_so(tmp_path: Path, precision: str) -> None:
    learner = plain()
    learner.backbone.vit.get_parameter("blocks.1.mlp.fc2.weight").data *= float("nan")
    with pytest.raises(ValueError, match=r"the model itself gives NaN or infinite features.*no bundle"):
        learner.export(tmp_path / "bundle", precision=precision)


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), 0, -1e-4, "1e-4"])
def test_no_such_tolerance(learner: Learner, tmp_path: Path, tolerance: Any) -> None:
    with pytest.raises(ValueError, match=r"tolerance is .*; give a finite number above 0, or None"):
        learner.export(tmp_path / "bundle", tolerance=tolerance)


def test_accuracy_is_held(learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = coloured("abcd", 8, seed=9)
    for lost, refused in ((-0.5, True), (0.5, False)):
        monkeypatch.setitem(LIMITS, "fp16", Limits(relative=1.0, cosine=0.0, agreement=0.0, lost=lost))
        target = tmp_path / str(lost)
        if refused:
            with pytest.raises(
                ParityError, match=r"accuracy goes from [\d.]+% to [\d.]+% \(allowed -50.0% less"
            ):
                learner.export(target, precision="fp16", images=images)
        else:
            assert learner.export(target, precision="fp16", images=images).parity["accuracy"] is not None
    others = learner.export(tmp_path / "others", precision="fp16", images=coloured("xy", 8)).parity
    assert others["accuracy"] is None  # of classes that were never learned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, r"precision is 'fp8'; give one of 'fp32', 'fp16', 'int8'"),
        ({"precision": None}, r"precision is None"),
        ({"precision": "int8", "target": "gpu"}, r"target is 'gpu'; give one of 'cpu', 'tensorrt'"),
    ],
)
def test_no_such_precision(learner: Learner, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner.export(tmp_path / "bundle", **changes)
    assert not (tmp_path / "bundle").exists()


def test_without_linear_layers_there_is_nothing_to_quantise() -> None:
    node = onnx.helper.make_node("Identity", ["images"], ["features"])
    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [None, 3])
    other = onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [None, 3])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [value], [other]))
    with pytest.raises(ValueError, match="int8 quantises linear layers, and this graph has none"):
        lower(model.SerializeToString(), "int8", "cpu", IMAGES)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learner = fit_all(make_learner(Frozen(), head=LDA()), [coloured("ab"), coloured("cd")])
    learner.save(tmp_path / "run")
    out = tmp_path / "bundle"
    command.main(["export", str(tmp_path / "run"), "--out", str(out), "--precision", "fp16"])
    assert "4 classes" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["parity"]["precision"] == "fp16"
