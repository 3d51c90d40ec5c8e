"""A bundle's graph in the form that other programs load: Triton Inference Server, DeepStream's nvinfer.

Either runs the graph, images to features. What learns, the head, is not in it: features go on to an
`everlearn_runtime` head, or to one's own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx

from everlearn_export.choices import BATCH, KINDS
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.manifest import PLAIN_NAME

# nvinfer's numbers: of the precision it builds, and of its scaling filters.
_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
_FILTERS = {"nearest": 0, "bilinear": 1, "bicubic": 2, "lanczos": 4}


def write_files(bundle: Bundle, path: str | Path, kind: str, *, batch: int = BATCH) -> None:
    """Write a bundle's graph and its configuration for another program, all of it or nothing.

    ``"triton"``: a model, ``config.pbtxt`` and ``1/model.onnx``; its folder goes into a model repository
    and its name is the model's. ``"deepstream"``: ``nvinfer.txt`` and ``features.onnx``, which takes what
    nvinfer gives, 32-bit floats in planes, and features come as tensor metadata.

    Args:
        bundle: Whose graph.
        path: The folder to be; its parents are made.
        kind: ``"triton"`` or ``"deepstream"``.
        batch: Most images at once.

    Raises:
        ValueError: No such kind, something is in the way at ``path``, or a graph that does not start
            as exported ones do.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; give one of {', '.join(map(repr, KINDS))}")
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch is {batch!r}; give a whole number, at least 1")
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} exists; give another path")
    if kind == "triton":
        if not PLAIN_NAME.fullmatch(target.name):
            raise ValueError(
                f"{target.name!r} is no name for a model; give letters, digits, '.', '_' and '-'"
            )
        contents = {"config.pbtxt": triton(bundle, target.name, batch).encode()}
        contents["1/model.onnx"] = bundle.features.read_bytes()
    else:
        contents = {"nvinfer.txt": nvinfer(bundle, batch).encode()}
        contents["features.onnx"] = from_planes(bundle.features.read_bytes())
    _write(target, contents)


def triton(bundle: Bundle, name: str, batch: int) -> str:
    """The text of Triton's ``config.pbtxt``, a ``ModelConfig`` of its ``model_config.proto``."""
    manifest = bundle.manifest
    shape = f"{manifest.input.height}, {manifest.input.width}, 3"
    return f"""\
# Features of uint8 RGB pictures, NHWC, that were brought to this size as manifest.json says:
# {manifest.input.to_dict()}
name: "{name}"
backend: "onnxruntime"
max_batch_size: {batch}
input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ {shape} ] }} ]
output [ {{ name: "features" data_type: TYPE_FP32 dims: [ {manifest.width} ] }} ]
dynamic_batching {{ }}
parameters {{ key: "everlearn_bundle" value {{ string_value: "{bundle.id}" }} }}
"""


def nvinfer(bundle: Bundle, batch: int) -> str:
    """The text of a configuration of DeepStream's Gst-nvinfer."""
    manifest = bundle.manifest
    spec, precision = manifest.input, str(manifest.parity.get("precision", "fp32"))
    border = spec.crop == "border"
    cut = (
        f"# A picture's shorter side became {spec.resize} and the middle was cut out. nvinfer cannot: cut\n"
        "# frames square before it (nvvideoconvert src-crop), or features are those of a squeezed picture.\n"
    )
    keys = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,  # whole frames
        "onnx-file": "features.onnx",
        "batch-size": batch,
        "network-mode": _MODES[precision],
        "network-type": 100,  # neither detector nor classifier
        "infer-dims": f"3;{spec.height};{spec.width}",
        "model-color-format": 0,  # RGB
        "net-scale-factor": 1.0,  # the graph normalises
        "maintain-aspect-ratio": int(border),
        "symmetric-padding": int(border),
        "scaling-filter": _FILTERS[spec.interpolation],
        "output-blob-names": "features",
        "output-tensor-meta": 1,
    }
    return (
        f"# Features, 32-bit floats ({manifest.width}), as NvDsInferTensorMeta; bundle {bundle.id}\n"
        + (cut if spec.crop == "center" else "")
        + "[property]\n"
        + "".join(f"{key}={value}\n" for key, value in keys.items())
    )


def from_planes(graph: bytes) -> bytes:
    """The graph on 32-bit floats from 0 to 255 in planes, (B, 3, H, W), instead of uint8 (B, H, W, 3).

    Raises:
        ValueError: It does not start with a cast and a transpose.
    """
    model = onnx.load_from_string(graph)
    body = model.graph
    (images,) = body.input
    chain: list[onnx.NodeProto] = []
    name = images.name
    while not chain or chain[-1].op_type == "Cast":  # 16-bit graphs have several
        readers = [node for node in body.node if name in node.input and node.op_type != "Shape"]
        if len(readers) != 1 or readers[0].op_type not in ("Cast", "Transpose"):
            raise ValueError("the graph does not start with a cast and a transpose; export it again")
        chain.append(readers[0])
        name = readers[0].output[0]
    planes = name
    for node in chain:
        body.node.remove(node)
    for node in body.node:
        for place, name in enumerate(node.input):
            if name == planes:
                node.input[place] = images.name
    batch, height, width, channels = images.type.tensor_type.shape.dim
    sizes = [dim.dim_param or dim.dim_value for dim in (batch, channels, height, width)]
    images.CopyFrom(onnx.helper.make_tensor_value_info(images.name, onnx.TensorProto.FLOAT, sizes))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _write(target: Path, contents: Mapping[str, bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        folder.chmod(0o755)
        for name, data in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
