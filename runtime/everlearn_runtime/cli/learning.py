"""``predict``, ``learn``, ``adapt`` and ``forget``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everlearn_runtime.bundle import read_manifest
from everlearn_runtime.cli.given import Given
from everlearn_runtime.cli.opening import check_file, open_learner
from everlearn_runtime.cli.tables import aligned
from everlearn_runtime.names import check_name
from everlearn_runtime.picking import Picture
from everlearn_runtime.prediction import Prediction

NOT_CALIBRATED = (
    "not calibrated: fewer than 200 images were judged before they were learned, so the percentages are a "
    "guess, and nothing is called unknown"
)


def predict(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Classify pictures; what is printed, as JSON and as text."""
    rows: list[dict[str, Any]] = []
    calibrated = False
    with open_learner(arguments, read_only=True, false_alarm=arguments.false_alarm) as learner:
        given = Given(arguments.images, learner.bundle.manifest.input, arguments)
        for batch in given.batches():
            found = learner.predict(np.stack([picture.pixels for picture in batch]))
            calibrated = found.calibrated
            rows += _rows(batch, found, arguments.top)
    table = [
        (
            row["image"],
            row["label"] if row["known"] else "unknown",
            ", ".join(f"{share:.1%} {name}" for name, share in row["probabilities"].items()),
        )
        for row in rows
    ]
    text = aligned(("image", "label", "probabilities"), table)
    in_folders = [row["label"] == row["folder"] for row in rows if "folder" in row]
    if in_folders:
        text += f"\n\n{sum(in_folders)} of {len(in_folders)} are of the class of their folder"
    if not calibrated:
        text += "\n\n" + NOT_CALIBRATED
    return {"calibrated": calibrated, "predictions": rows, **given.said()}, text


def _rows(batch: Sequence[Picture], found: Prediction, top: int) -> Iterator[dict[str, Any]]:
    for picture, label, scores, best, known in zip(
        batch, found.labels, found.scores, found.top(top), found.known, strict=True
    ):
        folder = {} if picture.label is None else {"folder": picture.label}
        row = {"image": picture.name, "label": label, "known": bool(known), "probabilities": dict(best)}
        yield {**row, **folder, "scores": dict(zip(found.classes, map(float, scores), strict=True))}


def learn(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Learn pictures of one class, or of class folders."""
    # All that can be wrong with them is found before there is a state file.
    label: str | None = arguments.label
    if arguments.images:
        check_name(label)
        paths = arguments.images
    elif Path(arguments.label).is_dir():
        label, paths = None, [arguments.label]
    else:
        raise ValueError(
            f"no images to learn; give them after the class, {label!r}, or a folder of class folders in its "
            "place"
        )
    spec = read_manifest(arguments.bundle).input
    if not Path(arguments.state).exists():
        check_file(arguments.state, "--state")
    given = Given(paths, spec, arguments)
    for file in given.files:
        if label is None and file.label is None:
            raise ValueError(f"{file.path} is in no class folder; give its class before {paths[0]}")
        if label is not None and file.label is not None:
            raise ValueError(
                f"{file.path} is in a class folder; leave {label!r} out to learn it as {file.label!r}"
            )
    found: list[Picture] = []
    for batch in given.batches():
        found += batch
        spec.check_number(len(found))  # of a call, which is one version
    labels = [picture.label or arguments.label for picture in found]
    with open_learner(arguments, new=True) as learner:
        learned = learner.learn(
            np.stack([picture.pixels for picture in found]), labels, guard=arguments.guard
        )
        counts = learner.counts
    doubts = [
        {"image": found[one.index].name, "looks": one.looks, "reason": one.reason} for one in learned.suspects
    ]
    said: dict[str, Any] = {"learned": len(found), "classes": counts, "suspects": doubts, **given.said()}
    if label is None:
        said["samples"] = {label: labels.count(label) for label in dict.fromkeys(labels)}
        what = ", ".join(f"{count} of {label!r}" for label, count in said["samples"].items())
        text = f"learned {what}; {len(counts)} classes"
    else:
        said |= {"label": arguments.label, "samples": counts[arguments.label]}
        text = f"learned {len(found)} of {arguments.label!r}, {said['samples']} samples in all; "
        text += f"{len(counts)} classes"
    for one in doubts:
        why = f"looks like {one['looks']!r}" if one["reason"] == "label" else "is unlike everything known"
        text += f"\n{one['image']} {why}; if it is wrong, "
        text += f"`{arguments.say.commands} undo` takes all of it back"
    return said, text


def adapt(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Train the adapters on, on pictures in class folders."""
    if not Path(arguments.folder).is_dir():
        raise ValueError(f"{arguments.folder}: no such folder; give one with a folder for each class")
    given = Given([arguments.folder], read_manifest(arguments.bundle).input, arguments)
    if loose := [file.path for file in given.files if file.label is None]:
        raise ValueError(
            f"{loose[0]} is in no class folder; put the images of each class into one of its name"
        )
    found = [picture for batch in given.batches() for picture in batch]
    labels = [picture.label or "" for picture in found]
    with open_learner(arguments) as learner:
        done = learner.adapt(
            np.stack([picture.pixels for picture in found]),
            labels,
            steps=arguments.steps,
            rate=arguments.rate,
        )
    said = {
        "version": done.number,
        "images": done.images,
        "steps": done.steps,
        "loss": [done.first, done.last],
        "weight": done.weight,
        "moved": done.moved,
        "explained": done.explained,
        **given.said(),
    }
    text = (
        f"adapted on {done.images} images of {len(done.counts)} classes, {done.steps} steps: loss "
        f"{done.first:.3g} to {done.last:.3g}; features moved by {done.moved:.1%} of their spread, and the "
        f"head followed by a map that explains {done.explained:.1%}. This is version {done.number}"
    )
    return said, text


def forget(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Drop a class."""
    with open_learner(arguments) as learner:
        form = learner.forget(arguments.label, purge=arguments.purge).form
        counts = learner.counts
    how = f" ({form})" if form else ""
    return {
        "label": arguments.label,
        "form": form,
        "classes": counts,
    }, f"forgot {arguments.label!r}{how}; {len(counts)} classes left"
