"""Where adapters stand in an exported graph, so that a device can put others there."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from everlearn_export.parity import ParityError
from everlearn_runtime.backends.graph import put_weights
from everlearn_runtime.errors import BundleError
from everlearn_runtime.manifest import FEATURES
from everlearn_runtime.train_step import as_weights

Places = dict[str, tuple[str, bool]]


def with_places(export: Callable[[], bytes], adapters: Mapping[str, nn.Parameter]) -> tuple[bytes, Places]:
    """Export a module, and find out where the graph has its adapters.

    The exporter gives weights names of its own, transposes them and shares those that are equal. So it is
    given random adapters, which are like no other weight; what holds them is found, and the true ones are
    put there in the way a device does it.

    Args:
        export: Makes the graph.
        adapters: The module's own, by the names of the training step.

    Returns:
        The graph, and for each adapter the weight's name and whether it is transposed.

    Raises:
        ParityError: One is not found, so that the graph could not take others.
    """
    true = {name: value.detach().clone() for name, value in adapters.items()}
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for value in adapters.values():
                value.copy_(torch.randn(value.shape, generator=generator))
        marks = {name: value.detach().numpy().copy() for name, value in adapters.items()}
        graph = export()
    finally:
        with torch.no_grad():
            for name, value in adapters.items():
                value.copy_(true[name])
    model = onnx.load_from_string(graph)
    places: Places = {}
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        for name in marks.keys() - places.keys():
            if (transposed := _is(array, marks[name])) is not None:
                places[name] = tensor.name, transposed
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))  # as raw bytes, not as numbers
                break
    if missing := sorted(marks.keys() - places.keys()):
        raise ParityError(
            f"the adapter {missing[0]} is not among the weights of the exported graph, so that a device "
            "could not put another there; no bundle was written"
        )
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    values = {name: value.numpy() for name, value in true.items()}
    ordered = {name: places[name] for name in marks}
    return put_weights(buffer.getvalue(), as_weights(values, ordered), FEATURES), ordered


def kept(graph: bytes, places: Places, adapters: Mapping[str, NDArray[np.float32]]) -> tuple[bytes, Places]:
    """A graph of lower precision with the adapters rounded as a device rounds them, and the places in it.

    The converter to 16 bits rounds otherwise: the smallest numbers up, away from 0.

    Returns:
        The graph as it was, and no places, if those are no longer where the adapters stand.
    """
    weights = as_weights(adapters, places)
    try:
        rounded = put_weights(graph, weights, FEATURES)
    except (BundleError, ValueError):  # another shape or type, or a value too large
        return graph, {}
    there = {tensor.name: tensor for tensor in onnx.load_from_string(graph).graph.initializer}
    for name, value in weights.items():
        if not np.allclose(numpy_helper.to_array(there[name]), value, rtol=1e-3, atol=1e-6):
            return graph, {}
    return rounded, places


def _is(array: NDArray[np.generic], mark: NDArray[np.float32]) -> bool | None:
    """Whether a weight is the mark transposed; None if it is not the mark at all."""
    if np.array_equal(array, mark):
        return False
    return True if np.array_equal(array, mark.T) else None
