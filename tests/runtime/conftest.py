"""A small real bundle: uint8 images, 4 x 4 mean pooling, a random projection, 6 features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from everlearn_runtime import LDA, EdgeLearner, Head, InputSpec, write_bundle

SIDE, WIDTH = 8, 6
SPEC = InputSpec(SIDE, SIDE, resize=SIDE)

MakeBundle = Callable[..., Path]
MakeImages = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="session")
def graph() -> bytes:
    weights = np.random.default_rng(0).normal(size=(12, WIDTH)).astype(np.float32) / 8
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["features"]),
    ]
    body = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture
def make_images() -> MakeImages:
    """Images (n, 8, 8, 3) of a class: noise around a colour of its own."""

    def make(label: str, n: int = 4, seed: int = 0) -> NDArray[np.uint8]:
        colour = np.random.default_rng(list(label.encode())).integers(40, 216, size=(2, 2, 3))
        noise = np.random.default_rng([seed, *label.encode()]).integers(-30, 31, size=(n, SIDE, SIDE, 3))
        return (colour.repeat(4, axis=0).repeat(4, axis=1) + noise).astype(np.uint8)

    return make


@pytest.fixture
def make_bundle(tmp_path: Path, graph: bytes, make_images: MakeImages) -> MakeBundle:
    """Write a bundle whose head knows "mug" and "pen", or the head that is given."""

    def make(name: str = "bundle", head: Head | None = None, **changes: Any) -> Path:
        path = tmp_path / name
        arguments: dict[str, Any] = {
            "features": graph,
            "head": head or LDA(),
            "input": SPEC,
            "sections": [4, 2],
            "training": {"method": "none"},
            "parity": {"max_abs_difference": 1e-6},
            "everlearn": "0.1.0",
        }
        write_bundle(path, **{**arguments, **changes})
        if head is not None:
            return path
        from everlearn_runtime import OnnxRuntime

        backend, known = OnnxRuntime(path / "features.onnx"), LDA()
        for label in ("mug", "pen"):
            known.update(backend.run(make_images(label)), [label] * 4)
        write_bundle(path, **{**arguments, **changes, "head": known}, overwrite=True)
        return path

    return make


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle()


@pytest.fixture
def learner(bundle: Path, tmp_path: Path) -> Iterator[EdgeLearner]:
    with EdgeLearner.open(bundle, state=tmp_path / "device.db", threads=1) as opened:
        yield opened
