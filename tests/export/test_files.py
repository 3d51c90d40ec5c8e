"""What other programs load: checked against what they document."""

import configparser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from everlearn import LDA, Frozen, Learner
from everlearn.cli import main
from everlearn_export import write_files
from everlearn_export.files import from_planes
from everlearn_runtime import Bundle, OnnxRuntime, write_bundle

from ..conftest import SIDE, coloured, fit_all, make_learner, pixels

# Keys of the group [property] of Gst-nvinfer, from its manual.
NVINFER = {
    *("gpu-id", "gie-unique-id", "process-mode", "onnx-file", "model-engine-file", "batch-size", "interval"),
    *("network-mode", "network-type", "infer-dims", "model-color-format", "net-scale-factor", "offsets"),
    *("maintain-aspect-ratio", "symmetric-padding", "scaling-filter", "scaling-compute-hw"),
    *("output-blob-names", "output-tensor-meta", "network-input-order"),
}
# Fields of Triton's model_config.proto: of each message the name, number, type and, if it has one, message.
_TRITON: dict[str, list[tuple[str, int, str]]] = {
    "ModelConfig": [
        ("name", 1, "string"),
        ("platform", 2, "string"),
        ("max_batch_size", 4, "int32"),
        ("input", 5, "*ModelInput"),
        ("output", 6, "*ModelOutput"),
        ("dynamic_batching", 11, "ModelDynamicBatching"),
        ("parameters", 14, "*Parameters"),
        ("backend", 17, "string"),
    ],
    "ModelInput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 4, "*int64")],
    "ModelOutput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 3, "*int64")],
    "ModelDynamicBatching": [("preferred_batch_size", 1, "*int32")],
    "Parameters": [("key", 1, "string"), ("value", 2, "ModelParameter")],  # a map, on the wire
    "ModelParameter": [("string_value", 1, "string")],
}


def model_config() -> Any:
    """An empty ModelConfig of Triton's."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="t", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    enum = file.enum_type.add(name="DataType")
    for number, name in ((0, "TYPE_INVALID"), (2, "TYPE_UINT8"), (11, "TYPE_FP32")):
        enum.value.add(name=name, number=number)
    for message, fields in _TRITON.items():
        made = file.message_type.add(name=message)
        for name, number, kind in fields:
            label = kinds.LABEL_REPEATED if kind[0] == "*" else kinds.LABEL_OPTIONAL
            field = made.field.add(name=name, number=number, label=label)
            kind = kind.lstrip("*")
            if kind in ("string", "int32", "int64"):
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
            else:
                field.type = kinds.TYPE_ENUM if kind == "DataType" else kinds.TYPE_MESSAGE
                field.type_name = f".t.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))()


@pytest.fixture(scope="module")
def learner() -> Learner:
    return fit_all(make_learner(Frozen(), head=LDA()), [coloured("ab"), coloured("cd")])


@pytest.fixture(scope="module")
def bundle(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("files") / "bundle"
    learner.export(path)
    return Bundle.open(path)


def test_a_model_for_triton(bundle: Bundle, tmp_path: Path) -> None:
    write_files(bundle, tmp_path / "models" / "cups", "triton", batch=8)
    folder = tmp_path / "models" / "cups"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "1/model.onnx",
        "config.pbtxt",
    ]
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config())
    assert (config.name, config.backend, config.max_batch_size) == ("cups", "onnxruntime", 8)
    assert config.HasField("dynamic_batching")
    assert [(entry.key, entry.value.string_value) for entry in config.parameters] == [
        ("everlearn_bundle", bundle.id)
    ]
    # As the graph itself has them, with the batch left out.
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    types = {"tensor(uint8)": 2, "tensor(float)": 11}
    for said, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(one.name, one.data_type, list(one.dims)) for one in said] == [
            (one.name, types[one.type], one.shape[1:]) for one in real
        ]


def test_a_configuration_for_deepstream(bundle: Bundle, tmp_path: Path) -> None:
    write_files(bundle, tmp_path / "nvinfer", "deepstream")
    parsed = configparser.ConfigParser(delimiters="=")
    parsed.read(tmp_path / "nvinfer" / "nvinfer.txt")
    assert parsed.sections() == ["property"]
    found = dict(parsed["property"])
    assert found.keys() <= NVINFER
    assert found["infer-dims"] == f"3;{SIDE};{SIDE}"
    assert (found["network-type"], found["output-tensor-meta"], found["network-mode"]) == ("100", "1", "0")
    graph = onnx.load(tmp_path / "nvinfer" / found["onnx-file"]).graph
    assert [output.name for output in graph.output] == [found["output-blob-names"]]
    # y = net-scale-factor * x, floats in planes: what nvinfer gives.
    images = pixels(coloured("abcd", 3))
    planes = float(found["net-scale-factor"]) * images.transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(
        tmp_path / "nvinfer" / "features.onnx", providers=["CPUExecutionProvider"]
    )
    features = session.run(None, {"images": planes})[0]
    np.testing.assert_allclose(features, OnnxRuntime(bundle.features).run(images), atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), [("triton", "1/model.onnx"), ("deepstream", "features.onnx")])
def test_what_only_a_training_step_needs_is_left_out(
    learner: Learner, bundle: Bundle, tmp_path: Path, kind: str, name: str
) -> None:
    model = onnx.load(bundle.features)
    inner = model.graph.node[-3].output[0]
    model.graph.node.append(onnx.helper.make_node("Identity", [inner], ["tokens"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, None))
    manifest = bundle.manifest
    write_bundle(
        tmp_path / "trains",
        features=model.SerializeToString(),
        head=learner.head,
        input=manifest.input,
        sections=manifest.sections,
        training={},
        parity=manifest.parity,
        everlearn=manifest.everlearn,
    )
    write_files(Bundle.open(tmp_path / "trains"), tmp_path / "trained", kind)
    write_files(bundle, tmp_path / "plain", kind)
    trained, plain = (onnx.load(tmp_path / folder / name).graph for folder in ("trained", "plain"))
    assert [output.name for output in trained.output] == ["features"]
    assert [node.op_type for node in trained.node] == [node.op_type for node in plain.node]


@pytest.mark.parametrize(("precision", "mode"), [("fp16", "2"), ("int8", "1")])
def test_precisions_go_with_nvinfers_modes(
    learner: Learner, tmp_path: Path, precision: str, mode: str
) -> None:
    learner.export(tmp_path / "bundle", precision=precision, target="tensorrt", images=coloured("abcd", 12))
    write_files(Bundle.open(tmp_path / "bundle"), tmp_path / "out", "deepstream", batch=2)
    text = (tmp_path / "out" / "nvinfer.txt").read_text()
    assert f"\nnetwork-mode={mode}\n" in text
    assert "\nbatch-size=2\n" in text
    images = pixels(coloured("abcd", 3))
    session = onnxruntime.InferenceSession(
        tmp_path / "out" / "features.onnx", providers=["CPUExecutionProvider"]
    )
    features = session.run(None, {"images": images.transpose(0, 3, 1, 2).astype(np.float32)})[0]
    np.testing.assert_allclose(
        features, OnnxRuntime(tmp_path / "bundle" / "features.onnx").run(images), atol=1e-2
    )


@pytest.mark.parametrize(
    ("name", "kind", "batch", "says"),
    [
        ("out", "tflite", 1, "kind is 'tflite'; give one of 'triton', 'deepstream'"),
        ("out", "triton", 0, "batch is 0; give a whole number"),
        ("a b", "triton", 1, "'a b' is no name for a model"),
        (".", "triton", 1, "exists; give another path"),
    ],
)
def test_what_cannot_be_written(
    bundle: Bundle, tmp_path: Path, name: str, kind: str, batch: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        write_files(bundle, tmp_path / name, kind, batch=batch)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is inside of the bundle, which stays as it is"):
        write_files(bundle, bundle.path / "models" / "cups", "triton")


def test_a_graph_that_starts_otherwise(bundle: Bundle) -> None:
    turned = from_planes(bundle.features.read_bytes())
    with pytest.raises(ValueError, match="does not start with a cast and a transpose"):
        from_planes(turned)


def test_from_the_command_line(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("triton", "deepstream"):
        out = tmp_path / kind
        main(["export", str(bundle.path), "--out", str(out), "--for", kind, "--batch", "4"])
        assert capsys.readouterr().out == f"{out}: the graph of {bundle.path} for {kind}\n"
        assert len(list(out.iterdir())) == 2
