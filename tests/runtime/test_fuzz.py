"""Bundles changed on purpose, with hashes that fit: an error with a name, or a bundle that works.

``EVERLEARN_EXAMPLES=10000`` looks at more of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlearn_runtime import (
    LDA,
    Bundle,
    BundleError,
    FeCAM,
    Head,
    InputSpec,
    OnnxRuntime,
    Prototypes,
    Ridge,
    prepare_batch,
    write_bundle,
)
from everlearn_runtime.heads.checks import LARGEST, check_labels
from everlearn_runtime.manifest import HEAD, MANIFEST

thorough = settings(
    max_examples=int(os.environ.get("EVERLEARN_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
HEADS: list[Head] = [Prototypes(), LDA(), Ridge(0.1), Ridge(projection=5), FeCAM(), LDA(removable=True)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, graph: bytes) -> Iterator[Path]:
    head = LDA()
    head.update(np.random.default_rng(0).normal(size=(9, 6)), ["mug", "pen", "cup"] * 3)
    path = tmp_path_factory.mktemp("fuzz") / "bundle"
    given: dict[str, Any] = {"sections": [4, 2], "training": {}, "parity": {}, "everlearn": "0.1.0"}
    write_bundle(path, features=graph, head=head, input=InputSpec(8, 8, resize=8), **given)
    yield path
    shutil.rmtree(path)


def sign(path: Path, name: str, contents: bytes) -> None:
    """Put a file into the bundle, its hash into the manifest."""
    (path / name).write_bytes(contents)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = hashlib.sha256(contents).hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest))


def use(path: Path) -> None:
    """Open a bundle and score; only errors with a name come out, and only finite scores."""
    try:
        bundle = Bundle.open(path)
        head = bundle.head()
    except BundleError:
        return
    width = bundle.manifest.width
    rows = np.random.default_rng(0).normal(size=(4, width))
    try:
        for factor in (0.0, 1.0, 1e-30, LARGEST / 100):
            assert np.isfinite(head.scores(rows * factor)).all()
    except ValueError:
        return


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        ["lda", "ridge", "fecam", "prototypes", "aggregate", "center", "border", 10**30, "\ud800"]
    )
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be changed in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*path, key)
        yield from places(part, (*path, key))


@st.composite
def bytes_changed(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with some of them changed, taken out or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "drop", "add"]))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and data:
            data[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 9))]
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
    return bytes(data)


@given(st.data())
@thorough
def test_any_manifest(good: Path, data: st.DataObject) -> None:
    text = (good / MANIFEST).read_bytes()
    try:
        if data.draw(st.booleans()):
            (good / MANIFEST).write_bytes(data.draw(bytes_changed(text)))
        else:
            manifest = json.loads(text)
            *way, last = data.draw(st.sampled_from(list(places(manifest))))
            inside = manifest
            for key in way:
                inside = inside[key]
            inside[last] = data.draw(json_values)
            (good / MANIFEST).write_text(json.dumps(manifest))
        use(good)
    finally:
        (good / MANIFEST).write_bytes(text)


@given(st.data())
@thorough
def test_any_bytes_of_a_head(good: Path, data: st.DataObject) -> None:
    whole = (good / HEAD).read_bytes()
    try:
        sign(good, HEAD, data.draw(bytes_changed(whole)))
        use(good)
    finally:
        sign(good, HEAD, whole)


numbers = st.sampled_from([0.0, -1.0, 1e-320, 1e-30, 1e30, LARGEST, 1e77, 1e96, 1e150, 1e308, np.inf, np.nan])


@given(st.data())
@thorough
def test_any_statistics(data: st.DataObject) -> None:
    head = data.draw(st.sampled_from(HEADS))
    fresh = type(head)(**head.options)
    fresh.update(np.random.default_rng(1).normal(size=(8, 6)), ["a", "b"] * 4)
    state = fresh.state()
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(state.arrays)))
        array = state.arrays[name]
        if array.dtype == np.int64:
            array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(
                st.sampled_from([-(2**63), -1, 0, 1, 2**31, 2**53, 2**63 - 1])
            )
        elif data.draw(st.booleans()):
            array[...] = data.draw(numbers)
        else:
            array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(numbers)
    try:
        loaded = type(head).from_state(state)
        for factor in (0.0, 1.0, 1e-30, LARGEST / 100):
            rows = np.random.default_rng(2).normal(size=(4, 6)) * factor
            assert np.isfinite(loaded.scores(rows)).all()
        loaded.update(np.ones((2, 6)), ["a", "c"])
        loaded.scores(np.ones((1, 6)))
    except ValueError:
        return


@given(st.data())
@thorough
def test_any_bytes_of_a_graph(good: Path, graph: bytes, data: st.DataObject) -> None:
    (good / "changed.onnx").write_bytes(data.draw(bytes_changed(graph)))
    try:
        backend = OnnxRuntime(good / "changed.onnx", threads=1)
        features = backend.run(np.zeros((2, 8, 8, 3), np.uint8))
    except ValueError:
        return
    finally:
        (good / "changed.onnx").unlink()
    assert np.isfinite(features).all()


@st.composite
def pictures(draw: st.DrawFn) -> Any:
    """What somebody may take for a picture."""
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 9, 1 << 20, 1 << 40]), max_size=5))
    dtype = draw(st.sampled_from(["u1", "u1", "u1", "i1", "u2", "i8", "f2", "f8", "?", "c8", "U3", "O"]))
    try:
        array: NDArray[Any] = np.broadcast_to(np.zeros((), dtype), shape)
    except ValueError:  # more than numpy can count
        return None
    return draw(st.sampled_from([array, [array], [array, array], (array, "mug.png")]))


@given(pictures(), st.sampled_from(["rgb", "bgr"]))
@thorough
def test_any_pictures(images: Any, channels: str) -> None:
    spec = InputSpec(8, 8, resize=9)
    try:
        batch = prepare_batch(images, spec, channels=channels)
    except ValueError:
        return
    assert batch.shape[1:] == spec.shape
    assert batch.dtype == np.uint8


@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.text(max_size=3)
        | st.binary(max_size=3)
        | st.just(np.broadcast_to("a", (10**12,))),
        lambda inner: st.lists(inner) | st.sets(st.text(max_size=2)) | st.dictionaries(st.integers(), inner),
        max_leaves=5,
    )
)
@thorough
def test_any_labels(labels: Any) -> None:
    try:
        names = check_labels(labels)
    except ValueError:
        return
    assert isinstance(labels, list)
    assert names == labels
    assert all(type(name) is str for name in names)
