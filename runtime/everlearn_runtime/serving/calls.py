"""What can be asked of a learner, as JSON objects in and out; knows nothing of HTTP but its status codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.edge import EdgeLearner
from everlearn_runtime.errors import GuardError, MissingExtra, StateError
from everlearn_runtime.names import check_names
from everlearn_runtime.serving.limits import Limits, Refused
from everlearn_runtime.serving.pictures import from_base64, unpack
from everlearn_runtime.state import Version

JSON = dict[str, Any]
LONGEST_HISTORY = 1000
VERSIONS = 100


@dataclass(frozen=True)
class Field:
    """A member of a request's object.

    Args:
        kind: What it must be.
        default: What it is where it is left out; ``...`` where it must not be.
    """

    kind: type | tuple[type, ...]
    default: Any = ...


FIELDS: dict[str, dict[str, Field]] = {
    "predict": {"images": Field(list), "top": Field(int, 3)},
    "learn": {
        "images": Field(list),
        "label": Field(str, None),
        "labels": Field(list, None),
        "guard": Field((int, float), None),
    },
    "forget": {"label": Field(str), "purge": Field(bool, False)},
    "undo": {},
    "rollback": {"to": Field(int)},
    "history": {"last": Field(int, VERSIONS)},
    "status": {},
}


class Calls:
    """Answers requests with a learner; safe to share between threads, as the learner is.

    Whatever is refused has changed nothing.

    Args:
        learner: Who predicts and learns.
        limits: What one call may ask for.
    """

    def __init__(self, learner: EdgeLearner, limits: Limits) -> None:
        self.learner = learner
        self.limits = limits

    def answer(self, name: str, data: object) -> JSON:
        """Do what is asked.

        Args:
            name: One of ``FIELDS``.
            data: The request's object; ``images`` are bytes, or base64 text.

        Raises:
            Refused: With the status code that fits: 400 for a mistake in the request, 409 for what the
                state or a guard does not allow, 413 for too much, 501 where something is not installed.
        """
        call: Callable[..., JSON] = getattr(self, f"_{name}")
        try:
            return call(**checked(data, FIELDS[name]))
        except (StateError, GuardError) as error:
            raise Refused(409, _sentence(error)) from error
        except MissingExtra as error:
            raise Refused(501, _sentence(error)) from error
        except ValueError as error:
            raise Refused(400, _sentence(error)) from error

    def _predict(self, images: list[object], top: int) -> JSON:
        if not 1 <= top <= 1000:
            raise Refused(400, f"top is {top}; give a number from 1 to 1000")
        found = self.learner.predict(self._batch(images))
        return {
            "calibrated": found.calibrated,
            "predictions": [
                {
                    "label": label,
                    "known": bool(known),
                    "top": [{"label": name, "probability": share} for name, share in best],
                }
                for label, known, best in zip(found.labels, found.known, found.top(top), strict=True)
            ],
        }

    def _learn(
        self, images: list[object], label: str | None, labels: list[object] | None, guard: float | None
    ) -> JSON:
        if (label is None) == (labels is None):
            raise Refused(400, "give either label, for all images, or labels, one for each")
        wanted: Sequence[object] = [label] * len(images) if labels is None else labels
        if len(wanted) != len(images):
            raise Refused(400, f"{len(wanted)} labels for {len(images)} images; give one label per image")
        names = self._names(wanted)
        learned = self.learner.learn(self._batch(images), names, guard=guard)
        return {
            "version": learned.number,
            "learned": named(learned.counts),
            "suspects": [
                {"image": one.index, "looks": one.looks, "reason": one.reason} for one in learned.suspects
            ],
        }

    def _forget(self, label: str, purge: bool) -> JSON:
        version = self.learner.forget(label, purge=purge)
        return {"version": version.number, "form": version.form}

    def _undo(self) -> JSON:
        version = self.learner.undo()
        return {"version": version.number, "to": version.to}

    def _rollback(self, to: int) -> JSON:
        version = self.learner.rollback(to)
        return {"version": version.number, "to": version.to}

    def _history(self, last: int) -> JSON:
        if not 1 <= last <= LONGEST_HISTORY:
            raise Refused(400, f"last is {last}; give a number from 1 to {LONGEST_HISTORY}")
        return {"versions": [told(version) for version in self.learner.history()[-last:]]}

    def _status(self) -> JSON:
        learner, spec = self.learner, self.learner.bundle.manifest.input
        return {
            "version": learner.version,
            "classes": named(learner.counts),
            "drifted": learner.drifted,
            "head": learner.bundle.manifest.head["kind"],
            "backend": learner.backend,
            "input": {"height": spec.height, "width": spec.width},
            "limits": {
                name: getattr(self.limits, name) for name in ("body", "pixels", "images", "label", "rate")
            },
        }

    def _batch(self, images: Sequence[object]) -> NDArray[np.uint8]:
        data = [one for one in images if isinstance(one, bytes)]
        files = data if len(data) == len(images) else from_base64(images)
        return unpack(files, self.learner.bundle.manifest.input, self.limits)

    def _names(self, labels: Sequence[object]) -> list[str]:
        """Labels that a person can read, tell apart and type again."""
        if not labels:  # nor images, which is what to say
            return []
        names = check_names(cast("Sequence[str]", labels), lambda: self.learner.classes)
        long = {name for name in names if len(name) > self.limits.label}
        for name in long.difference(self.learner.classes) if long else ():
            raise Refused(413, f"a label of {len(name):,} characters; give at most {self.limits.label}")
        return names


def checked(data: object, fields: Mapping[str, Field]) -> JSON:
    """The members of an object, with defaults for those that were left out.

    Raises:
        Refused: 400, it is no object, or a member is missing, unknown or of the wrong type.
    """
    if not isinstance(data, dict):
        raise Refused(400, f"a JSON {_kind(data)}; give an object with {_listed(fields)}")
    if unknown := [name for name in data if name not in fields]:
        raise Refused(400, f"unknown field {unknown[0][:40]!r}; this call takes {_listed(fields)}")
    found = {}
    for name, field in fields.items():
        value = data.get(name, field.default)
        if value is ...:
            raise Refused(400, f"{name} is missing; this call takes {_listed(fields)}")
        # None stands for "left out" where that is allowed; True is an int in Python, not in JSON.
        right = isinstance(value, field.kind) and (field.kind is bool or not isinstance(value, bool))
        if not right and not (value is None and field.default is None):
            raise Refused(400, f"{name} is a JSON {_kind(value)}; give {_wanted(field.kind)}")
        found[name] = value
    return found


def told(version: Version) -> JSON:
    """A version as an object."""
    return {
        "version": version.number,
        "time": version.time.isoformat(timespec="seconds"),
        "kind": version.kind,
        "classes": named(version.counts),
        "to": version.to,
        "form": version.form,
    }


def named(counts: Mapping[str, int]) -> list[JSON]:
    """Counts as a list, which keeps its order in every language, also where a name is a number."""
    return [{"label": label, "samples": count} for label, count in counts.items()]


_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "text",
    list: "list",
    dict: "object",
}
_WANTED: dict[type, str] = {bool: "true or false", int: "a whole number", str: "text", list: "a list"}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _wanted(kind: type | tuple[type, ...]) -> str:
    return "a number" if isinstance(kind, tuple) else _WANTED[kind]


def _listed(fields: Mapping[str, Field]) -> str:
    return ", ".join(fields) or "no fields"


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())
