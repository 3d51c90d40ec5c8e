"""The bundle: what a workstation hands to a device, written and read in this one place.

A bundle is a folder, read-only once written:

``manifest.json``
    Format, version, input, classes, feature sections, head, training record, parity figures,
    and the sha256 of every other file.
``features.onnx``
    One graph, uint8 NHWC images to float features (B, F).
``head.safetensors``
    The head's arrays; its kind, options and classes stand in the manifest.
``canaries.safetensors``
    Of a bundle with canaries: features of a few images a class, by which a device can tell whether
    what it is taught would make it forget.
``map.safetensors``
    Of a bundle that replaces another one: the map from that one's features to its own, and that
    one's head. Format 2.
``train_step.onnx``, ``adapters.safetensors``
    Of a bundle that can train its adapters on: the step, and what it starts from, see
    `everlearn_runtime.train_step`. Format 3.
``merged.safetensors``
    Of a bundle into which what devices have learned was merged: what is in it, see
    `everlearn_runtime.ledger`.
``manifest.sig``
    Of a bundle that was signed, see `everlearn_runtime.signing`; in no manifest.

A bundle has the lowest format that holds what is in it, 1 without any of these.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from everlearn_runtime import signing, train_step
from everlearn_runtime.backends.graph import check_graph
from everlearn_runtime.errors import BundleError, TrustError
from everlearn_runtime.files import sync_folder, write_synced, write_whole
from everlearn_runtime.guard import Canaries
from everlearn_runtime.heads import Head, HeadState, from_state
from everlearn_runtime.images import InputSpec
from everlearn_runtime.ledger import Ledger
from everlearn_runtime.migration import Replaced, check_says
from everlearn_runtime.train_step import ADAPTERS, TRAIN_STEP, ShippedStep
from everlearn_runtime.words import plural

FORMAT = 3  # the newest that is read; with no training step 2 is written, with no map either 1
MANIFEST = "manifest.json"
FEATURES = "features.onnx"
HEAD = "head.safetensors"
MAP = "map.safetensors"
CANARIES = "canaries.safetensors"
LEDGER = "merged.safetensors"
LARGEST_MANIFEST = 1 << 26  # bytes; real ones have some kilobytes
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Args:
        format: Version of this layout; a reader refuses a newer one.
        everlearn: Version of everlearn that wrote the bundle.
        input: What the graph takes in.
        sections: Widths of the feature sections, in order; their sum is F.
        head: ``{"kind": ..., "options": {...}}``.
        classes: Names in the order of first appearance.
        training: How the model came to be; free-form JSON.
        parity: How close the graph is to the model it was made from; free-form JSON.
        files: sha256 of every other file of the bundle, by name.
        replaces: The bundle whose states can be carried over to this one, its head, and how good the
            map is, see `everlearn_runtime.migration.Replaced`; None without one.
        train_step: What the training step takes and how it was set, see
            `everlearn_runtime.train_step.ShippedStep`; None without one.
    """

    format: int
    everlearn: str
    input: InputSpec
    sections: tuple[int, ...]
    head: dict[str, Any]
    classes: tuple[str, ...]
    training: dict[str, Any]
    parity: dict[str, Any]
    files: dict[str, str]
    replaces: dict[str, Any] | None = None
    train_step: dict[str, Any] | None = None

    @property
    def width(self) -> int:
        """F, the number of features."""
        return sum(self.sections)

    def to_json(self) -> str:
        """The text of ``manifest.json``.

        Raises:
            ValueError: ``training`` or ``parity`` is not plain JSON (NaN is not).
        """
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        data["input"] = self.input.to_dict()
        for name in OPTIONAL:
            if data[name] is None:
                del data[name]
        try:
            return json.dumps(data, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"training and parity must be plain JSON without NaN: {error}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read and check the text of ``manifest.json``.

        Raises:
            BundleError: Not JSON, a newer format, or a field missing or of the wrong type.
        """
        try:
            data = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not JSON ({error}); copy the bundle again") from None
        if not isinstance(data, dict) or type(data.get("format")) is not int:
            raise BundleError(f"{MANIFEST} does not say its format; this is not an everlearn bundle")
        if data["format"] > FORMAT:
            writer = _short(data.get("everlearn")).strip("'")
            raise BundleError(
                f"the bundle has format {data['format']} (everlearn {writer}); "
                f"this version reads up to {FORMAT}: pip install --upgrade everlearn"
            )
        if data["format"] < 1:
            raise BundleError(f"{MANIFEST} says format {data['format']}; formats count from 1")
        names = {field.name for field in fields(cls)} - set(OPTIONAL)
        names |= _NEEDS.get(data["format"], set()) | (set(data) & _ALLOWS.get(data["format"], set()))
        if set(data) != names:
            raise BundleError(f"{MANIFEST} has the fields {_short(sorted(data))}; expected {sorted(names)}")
        for name, kind in _JSON_TYPES.items():
            if not isinstance(data[name], kind):
                raise BundleError(f"{name} in {MANIFEST} is {_short(data[name])}; expected {_SAYS[kind]}")
        sections, classes, files, head = data["sections"], data["classes"], data["files"], data["head"]
        if not sections or any(type(width) is not int or width < 1 for width in sections):
            raise BundleError(f"sections in {MANIFEST} is {_short(sections)}; expected feature widths")
        if any(not isinstance(name, str) for name in classes):
            raise BundleError(f"classes in {MANIFEST} is {_short(classes)}; expected names")
        if set(head) != {"kind", "options"} or not isinstance(head["options"], dict):
            raise BundleError(f"head in {MANIFEST} is {_short(head)}; expected a kind and options")
        for name, digest in files.items():
            if not isinstance(digest, str) or not PLAIN_NAME.fullmatch(name):
                raise BundleError(
                    f"files in {MANIFEST} names {_short(name)}; only plain names in the bundle are allowed"
                )
        if not {FEATURES, HEAD} <= set(files):
            raise BundleError(
                f"files in {MANIFEST} is {_short(sorted(files))}; {FEATURES} and {HEAD} must be among them"
            )
        if "replaces" in data:
            try:
                check_says(data["replaces"])
            except ValueError as error:
                raise BundleError(f"replaces in {MANIFEST} is wrong: {error}") from None
            if MAP not in files:
                raise BundleError(f"files in {MANIFEST} lacks {MAP}, the map from the replaced bundle")
        if "train_step" in data:
            try:
                train_step.check_says(data["train_step"])
            except ValueError as error:
                raise BundleError(f"train_step in {MANIFEST} is wrong: {error}") from None
            if not {TRAIN_STEP, ADAPTERS} <= set(files):
                raise BundleError(f"files in {MANIFEST} lacks {TRAIN_STEP} or {ADAPTERS}")
        try:
            spec = InputSpec.from_dict(data["input"])
        except (ValueError, TypeError) as error:
            raise BundleError(f"input in {MANIFEST} is wrong: {error}") from None
        return cls(**{**data, "input": spec, "sections": tuple(sections), "classes": tuple(classes)})


OPTIONAL = ("replaces", "train_step")
_NEEDS: dict[int, set[str]] = {2: {"replaces"}, 3: {"train_step"}}
_ALLOWS: dict[int, set[str]] = {3: {"replaces"}}
_JSON_TYPES: dict[str, type] = {
    "everlearn": str,
    "input": dict,
    "sections": list,
    "head": dict,
    "classes": list,
    "training": dict,
    "parity": dict,
    "files": dict,
}
_SAYS: dict[type, str] = {str: "a string", dict: "an object", list: "a list"}


@dataclass(frozen=True, repr=False)
class Bundle:
    """A bundle on disk that has been checked.

    Args:
        path: The folder.
        manifest: What its manifest says.
        id: sha256 of ``manifest.json``: two bundles with one id are the same to the bit.
    """

    path: Path
    manifest: Manifest
    id: str

    @classmethod
    def open(cls, path: str | Path, trust: Sequence[str | Path] | None = None) -> Bundle:
        """Read a bundle and check every file of it.

        Args:
            path: The folder.
            trust: Public keys, as files or PEM text, one of which must have signed the bundle. None: whoever
                made it is trusted.

        Raises:
            TrustError: The bundle is not signed by any of these keys, or was altered after that.
            MissingExtra: Signatures are to be checked, and cryptography is not installed.
            BundleError: Something is missing, damaged, of a newer format, or does not fit
                together; the message says what.
        """
        folder = Path(path)
        text = _manifest(folder)
        if trust is not None:
            try:
                signing.check_signature(text, _signatures(folder), trust)
            except TrustError as error:
                raise TrustError(f"{folder}: {error}") from None
        bundle = cls(folder, Manifest.from_json(text), hashlib.sha256(text).hexdigest())
        for name in sorted(set(bundle.manifest.files) - {FEATURES, HEAD}):  # which are read below
            bundle.read(name)
        check_graph(bundle.read(FEATURES), str(bundle.features))
        bundle.head()
        bundle.replaced()
        bundle.canaries()
        bundle.ledger()
        if bundle.manifest.train_step is not None:
            check_graph(bundle.read(TRAIN_STEP), str(bundle.path / TRAIN_STEP))
            bundle.adapters()
        return bundle

    def __repr__(self) -> str:
        manifest = self.manifest
        precision = manifest.parity.get("precision", "fp32")
        what = f"{plural(len(manifest.classes), 'class')}, {plural(manifest.width, 'feature')}"
        return f"<Bundle {str(self.path)!r}: {what}, head {manifest.head['kind']}, {precision}>"

    @property
    def features(self) -> Path:
        """The ONNX file: uint8 NHWC images to features."""
        return self.path / FEATURES

    def read(self, name: str) -> bytes:
        """A file's content, which is what the manifest says.

        Args:
            name: One of ``manifest.files``.

        Raises:
            BundleError: It is missing, or damaged.
        """
        data, digest = _read(self.path / name), self.manifest.files[name]
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            raise BundleError(
                f"{self.path / name} is damaged: sha256 {found[:12]}..., "
                f"the manifest says {digest[:12]}...; copy the bundle again"
            )
        return data

    def head(self) -> Head:
        """A fresh head, as the workstation left it.

        Raises:
            BundleError: The arrays do not fit the manifest.
        """
        manifest = self.manifest
        try:
            arrays = load_arrays(self.read(HEAD))
            head = from_state(
                HeadState(str(manifest.head["kind"]), manifest.classes, manifest.head["options"], arrays)
            )
            check_width(head, manifest.sections)
        except BundleError:
            raise
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self.path / HEAD}: {str(error)[:500]}") from None
        return head

    def replaced(self) -> Replaced | None:
        """The bundle that this one replaces, and the map from its features; None without one.

        Raises:
            BundleError: The arrays do not fit the manifest.
        """
        says = self.manifest.replaces
        if says is None:
            return None
        try:
            return Replaced.read(says, load_arrays(self.read(MAP)), self.manifest.width)
        except BundleError:
            raise
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self.path / MAP}: {str(error)[:500]}") from None

    def canaries(self) -> Canaries | None:
        """Features by which to tell whether the device forgets; None without any.

        Raises:
            BundleError: The arrays do not fit the manifest.
        """
        if CANARIES not in self.manifest.files:
            return None
        try:
            arrays = load_arrays(self.read(CANARIES))
            return Canaries.read(arrays, self.manifest.classes, self.manifest.width)
        except BundleError:
            raise
        except ValueError as error:
            raise BundleError(f"{self.path / CANARIES}: {str(error)[:500]}") from None

    def ledger(self) -> Ledger:
        """What was merged into it; nothing, of a bundle as a workstation made it.

        Raises:
            BundleError: The arrays are none of a ledger.
        """
        if LEDGER not in self.manifest.files:
            return Ledger()
        try:
            return Ledger.read(load_arrays(self.read(LEDGER)))
        except BundleError:
            raise
        except ValueError as error:
            raise BundleError(f"{self.path / LEDGER}: {str(error)[:500]}") from None

    def adapters(self) -> dict[str, NDArray[np.float32]]:
        """What a training step starts from, by name; none without a training step.

        Raises:
            BundleError: The arrays do not fit the manifest.
        """
        if self.manifest.train_step is None:
            return {}
        try:
            return train_step.check_adapters(self.manifest.train_step, load_arrays(self.read(ADAPTERS)))
        except BundleError:
            raise
        except ValueError as error:
            raise BundleError(f"{self.path / ADAPTERS}: {str(error)[:500]}") from None


def read_manifest(path: str | Path) -> Manifest:
    """What a bundle's manifest says, before its other files are looked at.

    Args:
        path: The bundle's folder.

    Raises:
        BundleError: As in :meth:`Bundle.open`.
    """
    return Manifest.from_json(_manifest(Path(path)))


def sign_bundle(path: str | Path, key: str | Path) -> str:
    """Sign a bundle that is whole; signatures of other keys stay.

    Args:
        path: The bundle's folder.
        key: The file of a private key, see `everlearn_runtime.signing.new_keys`.

    Returns:
        The key's fingerprint.

    Raises:
        BundleError: As in :meth:`Bundle.open`.
        ValueError: No private Ed25519 key in PEM.
        MissingExtra: cryptography is not installed.
    """
    folder = Path(path)
    Bundle.open(folder)
    text = _manifest(folder)
    try:
        before = _signatures(folder)
        content = signing.sign(text, key, before)
    except TrustError:  # of nothing that can be read, which goes
        content = signing.sign(text, key)
    write_whole(folder / signing.SIGNATURE, content)
    return str(json.loads(content)["signatures"][-1]["key"])


def write_bundle(
    path: str | Path,
    *,
    features: bytes,
    head: Head,
    input: InputSpec,
    sections: Sequence[int],
    training: Mapping[str, Any],
    parity: Mapping[str, Any],
    everlearn: str,
    replaces: Replaced | None = None,
    canaries: Canaries | None = None,
    step: ShippedStep | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle: all of it or nothing.

    The files are written into a folder beside ``path``, brought to the disk, and put in place by
    a rename, so that a crash never leaves half a bundle. A crash in the middle of replacing one
    leaves the old bundle beside ``path``, under a name that ends in ``-old``.

    Args:
        path: The folder to be; its parents are made.
        features: The ONNX graph.
        head: What it scores with at first.
        input: What the graph takes in.
        sections: Widths of the feature sections; their sum is the head's width.
        training: How the model came to be, plain JSON.
        parity: How close the graph is to its model, plain JSON.
        everlearn: Version of everlearn that writes.
        replaces: The bundle whose states can be carried over to this one.
        canaries: Features of classes that the head knows, by which the device can tell whether it forgets.
        step: What trains on the device.
        overwrite: Replace an everlearn bundle that is there; anything else is never touched.

    Returns:
        The manifest as written.

    Raises:
        ValueError: Something is in the way at ``path``, or the parts do not fit together.
    """
    target = Path(path)
    check_target(target, overwrite)
    if not features:
        raise ValueError("features is empty; give the bytes of an ONNX graph")
    state = head.state()
    check_width(head, sections)
    contents = {FEATURES: features, HEAD: dump_arrays(state.arrays)}
    if replaces is not None:
        contents[MAP] = dump_arrays(replaces.arrays())
    if canaries is not None:
        contents[CANARIES] = dump_arrays(canaries.arrays(state.classes))
    if step is not None:
        contents |= {TRAIN_STEP: step.graph, ADAPTERS: dump_arrays(step.adapters)}
    manifest = Manifest(
        format=3 if step is not None else 2 if replaces is not None else 1,
        everlearn=everlearn,
        input=input,
        sections=tuple(int(width) for width in sections),
        head={"kind": state.kind, "options": state.options},
        classes=state.classes,
        training=dict(training),
        parity=dict(parity),
        files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        replaces=None if replaces is None else replaces.says(),
        train_step=None if step is None else step.says(),
    )
    return _write(target, manifest, contents, overwrite)


def rewrite_bundle(
    bundle: Bundle, path: str | Path, *, head: Head, ledger: Ledger, overwrite: bool = False
) -> Manifest:
    """Write a bundle with another head, and otherwise what it holds; not its signatures.

    Args:
        bundle: The bundle.
        path: The folder to be; its parents are made.
        head: Of the same kind, options and width.
        ledger: What was merged into it.
        overwrite: As in :func:`write_bundle`.

    Returns:
        The manifest as written.

    Raises:
        BundleError: A file of the bundle is damaged.
        ValueError: Something is in the way at ``path``, or the head does not fit.
    """
    check_target(Path(path), overwrite)
    state, manifest = head.state(), bundle.manifest
    if {"kind": state.kind, "options": state.options} != manifest.head:
        raise ValueError(f"a {state.kind} head does not go into a bundle with {_short(manifest.head)}")
    check_width(head, manifest.sections)
    contents = {name: bundle.read(name) for name in manifest.files}
    contents |= {HEAD: dump_arrays(state.arrays), LEDGER: dump_arrays(ledger.arrays())}
    canaries = bundle.canaries()
    if canaries is not None:
        left = canaries.of(state.classes)
        del contents[CANARIES]
        if left.labels:
            contents[CANARIES] = dump_arrays(left.arrays(state.classes))
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    return _write(Path(path), replace(manifest, classes=state.classes, files=files), contents, overwrite)


def _write(target: Path, manifest: Manifest, contents: Mapping[str, bytes], overwrite: bool) -> Manifest:
    """Write a bundle: all of it or nothing."""
    text = manifest.to_json()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        folder.chmod(0o755)
        for name, data in {**contents, MANIFEST: text.encode()}.items():
            write_synced(folder / name, data)
        sync_folder(folder)
        check_target(target, overwrite)
        if target.exists():
            _replace(target, folder)
        else:
            folder.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Manifest.from_json(text)


def check_width(head: Head, sections: Sequence[int]) -> None:
    """Raise a ``ValueError`` if a head has another width than these sections make."""
    if head.width is not None and head.width != sum(sections):
        raise ValueError(f"the head is {head.width} wide; the sections {list(sections)} make {sum(sections)}")


def dump_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as safetensors bytes."""
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def load_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The reverse of :func:`dump_arrays`.

    Raises:
        ValueError: Not safetensors, or cut short.
    """
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"not a readable safetensors file ({error})") from None


def check_target(target: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` if no bundle may be written to this path."""
    if not target.exists() and not target.is_symlink():
        return
    if not _is_bundle(target):
        raise ValueError(f"{target} exists and is not an everlearn bundle; give another path")
    if not overwrite:
        raise ValueError(f"{target} already holds a bundle; give another path, or overwrite=True")


def _replace(target: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}-old")
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _is_bundle(path: Path) -> bool:
    """Whether this folder holds a bundle and nothing else, so that it may be replaced."""
    try:
        manifest = Manifest.from_json(_read(path / MANIFEST))
        present = {entry.name for entry in path.iterdir()}
    except (BundleError, OSError):
        return False
    return not path.is_symlink() and present <= {MANIFEST, signing.SIGNATURE, *manifest.files}


def _manifest(folder: Path) -> bytes:
    """The bytes of a bundle's manifest."""
    try:
        there = folder.is_dir()
    except (OSError, ValueError):  # no rights to look, or no name a file could have
        there = False
    if not there:
        raise BundleError(f"{folder}: no such folder; a bundle is a folder with a {MANIFEST}")
    if not (folder / MANIFEST).exists():
        run = (folder / "learner.safetensors").exists()
        mend = f"it is what `everlearn train` wrote: everlearn export {folder} --out BUNDLE"
        raise BundleError(f"{folder} is no bundle, it has no {MANIFEST}{'; ' + mend if run else ''}")
    with _opened(folder / MANIFEST) as file:
        text = file.read(LARGEST_MANIFEST + 1)
    if len(text) > LARGEST_MANIFEST:
        raise BundleError(f"{folder / MANIFEST} has more than {LARGEST_MANIFEST:,} bytes; it is no manifest")
    return text


def _signatures(folder: Path) -> bytes | None:
    """The bytes of a bundle's signatures, one more than are read if there are too many; None without any."""
    place = folder / signing.SIGNATURE
    if not place.exists():
        return None
    with _opened(place) as file:
        return file.read(signing.LARGEST_KEY + 1)


def _read(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """An ordinary file, to be read: a pipe would wait for ever."""
    try:
        if path.exists() and not path.is_file():
            raise BundleError(f"{path} is no ordinary file; copy the bundle again")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); copy the bundle again") from None


def _short(value: object) -> str:
    """A value for a message, whatever its size and depth."""
    return reprlib.repr(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
