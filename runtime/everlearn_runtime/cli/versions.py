"""``history``, ``undo``, ``rollback``, ``backup`` and ``migrate``: what a state holds, and what follows."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from everlearn_runtime.cli.opening import open_learner
from everlearn_runtime.cli.tables import aligned
from everlearn_runtime.edge import EdgeLearner
from everlearn_runtime.state import Version
from everlearn_runtime.words import plural


def history(arguments: argparse.Namespace) -> tuple[Any, str]:
    """The versions that can be gone back to."""
    with open_learner(arguments, read_only=True) as learner:
        versions = learner.history()
    said = [
        {
            "version": version.number,
            "time": version.time.isoformat(timespec="seconds"),
            "kind": version.kind,
            "counts": dict(version.counts),
            "to": version.to,
            "form": version.form,
        }
        for version in versions
    ]
    table = [
        (str(one["version"]), str(one["time"]), _change(version))
        for one, version in zip(said, versions, strict=True)
    ]
    return {"versions": said}, aligned(("version", "time", "change"), table)


def _change(version: Version) -> str:
    """What a version changed, for people."""
    if version.kind == "rollback":
        return f"back to {version.to}"
    counts = ", ".join(f"{count} of {label!r}" for label, count in version.counts.items())
    return f"{version.kind} {counts}".rstrip()


def undo(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Take back the last change."""
    with open_learner(arguments) as learner:
        return _went_back(learner, learner.undo())


def rollback(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Go back to a version."""
    with open_learner(arguments) as learner:
        return _went_back(learner, learner.rollback(arguments.version))


def _went_back(learner: EdgeLearner, version: Version) -> tuple[Any, str]:
    counts = learner.counts
    return (
        {"version": version.number, "to": version.to, "classes": counts},
        f"back to version {version.to}; {len(counts)} classes. This is version {version.number}",
    )


def backup(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Copy the state."""
    with open_learner(arguments) as learner:
        learner.backup(arguments.to)
        version = learner.version
    return {"to": arguments.to, "version": version}, f"copied version {version} to {arguments.to}"


def migrate(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Carry over what was learned with the bundle before this one."""
    with open_learner(arguments, migrate=True) as learner:
        moved, counts = learner.migrated, learner.counts
    if moved is None:
        return {"migrated": None, "classes": counts}, "nothing to do: the state goes with this bundle already"
    said = {**asdict(moved), "kept": str(moved.kept), "forgotten": list(moved.forgotten)}
    samples, classes = sum(moved.learned.values()), len(moved.learned)
    text = f"carried over {plural(samples, 'sample')} of {plural(classes, 'class')}"
    if moved.images:  # no map, where the graph is the same
        agree = "" if moved.agreement is None else f", {moved.agreement:.0%} of classes agree"
        text += (
            f"; the map, from {moved.images} images, explains {moved.explained:.1%} of the variance{agree}"
        )
    text += f". The state as it was is {moved.kept}"
    return {"migrated": said, "classes": counts}, text
