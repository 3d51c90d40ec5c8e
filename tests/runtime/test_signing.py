"""Signed bundles: what is altered, unsigned or somebody else's is refused where trust is asked for."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn_runtime import Bundle, BundleError, EdgeLearner, MissingExtra, TrustError, sign_bundle, signing
from everlearn_runtime.bundle import dump_arrays
from everlearn_runtime.cli import main

from .conftest import MakeBundle, MakeImages


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Private keys of two makers; the public ones lie beside."""
    folder = tmp_path_factory.mktemp("keys")
    return {name: signing.new_keys(folder / name)[0] for name in ("ours", "theirs")}


@pytest.fixture
def signed(make_bundle: MakeBundle, keys: dict[str, Path]) -> Path:
    bundle = make_bundle()
    sign_bundle(bundle, keys["ours"])
    return bundle


def public(key: Path) -> str:
    return f"{key}.pub"


def test_a_signed_bundle_opens_with_a_key_that_signed_it(
    signed: Path, keys: dict[str, Path], make_images: MakeImages
) -> None:
    both = [public(keys["theirs"]), Path(public(keys["ours"])).read_text()]
    for trust in ([public(keys["ours"])], both, None):
        with EdgeLearner.open(signed, trust=trust) as edge:
            assert edge.predict(make_images("mug", 1)).labels == ["mug"]
    entry = json.loads((signed / "manifest.sig").read_text())["signatures"][0]
    assert entry["key"] == signing.fingerprint(public(keys["ours"]))


def test_keys_are_for_their_owner_and_never_overwritten(tmp_path: Path) -> None:
    private, shown = signing.new_keys(tmp_path / "new" / "key")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), shown.read_bytes()
    assert before[0] != before[1]
    with pytest.raises(ValueError, match="never overwritten"):
        signing.new_keys(private)
    private.unlink()
    with pytest.raises(ValueError, match=r"key\.pub is there already"):
        signing.new_keys(private)
    assert not private.exists()
    assert shown.read_bytes() == before[1]


def test_unsigned_is_refused(make_bundle: MakeBundle, keys: dict[str, Path]) -> None:
    with pytest.raises(TrustError, match="not signed"):
        EdgeLearner.open(make_bundle(), trust=[public(keys["ours"])])


def test_signed_by_somebody_else_is_refused(signed: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(TrustError, match=r"signed by \w{16}, and trusted are \w{16}"):
        Bundle.open(signed, [public(keys["theirs"])])
    sign_bundle(signed, keys["theirs"])  # and now by both
    for key in keys.values():
        Bundle.open(signed, [public(key)])
    sign_bundle(signed, keys["ours"])  # the same key again takes the place of its signature
    assert len(json.loads((signed / "manifest.sig").read_text())["signatures"]) == 2


def test_an_altered_head_is_refused_with_its_hash_computed_anew(signed: Path, keys: dict[str, Path]) -> None:
    arrays = {name: array + 0 for name, array in Bundle.open(signed).head().state().arrays.items()}
    arrays["means"] = arrays["means"][::-1].copy()
    content = dump_arrays(arrays)
    (signed / "head.safetensors").write_bytes(content)
    trust = [public(keys["ours"])]
    with pytest.raises(BundleError, match="damaged"):
        Bundle.open(signed, trust)
    manifest = json.loads((signed / "manifest.json").read_text())
    manifest["files"]["head.safetensors"] = hashlib.sha256(content).hexdigest()
    (signed / "manifest.json").write_text(json.dumps(manifest))
    Bundle.open(signed)  # who asks for no trust gets it
    with pytest.raises(TrustError, match="altered after it was signed"):
        Bundle.open(signed, trust)


def test_a_signature_goes_with_one_bundle(
    signed: Path, make_bundle: MakeBundle, keys: dict[str, Path]
) -> None:
    other = make_bundle("other", training={"method": "another"})
    (other / "manifest.sig").write_bytes((signed / "manifest.sig").read_bytes())
    with pytest.raises(TrustError, match="altered"):
        Bundle.open(other, [public(keys["ours"])])
    manifest, key = (other / "manifest.json").read_bytes(), signing._private(keys["ours"])
    entry = {  # a signature of the same bytes, but not as a bundle's
        "key": signing.fingerprint(public(keys["ours"])),
        "signature": base64.b64encode(key.sign(manifest)).decode(),
    }
    content = json.dumps({"format": 1, "signatures": [entry]})
    with pytest.raises(TrustError, match="altered"):
        signing.check_signature(manifest, content.encode(), [public(keys["ours"])])


def test_what_is_written_over_a_signed_bundle_is_not_signed(signed: Path, make_bundle: MakeBundle) -> None:
    make_bundle(head=Bundle.open(signed).head(), overwrite=True)
    assert not (signed / "manifest.sig").exists()


def test_a_file_that_is_changed_after_the_bundle_was_opened_is_noticed(signed: Path) -> None:
    bundle = Bundle.open(signed)
    (signed / "head.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match="damaged"):
        bundle.head()


def test_a_damaged_bundle_is_not_signed(make_bundle: MakeBundle, keys: dict[str, Path]) -> None:
    bundle = make_bundle()
    (bundle / "head.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match="damaged"):
        sign_bundle(bundle, keys["ours"])
    assert sorted(file.name for file in bundle.iterdir()) == [
        "features.onnx",
        "head.safetensors",
        "manifest.json",
    ]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder, key: [], "trust is empty"),
        (lambda folder, key: public(key), "give a list"),
        (lambda folder, key: [key], "is a private key"),
        (lambda folder, key: [folder / "none.pub"], "no such file"),
        (lambda folder, key: [folder], "no such file"),
        (lambda folder, key: [7], "a key is 7"),
        (lambda folder, key: ["-----BEGIN PUBLIC KEY-----\nno"], "the text given is no public key"),
        (lambda folder, key: [write(folder / "zeros", bytes(100))], "no public key in PEM"),
        (lambda folder, key: [write(folder / "large", bytes(1 << 17))], "it is no key"),
        (lambda folder, key: [write(folder / "ec.pub", another_kind())], "another kind"),
    ],
)
def test_what_is_no_key_is_said(
    signed: Path, keys: dict[str, Path], tmp_path: Path, make: Callable[[Path, Path], list[Path]], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        EdgeLearner.open(signed, trust=make(tmp_path, keys["ours"]))


def test_sign_with_what_is_no_private_key(signed: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    before = (signed / "manifest.sig").read_bytes()
    for key, says in (
        (public(keys["ours"]), "is a public key"),
        (write(tmp_path / "k", b"no"), "no private"),
    ):
        with pytest.raises(ValueError, match=says):
            sign_bundle(signed, key)
    assert (signed / "manifest.sig").read_bytes() == before


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def another_kind() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.lists(
    st.fixed_dictionaries({"key": st.sampled_from(["OURS", "x"]), "signature": st.text(max_size=100)}),
    max_size=3,
)


@settings(deadline=None)
@given(
    content=st.binary(max_size=200)
    | JSON.map(lambda said: json.dumps(said).encode())
    | ENTRIES.map(lambda entries: json.dumps({"format": 1, "signatures": entries}).encode())
)
def test_whatever_lies_there_as_a_signature_is_refused(content: bytes, keys: dict[str, Path]) -> None:
    own = signing.fingerprint(public(keys["ours"])).encode()
    with pytest.raises(TrustError):
        signing.check_signature(b"{}", content.replace(b"OURS", own), [public(keys["ours"])])


def test_a_signature_without_end_is_refused(signed: Path, keys: dict[str, Path]) -> None:
    (signed / "manifest.sig").write_bytes(b" " * (signing.LARGEST_KEY + 2))
    with pytest.raises(TrustError, match="not readable"):
        Bundle.open(signed, [public(keys["ours"])])
    Bundle.open(signed)
    sign_bundle(signed, keys["ours"])  # mends it
    Bundle.open(signed, [public(keys["ours"])])


def test_without_cryptography_one_line_names_the_extra(
    signed: Path, keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtra, match=r"everlearn\[signing\]"):
        EdgeLearner.open(signed, trust=[public(keys["ours"])])
    EdgeLearner.open(signed).close()


def test_from_the_command_line(
    signed: Path,
    make_images: MakeImages,
    tmp_path: Path,
    keys: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = tmp_path / "images.npy"
    np.save(images, make_images("mug", 2))
    asked = ["predict", str(signed), str(images), "--trust"]
    assert main([*asked, public(keys["ours"])]) == 0
    assert main([*asked, public(keys["theirs"])]) == 2
    error = capsys.readouterr().err
    assert "is signed by" in error
    assert error.count("\n") == 1
    assert main([*asked, public(keys["theirs"]), "--trust", public(keys["ours"])]) == 0
    status = ["status", str(signed), "--trust", public(keys["theirs"])]
    assert main(status) == 2
    assert main(["benchmark", str(signed), "--seconds", "0.01", "--trust", public(keys["theirs"])]) == 2
