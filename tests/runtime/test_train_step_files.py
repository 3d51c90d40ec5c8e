"""A bundle's training step on disk: written whole, read with suspicion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from everlearn_runtime import LDA, Bundle, BundleError
from everlearn_runtime.bundle import dump_arrays
from everlearn_runtime.train_step import (
    CLASSIFIER,
    FIRST,
    SECOND,
    Settings,
    ShippedStep,
    StepParity,
    TrainStep,
)

FILES = ["adapters.safetensors", "train_step.onnx"]
ADAPTERS = {
    "blocks.1.up": np.arange(6, dtype=np.float32).reshape(2, 3),
    "blocks.1.bias": np.ones(2, np.float32),
}

PLACES = {"blocks.1.up": ("weights", True), "blocks.1.bias": ("bias", False)}


@pytest.fixture
def stepping(make_bundle: Callable[..., Path], graph: bytes) -> Path:
    """A bundle with a training step; any graph will do, as nothing runs it here."""
    head = LDA()
    head.update(np.arange(12.0).reshape(2, 6), ["mug", "pen"])
    step = ShippedStep(graph, ADAPTERS, "last2", Settings(), 3, StepParity(5, 1e-7, 1e-6), PLACES)
    return make_bundle(head=head, step=step)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def put(path: Path, name: str, contents: bytes) -> None:
    """Another file, with a manifest that says so."""
    (path / name).write_bytes(contents)
    edit(path, lambda manifest: manifest["files"].update({name: hashlib.sha256(contents).hexdigest()}))


def test_what_is_written_is_read(stepping: Path, graph: bytes) -> None:
    bundle = Bundle.open(stepping)
    assert bundle.manifest.format == 3
    assert bundle.manifest.replaces is None
    assert bundle.manifest.train_step == {
        "blocks": "last2",
        "input": "tokens",
        "adapters": {"blocks.1.up": [2, 3], "blocks.1.bias": [2]},
        "settings": {
            "sharpness": 12.0,
            "regularisation": 1e-3,
            "weight_decay": 5e-4,
            "betas": [0.9, 0.999],
            "eps": 1e-7,
        },
        "tasks": 3,
        "parity": {"steps": 5, "loss": 1e-7, "parameters": 1e-6},
        "places": {"blocks.1.up": ["weights", True], "blocks.1.bias": ["bias", False]},
    }
    assert list(bundle.adapters()) == list(ADAPTERS)
    for name, value in bundle.adapters().items():
        np.testing.assert_array_equal(value, ADAPTERS[name])
    assert (stepping / "train_step.onnx").read_bytes() == graph


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_damaged_file_is_found(stepping: Path, name: str) -> None:
    contents = (stepping / name).read_bytes()
    (stepping / name).write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    with pytest.raises(BundleError, match=rf"{name} is damaged"):
        Bundle.open(stepping)
    (stepping / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(stepping)
    edit(stepping, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(BundleError, match=r"lacks train_step.onnx or adapters.safetensors"):
        Bundle.open(stepping)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blocks", "last3"),
        ("blocks", ["last2"]),
        ("input", "images"),
        ("adapters", []),
        ("adapters", {"blocks.1.up": [2, 0]}),
        ("adapters", {"blocks.1.up": 6}),
        ("settings", {"eps": 1e-7}),
        ("settings", None),
        ("tasks", 0),
        ("tasks", True),
        ("parity", 3),
        ("places", None),
        ("places", {"blocks.1.up": ["weights", True]}),
        ("places", {"blocks.1.up": ["weights", True], "blocks.1.bias": "bias"}),
        ("places", {"blocks.1.up": ["weights", True], "blocks.1.bias": ["bias", 0]}),
    ],
)
def test_a_manifest_with_a_wrong_field(stepping: Path, field: str, value: Any) -> None:
    edit(stepping, lambda manifest: manifest["train_step"].update({field: value}))
    with pytest.raises(BundleError, match=r"train_step in manifest.json is wrong"):
        Bundle.open(stepping)


@pytest.mark.parametrize("value", [None, [], {}, {"blocks": "last2"}, "last2"])
def test_a_manifest_that_says_something_else(stepping: Path, value: Any) -> None:
    edit(stepping, lambda manifest: manifest.update(train_step=value))
    with pytest.raises(BundleError, match=r"train_step in manifest.json is wrong"):
        Bundle.open(stepping)


def test_each_format_has_its_own_fields(stepping: Path) -> None:
    for number in (1, 2):
        edit(stepping, partial(dict.update, format=number))
        with pytest.raises(BundleError, match=r"manifest.json has the fields"):
            Bundle.open(stepping)
    edit(stepping, lambda manifest: (manifest.update(format=3), manifest.pop("train_step")))
    with pytest.raises(BundleError, match=r"manifest.json has the fields"):
        Bundle.open(stepping)


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks.1.up": np.ones((3, 2), np.float32)},
        {"blocks.1.up": np.ones((2, 3))},
        {"blocks.1.up": np.full((2, 3), np.nan, np.float32)},
        {"blocks.2.up": np.ones((2, 3), np.float32)},
    ],
)
def test_adapters_that_are_not_those_of_the_manifest(stepping: Path, changes: dict[str, Any]) -> None:
    put(stepping, "adapters.safetensors", dump_arrays({**ADAPTERS, **changes}))
    with pytest.raises(BundleError, match=r"adapters.safetensors: (has|blocks.1.up is)"):
        Bundle.open(stepping)


def test_a_step_that_reaches_outside_of_itself_is_refused(stepping: Path) -> None:
    put(stepping, "train_step.onnx", b"not a graph")
    with pytest.raises(BundleError, match=r"train_step.onnx: cannot load this graph"):
        Bundle.open(stepping)


def test_a_bundle_with_a_step_can_be_replaced(stepping: Path, make_bundle: Callable[..., Path]) -> None:
    assert make_bundle(stepping.name, head=Bundle.open(stepping).head(), overwrite=True) == stepping
    assert Bundle.open(stepping).manifest.format == 1


NAMES = [prefix + name for prefix in ("", FIRST, SECOND) for name in ("up", CLASSIFIER)]


def step_graph(gives: list[str]) -> bytes:
    """A step on one adapter, ``up`` (2,), that changes nothing: it gives these of its inputs."""
    values: dict[str, tuple[int, list[Any]]] = {
        "features": (TensorProto.FLOAT, ["batch", 3]),
        "labels": (TensorProto.INT64, ["batch"]),
        "rate": (TensorProto.FLOAT, []),
        "number": (TensorProto.FLOAT, []),
        **{name: (TensorProto.FLOAT, [2, 3] if name.endswith(CLASSIFIER) else [2]) for name in NAMES},
    }
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{place}"]) for place, name in enumerate(gives)],
        "step",
        [helper.make_tensor_value_info(name, *about) for name, about in values.items()],
        [helper.make_tensor_value_info(f"{place}", *values[name]) for place, name in enumerate(gives)],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def make_step(gives: list[str]) -> TrainStep:
    return TrainStep(step_graph(gives), {"up": np.ones(2, np.float32)}, np.zeros((2, 3)))


@pytest.mark.parametrize("gives", [["rate"], ["rate", *NAMES[1:]], [*NAMES, "rate", "number"]])
def test_a_step_that_gives_too_little_or_too_much_is_refused(gives: list[str]) -> None:
    with pytest.raises(BundleError, match=r"gives \d+ values; expected a loss and 6"):
        make_step(gives)


@pytest.mark.parametrize("gives", [["features", *NAMES], ["rate", *reversed(NAMES)]])
def test_a_step_that_gives_other_shapes_changes_nothing(gives: list[str]) -> None:
    step = make_step(gives)
    with pytest.raises(ValueError, match="gave values of other shapes than it took; export it again"):
        step.step(np.ones((2, 3), np.float32), [0, 1], 0.1)
    assert step.steps == 0
    assert np.array_equal(step.adapters["up"], np.ones(2))


def test_a_step_that_gives_what_it_took() -> None:
    step = make_step(["rate", *NAMES])
    assert step.step(np.ones((2, 3), np.float32), [0, 1], 0.5) == 0.5
    assert step.steps == 1
