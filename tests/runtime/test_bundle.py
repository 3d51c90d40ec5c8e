"""The format on disk: written whole, read with suspicion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn_runtime import FORMAT, LDA, Bundle, BundleError, InputSpec, Prototypes, Ridge, write_bundle
from everlearn_runtime.bundle import dump_arrays

FILES = ("manifest.json", "features.onnx", "head.safetensors")


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


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
        assert bundle.manifest.format == FORMAT
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
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        Bundle.open(tmp_path)


def test_a_newer_format_says_how_to_upgrade(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(format=FORMAT + 1, everlearn="9.0", surprise=1))
    with pytest.raises(BundleError, match=r"format 2 \(everlearn 9\.0\).*pip install --upgrade everlearn"):
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
