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
import reprlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from everlearn_runtime.manifest import FEATURES, HEAD, MANIFEST, MAP, Manifest
from everlearn_runtime.migration import Replaced
from everlearn_runtime.train_step import ADAPTERS, TRAIN_STEP, ShippedStep
from everlearn_runtime.words import plural

CANARIES = "canaries.safetensors"
LEDGER = "merged.safetensors"
LARGEST_MANIFEST = 1 << 26  # bytes; real ones have some kilobytes


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
        raise ValueError(f"a {state.kind} head does not go into a bundle with {reprlib.repr(manifest.head)}")
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
