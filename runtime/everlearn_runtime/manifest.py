"""What ``manifest.json`` says: the one file of a bundle that names all others."""

from __future__ import annotations

import json
import re
import reprlib
from dataclasses import dataclass, fields
from typing import Any

from everlearn_runtime import train_step
from everlearn_runtime.errors import BundleError
from everlearn_runtime.images import InputSpec
from everlearn_runtime.migration import check_says
from everlearn_runtime.train_step import ADAPTERS, TRAIN_STEP

FORMAT = 3  # the newest that is read; with no training step 2 is written, with no map either 1
MANIFEST = "manifest.json"
FEATURES = "features.onnx"
HEAD = "head.safetensors"
MAP = "map.safetensors"
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


def _short(value: object) -> str:
    """A value for a message, whatever its size and depth."""
    return reprlib.repr(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
