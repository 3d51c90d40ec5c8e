"""What a bundle or a state is, without running it: ``everlearn-device info``."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from everlearn_runtime.bundle import Bundle
from everlearn_runtime.errors import StateError
from everlearn_runtime.manifest import MANIFEST
from everlearn_runtime.state.anchor import check_companion, check_kind, read_anchor
from everlearn_runtime.state.archive import Archive, lineage
from everlearn_runtime.state.database import SCHEMA, content_errors, rows
from everlearn_runtime.state.lock import reading
from everlearn_runtime.state.view import companion, view

SQLITE = b"SQLite format 3\0"


def describe(path: str | Path) -> dict[str, Any]:
    """What is known of a bundle or a state, as plain data.

    Args:
        path: A bundle's folder, every file of which is checked, or a state file, which another process may
            be using.

    Raises:
        ValueError: It is neither.
        BundleError: The bundle is damaged, or of a newer format.
        StateError: The state is damaged, or of a newer schema.
    """
    place = Path(path)
    if (place / MANIFEST).is_file():
        return _bundle(place)
    if place.is_file():
        with place.open("rb") as file:
            begins = file.read(len(SQLITE))
        if begins == SQLITE:
            return _state(place)
    if not place.exists():
        raise ValueError(f"{path}: no such file or folder")
    raise ValueError(f"{path} is neither a bundle, a folder with {MANIFEST}, nor a device's state file")


def lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for people: a name and a text for each; of classes the number, see `classes_of`."""
    told = []
    for name, value in facts.items():
        if name == "classes":
            told.append((name, f"{len(value):,}"))
        elif isinstance(value, Mapping):
            inner = ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
            told.append((name.replace("_", " "), inner or "none"))
        else:
            told.append((name.replace("_", " "), _plain(value)))
    return told


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _bundle(path: Path) -> dict[str, Any]:
    bundle = Bundle.open(path)
    manifest, head, canaries = bundle.manifest, bundle.head(), bundle.canaries()
    spec, made, confidence = manifest.input, manifest.training, head.confidence
    backbone, method = made.get("backbone"), made.get("method")
    return {
        "what": "bundle",
        "path": str(path),
        "id": bundle.id,
        "format": manifest.format,
        "everlearn": manifest.everlearn,
        "backbone": backbone.get("name") if isinstance(backbone, dict) else None,
        "method": method.get("name") if isinstance(method, dict) else None,
        "input": f"{spec.height} x {spec.width} RGB, {spec.crop} {spec.resize}, {spec.interpolation}",
        "features": manifest.width,
        "sections": list(manifest.sections),
        "precision": manifest.parity.get("precision", "fp32"),
        "head": manifest.head["kind"],
        "head_options": manifest.head["options"],
        "parity": manifest.parity,
        "calibrated": confidence.calibrated,
        "judged": confidence.judged,
        "canaries": 0 if canaries is None else len(canaries.labels),
        "train_step": None if manifest.train_step is None else manifest.train_step["blocks"],
        "replaces": None if manifest.replaces is None else manifest.replaces["bundle"],
        "bytes": {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()},
        "classes": dict(zip(head.classes, map(int, head.counts), strict=True)),
    }


def _state(path: Path) -> dict[str, Any]:
    check_companion(path)
    beside = companion(path)
    with reading(path), view(path) as database, content_errors(path):
        schema = check_kind(database, path)
        said: dict[str, Any] = {
            "what": "state",
            "path": str(path),
            "schema": schema,
            "bytes": {file.name: file.stat().st_size for file in (path, beside) if file.exists()},
        }
        return said | (_learned(database, path) if schema == SCHEMA else {})


def _learned(database: sqlite3.Connection, path: Path) -> dict[str, Any]:
    """What the history of a state says; the head itself takes the bundle to open."""

    def no_base() -> NoReturn:
        raise StateError(f"{path}: the head needs its bundle")

    anchor = read_anchor(database, path)
    archive = Archive(database, path, anchor.model, no_base)
    events = archive.events()
    runs = list(lineage(anchor.seq, archive.rollbacks()))
    counts: dict[str, int] = {}
    for seq, event in events:
        version = event.told()
        if not any(first <= seq <= last for first, last in runs):
            continue
        for label, count in version.counts.items():
            if version.kind == "learn":
                counts[label] = counts.get(label, 0) + count
            elif version.kind == "forget":
                counts.pop(label, None)
    told = [event.told() for _, event in events]
    heads = rows(database, "SELECT head FROM snapshot WHERE digest IS NOT NULL ORDER BY number DESC LIMIT 1")
    return {
        "id": anchor.id.hex(),
        "goes_with": anchor.model,
        "version": anchor.version,
        "history": f"{len(told)} versions" + (f", from {told[0].number}" if told else ""),
        "first_change": told[0].time.isoformat(timespec="seconds") if told else None,
        "last_change": told[-1].time.isoformat(timespec="seconds") if told else None,
        "head": json.loads(heads[0][0])["kind"] if heads else None,
        "closed": bool(anchor.clean),
        "classes": counts,
    }
