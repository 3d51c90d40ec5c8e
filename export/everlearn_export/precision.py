"""The graph in a lower precision: half as many bits for a GPU, a quarter for a CPU.

Both start from the checked graph of 32-bit floats, take uint8 images and give 32-bit features as it does,
and quantise by ONNX Runtime's own tools.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
from numpy.typing import NDArray

from everlearn_export.choices import PRECISIONS, TARGETS
from everlearn_export.onnx import quiet

CALIBRATION_BATCH = 8


def check_precision(precision: str, target: str) -> None:
    """Whether there is such a precision.

    Raises:
        ValueError: No such precision or target.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; give one of {', '.join(map(repr, PRECISIONS))}")
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}; give one of {', '.join(map(repr, TARGETS))}")


def lower(
    graph: bytes, precision: str, target: str, images: NDArray[np.uint8], whole: Collection[str] = ()
) -> bytes:
    """A graph in another precision.

    Args:
        graph: an ONNX graph of 32-bit floats, uint8 images (B, H, W, 3) to features (B, F).
        precision: ``"fp32"`` leaves it as it is. ``"fp16"``: weights and values of 16 bits, but for the
            normalisation of the pixels and the output. ``"int8"``: weights and inputs of the linear layers
            of 8 bits, all else as it was.
        target: where an int8 graph will run, for no form suits both. On a CPU inputs are scaled as they
            come (dynamic); TensorRT needs scales that are found here (static, symmetric Q/DQ), and layers
            behind an activation stay as they are: those alone bring nearly all of the loss.
        images: real ones, uint8 (N, H, W, 3), of which the static form takes its scales.
        whole: weights that 8 bits leave as they are, for a device may put others there.

    Raises:
        ValueError: no such precision or target, or there is no linear layer to quantise.
    """
    check_precision(precision, target)
    if precision == "fp32":
        return graph
    model = onnx.load_from_string(graph)
    if precision == "fp16":
        return _dump(_half(model))
    nodes = linear(model, whole)
    if target == "tensorrt":
        behind = _activated(model)
        nodes = [node for node in nodes if node.input[0] not in behind]
    if not nodes:  # ONNX Runtime's tools take none for all
        raise ValueError(
            "int8 quantises linear layers, and this graph has none that 8 bits may take; give 'fp16' or "
            "'fp32'"
        )
    names = [node.name for node in nodes]
    return _dump(_dynamic(model, names) if target == "cpu" else _static(model, names, images))


def linear(model: onnx.ModelProto, whole: Collection[str] = ()) -> list[onnx.NodeProto]:
    """The products with a weight, but for those of ``whole``; two activations, as in attention, are none."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and node.input[1] in weights
        and node.input[1] not in whole
        and node.input[0] not in weights
    ]


def _activated(model: onnx.ModelProto) -> set[str]:
    """What comes out of a GELU or SiLU, whole or made of a sigmoid or the like, and what is gated by one.

    It is far from symmetric, with few large values: layers that take it bring nearly all of the loss.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found: set[str] = set()
    gates: set[str] = set()
    for node in model.graph.node:
        given = set(node.input)
        if node.op_type in ("Gelu", "HardSwish", "Mish") or (
            node.op_type == "Mul" and given & (found | gates) and not given & weights
        ):
            found.update(node.output)
        elif node.op_type in ("Sigmoid", "HardSigmoid", "Erf", "Tanh") or (
            node.op_type in ("Add", "Mul") and given & gates and given & weights
        ):
            gates.update(node.output)
        elif node.op_type == "Mul" and given & found:  # by a constant
            found.update(node.output)
    return found


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    """All values of 16 bits from the first convolution or product on; LayerNormalization stays one node."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    own = {node.name for node in model.graph.node}
    before = []  # pixels are scaled in 32 bits
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            break
        before.append(node.name)
    half = ONNXModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=before))
    half.topological_sort()
    _join_casts(half.model, own)
    slim: onnx.ModelProto = onnxslim.slim(half.model)
    return slim


def _join_casts(model: onnx.ModelProto, own: Collection[str]) -> None:
    """Let nodes of 32 bits that follow each other meet without a detour through 16.

    The converter casts around every node that it leaves alone. The graph's own casts, by the names of its
    nodes, stay: what goes into them need not be of 32 bits.
    """
    to = {}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.name not in own:
            to[node.output[0]] = node.input[0], node.attribute[0].i
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            wide, kind = to.get(name, ("", 0))
            source, narrow = to.get(wide, ("", 0))
            if kind == onnx.TensorProto.FLOAT and narrow == onnx.TensorProto.FLOAT16:
                node.input[place] = source


def _dynamic(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Weights of 8 bits with a scale for each output; inputs are scaled as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _quantised(
        model,
        lambda source, place: quantize_dynamic(
            source,
            place,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=names,
        ),
    )


def _static(model: onnx.ModelProto, names: Sequence[str], images: NDArray[np.uint8]) -> onnx.ModelProto:
    """Symmetric Q/DQ pairs around linear layers."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    return _quantised(
        model,
        lambda source, place: quantize_static(
            source,
            place,
            _Calibration(model.graph.input[0].name, images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=names,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        ),
    )


def _quantised(model: onnx.ModelProto, quantise: Any) -> onnx.ModelProto:
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.graph.value_info[:]  # the quantiser takes shapes there for its own and stumbles
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, place = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        onnx.save(plain, source)
        quantise(source, place)
        return onnx.load(place)


class _Calibration:
    """Images for the quantiser, a few at a time."""

    def __init__(self, name: str, images: NDArray[np.uint8]) -> None:
        self._feeds: Iterator[dict[str, NDArray[np.uint8]]] = (
            {name: images[start : start + CALIBRATION_BATCH]}
            for start in range(0, len(images), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._feeds, None)


def _dump(model: onnx.ModelProto) -> bytes:
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    return buffer.getvalue()
