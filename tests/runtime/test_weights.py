"""Other weights in the bytes of a graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from everlearn_runtime import BundleError, OnnxRuntime
from everlearn_runtime.backends.graph import put_weights

WEIGHTS = np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)
IMAGES = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def as_type(graph: bytes, array: NDArray[np.generic]) -> bytes:
    """The graph with its weights stored otherwise; it need not run."""
    model = onnx.load_from_string(graph)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "weights"))
    return bytes(model.SerializeToString())


def test_the_graph_computes_with_them(graph: bytes) -> None:
    put = put_weights(graph, {"weights": WEIGHTS}, "graph")
    assert len(put) == len(graph)
    plain = IMAGES.astype(np.float32).transpose(0, 3, 1, 2).reshape(3, 3, 2, 4, 2, 4).mean(axis=(3, 5))
    backend = OnnxRuntime(put, threads=1)
    np.testing.assert_allclose(backend.run(IMAGES), plain.reshape(3, 12) @ WEIGHTS, rtol=1e-5)
    again = backend.with_graph(graph)
    expected = OnnxRuntime(graph, threads=1).run(IMAGES)
    np.testing.assert_array_equal(again.run(IMAGES), expected)


def test_what_was_put_is_what_onnx_reads(graph: bytes) -> None:
    put = onnx.load_from_string(put_weights(graph, {"weights": WEIGHTS}, "graph"))
    np.testing.assert_array_equal(numpy_helper.to_array(put.graph.initializer[0]), WEIGHTS)
    put.graph.initializer[0].CopyFrom(onnx.load_from_string(graph).graph.initializer[0])
    assert put == onnx.load_from_string(graph)


def test_a_transposed_view_is_written_in_order(graph: bytes) -> None:
    put = onnx.load_from_string(put_weights(graph, {"weights": WEIGHTS.T.copy().T}, "graph"))
    np.testing.assert_array_equal(numpy_helper.to_array(put.graph.initializer[0]), WEIGHTS)


def test_they_are_rounded_to_16_bits(graph: bytes) -> None:
    half = as_type(graph, WEIGHTS.astype(np.float16))
    put = onnx.load_from_string(put_weights(half, {"weights": 2 * WEIGHTS}, "graph"))
    array = numpy_helper.to_array(put.graph.initializer[0])
    np.testing.assert_array_equal(array, (2 * WEIGHTS).astype(np.float16))
    with pytest.raises(ValueError, match=r"'weights' are not finite in the precision of the graph"):
        put_weights(half, {"weights": 1e6 * np.abs(WEIGHTS)}, "graph")


def test_what_does_not_fit_is_refused(graph: bytes) -> None:
    with pytest.raises(BundleError, match=r"no weight 'other' to put adapters into; export it again"):
        put_weights(graph, {"other": WEIGHTS}, "graph")
    with pytest.raises(BundleError, match=r"is of shape \[12, 6\] and type 1.*of shape \[6, 12\]"):
        put_weights(graph, {"weights": WEIGHTS.T}, "graph")
    with pytest.raises(BundleError, match=r"of shape \[12, 6\] and type 3"):
        put_weights(as_type(graph, np.ones((12, 6), np.int8)), {"weights": WEIGHTS}, "graph")
    model = onnx.load_from_string(graph)
    numbers = onnx.helper.make_tensor("weights", onnx.TensorProto.FLOAT, [12, 6], WEIGHTS.flatten())
    model.graph.initializer[0].CopyFrom(numbers)  # not as raw bytes
    with pytest.raises(BundleError, match=r"cannot be put there"):
        put_weights(bytes(model.SerializeToString()), {"weights": WEIGHTS}, "graph")


def test_an_engine_cache_would_take_the_old_ones(graph: bytes) -> None:
    backend = OnnxRuntime(graph, threads=1)
    backend._providers = (("TensorrtExecutionProvider", {"trt_engine_cache_enable": True}), "CPU")
    with pytest.raises(ValueError, match=r"TensorrtExecutionProvider keeps engines with the weights in them"):
        backend.with_graph(graph)
