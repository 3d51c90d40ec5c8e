"""Who made a bundle or a delta: Ed25519 signatures.

The manifest names the sha256 of every other file, so a signature of the manifest's bytes covers all of the
bundle. It lies beside it, as ``manifest.sig``: JSON, one entry for each key that signed. Keys are PEM files
as OpenSSL writes and reads them (``openssl genpkey -algorithm ed25519``).

Why not OpenSSF's model-signing: it certifies by default through an identity provider and a public log, which
a device without a network cannot ask, and with plain keys brings three dozen packages for what is one call
of ``cryptography`` here (Bernstein et al. 2012, "High-speed high-security signatures"; RFC 8032).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn_runtime.errors import MissingExtra, TrustError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
FORMAT = 1
# Stand before what is signed, so that a signature of one thing never is one of another.
BUNDLE, DELTA = b"everlearn bundle 1\n", b"everlearn delta 1\n"
LARGEST_KEY = 1 << 16  # bytes, of a file with a key or with signatures


def new_keys(path: str | Path) -> tuple[Path, Path]:
    """Make a pair of keys.

    Args:
        path: Where the private key goes, readable for its owner only; the public one goes beside it, as
            ``PATH.pub``.

    Returns:
        The places of the private and of the public key.

    Raises:
        ValueError: Something is at one of the two places.
        MissingExtra: cryptography is not installed.
    """
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives import serialization as form

    private, public = Path(path), Path(f"{path}.pub")
    for place in (private, public):
        if place.exists() or place.is_symlink():
            raise ValueError(f"{place} is there already; a key is never overwritten, give another path")
    key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    shown = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    private.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)
    public.write_bytes(shown)
    return private, public


def fingerprint(key: str | Path) -> str:
    """The first 16 hex digits of the sha256 of a public key, for people.

    Raises:
        ValueError: No public Ed25519 key in PEM.
        MissingExtra: cryptography is not installed.
    """
    return _fingerprint(_public(key))


def sign(message: bytes, key: str | Path, before: bytes | None = None, purpose: bytes = BUNDLE) -> bytes:
    """The content of ``manifest.sig``.

    Args:
        message: The bytes of ``manifest.json``, or what is signed of a delta.
        key: The file of a private key.
        before: What ``manifest.sig`` holds already; other keys' signatures of the same message stay.
        purpose: `BUNDLE` or `DELTA`.

    Raises:
        ValueError: No private Ed25519 key in PEM without a password.
        MissingExtra: cryptography is not installed.
    """
    private = _private(key)
    own = _fingerprint(private.public_key())
    others = [one for one in ([] if before is None else _entries(before)) if one["key"] != own]
    made = base64.b64encode(private.sign(purpose + message)).decode()
    entries = [*others, {"key": own, "signature": made}]
    return (json.dumps({"format": FORMAT, "signatures": entries}, indent=2) + "\n").encode()


def check_signature(
    message: bytes, signatures: bytes | None, trust: Sequence[str | Path], purpose: bytes = BUNDLE
) -> str:
    """Raise unless one of these keys has signed a message.

    Args:
        message: The bytes of ``manifest.json``, or what is signed of a delta.
        signatures: What ``manifest.sig`` holds; None if it is not there.
        trust: Public keys: files, or PEM text.
        purpose: `BUNDLE` or `DELTA`.

    Returns:
        The fingerprint of a key that has.

    Raises:
        TrustError: It is not signed by any of them.
        ValueError: ``trust`` is empty, or something in it is no public key.
        MissingExtra: cryptography is not installed.
    """
    keys = trusted(trust)
    if signatures is None:
        raise TrustError("it is not signed; a bundle is signed with: everlearn sign, a delta with --key")
    from cryptography.exceptions import InvalidSignature

    entries = _entries(signatures)
    for entry in entries:
        if (key := keys.get(entry["key"])) is not None:
            try:
                key.verify(base64.b64decode(entry["signature"], validate=True), purpose + message)
            except (InvalidSignature, binascii.Error, ValueError):
                raise TrustError(
                    f"the signature of key {entry['key']} does not go with it; it was altered after it "
                    "was signed"
                ) from None
            return str(entry["key"])
    signed = ", ".join(entry["key"] for entry in entries) or "nobody"
    raise TrustError(f"it is signed by {signed}, and trusted are {', '.join(keys)}")


def signers(signatures: str | bytes | None) -> list[str]:
    """Fingerprints of the keys that signatures say they are of, unchecked.

    Args:
        signatures: What ``manifest.sig`` holds; None if it is not there.

    Raises:
        TrustError: They are not readable.
    """
    text = signatures.encode() if isinstance(signatures, str) else signatures
    return [] if text is None else [entry["key"] for entry in _entries(text)]


def trusted(trust: Sequence[str | Path]) -> dict[str, Ed25519PublicKey]:
    """The keys, by their fingerprints.

    Raises:
        ValueError: None at all, or something that is no public key.
        MissingExtra: cryptography is not installed.
    """
    if isinstance(trust, (str, os.PathLike)):
        raise ValueError(f"trust is {trust!r}; give a list of public keys")
    if not trust:
        raise ValueError(
            "trust is empty; give a list of public keys, or None to trust whoever made the bundle"
        )
    return {_fingerprint(key): key for key in map(_public, trust)}


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingExtra("signing and checking signatures", "signing") from None
    return ed25519


def _fingerprint(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _public(key: str | Path) -> Ed25519PublicKey:
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    text = isinstance(key, str) and key.lstrip().startswith("-----BEGIN")
    data = str(key).encode() if text else _key_file(key)
    says = "the text given" if text else str(key)
    if b"PRIVATE KEY" in data:
        raise ValueError(f"{says} is a private key, which no device needs; give the public one, NAME.pub")
    try:
        found = load_pem_public_key(data)
    except Exception as error:  # ValueError, UnsupportedAlgorithm, and whatever OpenSSL finds
        raise ValueError(f"{says} is no public key in PEM ({_one_line(error)})") from None
    if not isinstance(found, ed25519.Ed25519PublicKey):
        raise ValueError(f"{says} is a key of another kind; give an Ed25519 key, see: everlearn keys new")
    public: Ed25519PublicKey = found
    return public


def _private(key: str | Path) -> Ed25519PrivateKey:
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _key_file(key)
    if b"PUBLIC KEY" in data:
        raise ValueError(f"{key} is a public key; sign with the private one")
    try:
        found = load_pem_private_key(data, password=None)
    except Exception as error:  # TypeError where it has a password
        raise ValueError(f"{key} is no private key in PEM without a password ({_one_line(error)})") from None
    if not isinstance(found, ed25519.Ed25519PrivateKey):
        raise ValueError(f"{key} is a key of another kind; give an Ed25519 key, see: everlearn keys new")
    private: Ed25519PrivateKey = found
    return private


def _key_file(key: str | Path) -> bytes:
    if not isinstance(key, (str, os.PathLike)):
        raise ValueError(f"a key is {reprlib.repr(key)}; give a path or PEM text")
    try:
        if not Path(key).is_file():
            raise ValueError(f"{key}: no such file; keys are made with: everlearn keys new")
        with Path(key).open("rb") as file:
            data = file.read(LARGEST_KEY + 1)
    except OSError as error:
        raise ValueError(f"{key} cannot be read ({error.strerror})") from None
    if len(data) > LARGEST_KEY:
        raise ValueError(f"{key} has more than {LARGEST_KEY:,} bytes; it is no key")
    return data


def _entries(signatures: bytes) -> list[dict[str, str]]:
    """What a file of signatures says, checked."""
    try:
        said = json.loads(signatures) if len(signatures) <= LARGEST_KEY else None
    except (ValueError, RecursionError):
        said = None
    entries = said.get("signatures") if isinstance(said, dict) and said.get("format") == FORMAT else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict)
        and set(entry) == {"key", "signature"}
        and all(isinstance(value, str) for value in entry.values())
        for entry in entries
    ):
        raise TrustError("its signatures are not readable; sign it again")
    return entries


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
