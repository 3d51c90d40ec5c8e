"""The format on disk: written whole, read with suspicion."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn_runtime import (
    FORMAT,
    LDA,
    Bundle,
    BundleError,
    FeCAM,
    InputSpec,
    Prototypes,
    Ridge,
    write_bundle,
)
from everlearn_runtime.bundle import dump_arrays, read_manifest

FILES = ("manifest.json", "features.onnx", "head.safetensors")


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def sign(bundle: Path, arrays: dict[str, Any]) -> None:
    """Put other statistics into a bundle, and their hash into the manifest."""
    contents = dump_arrays(arrays)
    (bundle / "head.safetensors").write_bytes(contents)
    digest = hashlib.sha256(contents).hexdigest()
    edit(bundle, lambda manifest: manifest["files"].update({"head.safetensors": digest}))


def test_what_is_written_is_read(make_bundle: Callable[..., Path], graph: bytes) -> None:
    for head in (Prototypes(sections=[4, 2], weights=[0.3, 0.1]), LDA(), Ridge(projection=9, seed=4)):
        head.update(np.arange(12.0).reshape(2, 6), ["mug", "Täßchen ☕"])
        path = make_bundle(head.kind, head, training={"seconds": 3.5})
        bundle = Bundle.open(path)
        assert bundle.features.read_bytes() == graph
        assert bundle.manifest.classes == head.classes == bundle.head().classes
        assert bundle.manifest.training == {"seconds": 3.5}
        assert bundle.manifest.input == InputSpec(8, 8, resize=8)
        assert bundle.manifest.sections == (4, 2)
        assert bundle.manifest.format == 1  # without a map, older versions read it
        np.testing.assert_array_equal(bundle.head().scores(np.eye(6)), head.scores(np.eye(6)))
        assert bundle.id == hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
        assert sorted(entry.name for entry in path.iterdir()) == sorted(FILES)


def test_each_head_is_fresh(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.head().remove("mug")
    assert opened.head().classes == ("mug", "pen")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_found(bundle: Path, name: str) -> None:
    whole = (bundle / name).read_bytes()
    for kept in {0, 1, 8, len(whole) // 2, len(whole) - 2}:
        (bundle / name).write_bytes(whole[:kept])
        with pytest.raises(BundleError, match=name):
            Bundle.open(bundle)


@pytest.mark.parametrize("name", FILES[1:])
def test_every_flipped_bit_is_found(bundle: Path, name: str) -> None:
    whole = bytearray((bundle / name).read_bytes())
    for place in range(0, len(whole), 101):
        whole[place] ^= 1
        (bundle / name).write_bytes(whole)
        with pytest.raises(BundleError, match="damaged"):
            Bundle.open(bundle)
        whole[place] ^= 1


def test_no_folder_and_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match=r"is no bundle, it has no manifest\.json$"):
        Bundle.open(tmp_path)


def test_a_newer_format_says_how_to_upgrade(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(format=FORMAT + 1, everlearn="9.0", surprise=1))
    with pytest.raises(
        BundleError, match=rf"format {FORMAT + 1} \(everlearn 9\.0\).*pip install --upgrade everlearn"
    ):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "[" * 100_000, '{"format": "1"}', '{"format": true}', "\xff"]
)
def test_a_manifest_that_is_none(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 0),
        ("everlearn", 1),
        ("input", {"height": 8}),
        ("input", {"height": "8", "width": 8, "resize": 8, "interpolation": "bicubic", "crop": "center"}),
        ("sections", []),
        ("sections", [4, -2]),
        ("sections", [4, 2.0]),
        ("sections", [4, 3]),
        ("head", {"kind": "lda"}),
        ("head", {"kind": "oracle", "options": {}}),
        ("head", {"kind": "lda", "options": {"shrinkage": "much"}}),
        ("head", {"kind": "lda", "options": {"shrinkage": 10**400}}),
        ("head", {"kind": "lda", "options": {"depth": 3}}),
        ("head", {"kind": "ridge", "options": {}}),
        ("head", {"kind": "ridge", "options": {"projection": 10**9}}),
        ("classes", ["mug"]),
        ("classes", ["mug", "mug"]),
        ("classes", ["mug", 3]),
        ("classes", "ab"),
        ("training", None),
        ("parity", []),
        ("files", {}),
        ("files", []),
    ],
)
def test_a_manifest_with_a_wrong_field(bundle: Path, field: str, value: Any) -> None:
    edit(bundle, lambda manifest: manifest.update({field: value}))
    with pytest.raises(BundleError):
        Bundle.open(bundle)


@pytest.mark.parametrize("field", ["sections", "classes", "head", "input", "files"])
def test_a_manifest_of_any_depth_and_length_has_a_short_message(bundle: Path, field: str) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    for value in (
        deep,
        {"kind": deep, "options": deep},
        {f"a b{'c' * 10**6}": deep},
        ["x" * 10**7],
        {"a": "x" * 10**7},
    ):
        edit(bundle, partial(dict.update, **{field: value}))
        with pytest.raises(BundleError) as raised:
            Bundle.open(bundle)
        assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("way", ["sections", "kind", "shrinkage", "height", "fill"])
def test_a_manifest_as_deep_as_python_just_reads(bundle: Path, way: str) -> None:
    whole = json.loads((bundle / "manifest.json").read_text())
    place = {"sections": whole, "kind": whole["head"], "shrinkage": whole["head"]["options"]}.get(
        way, whole["input"]
    )
    place[way] = "HERE"
    text = json.dumps(whole)
    for depth in range(700, 1000, 7):
        (bundle / "manifest.json").write_text(text.replace('"HERE"', "[" * depth + "]" * depth))
        with pytest.raises(BundleError):
            Bundle.open(bundle)


def test_a_manifest_that_is_far_too_long_is_not_read(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # a file of holes
    with pytest.raises(BundleError, match="it is no manifest"):
        Bundle.open(bundle)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_manifest_with_what_json_does_not_have(bundle: Path, value: str) -> None:
    text = (bundle / "manifest.json").read_text().replace("1e-06", value)
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=f"not JSON .{value}"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_not_waited_for(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=rf"{name} is no ordinary file"):
        Bundle.open(bundle)


def test_a_folder_with_an_impossible_name(tmp_path: Path) -> None:
    for name in ("a\0b", "a" * 300):
        with pytest.raises(BundleError, match="no such folder"):
            Bundle.open(tmp_path / name)


def test_the_manifest_alone(bundle: Path, tmp_path: Path) -> None:
    assert read_manifest(bundle) == Bundle.open(bundle).manifest
    with pytest.raises(BundleError, match="no such folder"):
        read_manifest(tmp_path / "none")


STATISTICS = {
    "counts": np.full(2, 4, np.int64),
    "means": np.ones((2, 6)),
    "scatter": np.ones(21),
    "seen": np.full(1, 8, np.int64),
}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("means", 1e308, "means holds NaN or values outside of"),
        ("means", -1e39, "means holds"),
        ("means", np.nan, "means holds"),
        ("scatter", 1e308, "scatter holds"),
        ("scatter", -np.inf, "scatter holds"),
        ("seen", 1 << 62, "seen holds"),
        ("seen", -1, "seen holds"),
        ("counts", 1 << 62, "counts holds"),
        ("counts", 0, "without samples"),
    ],
)
def test_statistics_that_no_features_can_have_led_to(
    bundle: Path, name: str, value: float, says: str
) -> None:
    sign(bundle, STATISTICS)
    head = Bundle.open(bundle).head()
    assert np.isfinite(head.scores(np.eye(6))).all()
    array = STATISTICS[name].copy()
    array.flat[0] = value
    sign(bundle, {**STATISTICS, name: array})
    with pytest.raises(BundleError, match=rf"head\.safetensors: .*{says}"):
        Bundle.open(bundle)


def test_the_largest_features_can_be_learned_and_kept(make_bundle: Callable[..., Path]) -> None:
    largest = float(np.finfo(np.float32).max)
    for head in (Prototypes(), LDA(), Ridge(0.1), Ridge(projection=9), FeCAM()):
        head.update(largest * np.sign(np.random.default_rng(0).normal(size=(40, 6))), ["a", "b"] * 20)
        scores = (
            Bundle.open(make_bundle(f"{head.kind}-{head.nbytes}", head)).head().scores(largest * np.eye(6))
        )
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("field", ["everlearn", "files", "classes", "input"])
def test_a_manifest_without_a_field(bundle: Path, field: str) -> None:
    edit(bundle, lambda manifest: manifest.pop(field))
    with pytest.raises(BundleError, match="has the fields"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "..", ".", "", "a/b", "a\\b", "c:x", "a\0b", ".hidden"]
)
def test_file_names_that_leave_the_folder_are_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    edit(bundle, lambda manifest: manifest["files"].update({name: digest}))
    with pytest.raises(BundleError, match="only plain names"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x80\x04K\x01.",
        b"\xff" * 100,
        dump_arrays({}),
        dump_arrays(
            {
                "counts": np.ones(2, np.int64),
                "means": np.ones((2, 6)),
                "scatter": np.ones(20),
                "seen": np.ones(1),
            }
        ),
        dump_arrays({"counts": np.ones(3, np.int64), "means": np.ones((3, 6))}),
    ],
)
def test_a_head_that_does_not_fit_its_manifest(bundle: Path, contents: bytes) -> None:
    (bundle / "head.safetensors").write_bytes(contents)
    digest = hashlib.sha256(contents).hexdigest()
    edit(bundle, lambda manifest: manifest["files"].update({"head.safetensors": digest}))
    with pytest.raises(BundleError, match=r"head\.safetensors"):
        Bundle.open(bundle)


def test_writing_keeps_what_is_there(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="overwrite=True"):
        make_bundle(head=LDA())
    assert (bundle / "manifest.json").read_bytes() == before

    make_bundle(head=LDA(), overwrite=True)
    assert Bundle.open(bundle).manifest.classes == ()

    (bundle / "device.db").write_text("what a device has learned")
    with pytest.raises(ValueError, match="not an everlearn bundle"):
        make_bundle(head=LDA(), overwrite=True)
    assert (bundle / "device.db").read_text() == "what a device has learned"

    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(bundle)
    for name in ("photos", "file", "link"):
        with pytest.raises(ValueError, match="not an everlearn bundle"):
            make_bundle(name, LDA(), overwrite=True)
    assert photos.is_dir()
    assert (tmp_path / "file").read_text() == "text"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle", "file", "link", "photos"]


def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    old = Bundle.open(bundle).id
    calls: list[Path] = []
    failing_call = 0

    def failing(self: Path, target: Path, rename: Any = Path.rename) -> Any:
        calls.append(target)
        if len(calls) == failing_call:
            raise OSError("disk trouble")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    for number in (1, 2):
        failing_call = number
        calls.clear()
        with pytest.raises(OSError, match="disk trouble"):
            make_bundle(head=LDA(), overwrite=True)
        assert Bundle.open(bundle).id == old
        assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "changes",
    [
        {"features": b""},
        {"training": {"loss": float("nan")}},
        {"parity": {"difference": np.float32(1)}},
        {"sections": [4, 3]},
        {"sections": []},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_not_written(tmp_path: Path, graph: bytes, changes: dict[str, Any]) -> None:
    head = LDA()
    head.update(np.ones((1, 6)), ["mug"])
    arguments: dict[str, Any] = {
        "features": graph,
        "head": head,
        "input": InputSpec(8, 8, resize=8),
        "sections": [4, 2],
        "training": {},
        "parity": {},
        "everlearn": "0.1.0",
    }
    with pytest.raises(ValueError, match=r".+"):
        write_bundle(tmp_path / "bundle", **{**arguments, **changes})
    assert list(tmp_path.iterdir()) == []
