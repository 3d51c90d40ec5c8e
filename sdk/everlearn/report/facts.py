"""What a page says in words and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from everlearn.analysis.diagnosis import Diagnosis
from everlearn.analysis.mistakes import Mistake
from everlearn.evaluation.bench import Bench, cells
from everlearn.evaluation.run import OWN, Run
from everlearn.report.record import by_method, own
from everlearn.tables import seconds, spread

Fact = tuple[str, str]


def headline(found: Bench) -> list[dict[str, str]]:
    """The three figures that matter: accuracy at the end, forgetting, and what is kept.

    Those of the best method, when there are several; a ceiling does not compete.
    """
    seeds = leader(found)
    scores = [own(run) for run in seeds]
    classes = len(seeds[0].classes)
    forgetting = _tenths([score.forgetting for score in scores])
    return [
        {
            "name": "accuracy at the end",
            "figure": _tenths([score.last for score in scores]),
            "unit": "%",
            "note": f"A_T: of {sum(scores[0].images):,} test images of all {classes} classes, after the last "
            f"task; guessing would reach {100 / classes:.1f} %",
        },
        {
            "name": "forgetting",
            "figure": forgetting,
            "unit": "points" if forgetting != "-" else "",
            "note": "how far earlier tasks have fallen from their best"
            if forgetting != "-"
            else "not to be had: one task only, or measured at its end alone",
        },
        {
            "name": "kept between tasks",
            "figure": f"{np.mean([score.bytes for score in scores]) / 1e6:,.2f}",
            "unit": "MB",
            "note": "head and adapters; the backbone comes on top",
        },
    ]


def leader(found: Bench) -> list[Run]:
    """The runs of the method that is best at the end, a ceiling only if there is nothing else."""
    methods = by_method(found.runs)
    return next((seeds for seeds in methods if own(seeds[0]).average is not None), methods[0])


def lede(found: Bench) -> str:
    """One sentence above the figures."""
    best = leader(found)
    methods = by_method(found.runs)
    classes, tasks = len(best[0].classes), len(best[0].tasks)
    stream = f"{classes} classes in {tasks} {'task' if tasks == 1 else 'tasks'}"
    if len(methods) == 1:
        return f"{best[0].method} on {stream}."
    behind = [seeds for seeds in methods if seeds[0].method != best[0].method]
    others = [seeds for seeds in behind if own(seeds[0]).average is not None]
    ceilings = [seeds for seeds in behind if own(seeds[0]).average is None]
    first = f"Of {len(methods)} methods on {stream}, {best[0].method} is ahead at the end"
    if others:
        first += f", {100 * (_last(best) - _last(others[0])):.2f} points before {others[0][0].method}"
    if ceilings:
        all_at_once = spread([own(run).last for run in ceilings[0]])
        first += f"; learning all at once ({ceilings[0][0].method}) has {all_at_once} %"
    return f"{first}. Its figures:"


def rows(found: Bench) -> list[dict[str, Any]]:
    """The table of figures: a row for each method and head, over the seeds; the best method first."""
    given = []
    place = {seeds[0].method: number for number, seeds in enumerate(by_method(found.runs))}
    for (method, head), runs in sorted(found.rows().items(), key=lambda row: place[row[0][0]]):
        scores = [run.scores[head] for run in runs]
        given.append(
            {
                "method": method,
                "head": scores[0].kind if head == OWN else head,
                "own": head == OWN,
                "cells": [*cells(runs, head), str(len(runs))],
                "reused": None if runs[0].reused is None else seconds(runs[0].reused),
                "last": sum(score.last for score in scores) / len(scores),
            }
        )
    return given


MUCH = 0.05
"""Forgetting from which on more training is not advised without a word."""


def measured(run: Run, diagnosis: Diagnosis | None) -> str:
    """What a run's own figures say beside the diagnosis, which is a prediction."""
    score = own(run)
    found = (
        f"Measured in the end: of the answers {spread([score.task_id[-1]])} % are a class of the right task; "
        f"if the task were known, {spread([score.within_task[-1]])} % would be right."
    )
    if score.forgetting is not None:
        found += f" Earlier tasks have fallen by {spread([score.forgetting])} points"
        trains_more = diagnosis is not None and diagnosis.case == "less" and score.forgetting >= MUCH
        found += ": to train more may make them fall further." if trains_more else "."
    return found


def tasks(run: Run) -> list[dict[str, Any]]:
    """The tasks of a run, with their classes and figures in percent."""
    score, start, given = own(run), 0, []
    matrix = score.matrix
    for number, size in enumerate(run.tasks[: score.tasks]):
        first, last = matrix[number][number], matrix[-1][number]
        given.append(
            {
                "classes": run.classes[start : start + size],
                "images": f"{score.images[number]:,}",
                "first": spread([first]),
                "last": spread([last]),
                "change": "-" if first is None or last is None else f"{100 * (last - first):+.2f}",
            }
        )
        start += size
    return given


def mistakes(run: Run, most: int = 6) -> tuple[Mistake, ...]:
    """The commonest mistakes of a run's last model, by the share of the class that they concern."""
    sizes = np.zeros(len(run.classes), dtype=int)
    for actual, _, count in own(run).confusion:
        sizes[actual] += count
    wrong = [
        (count / sizes[actual], actual, predicted, count) for actual, predicted, count in own(run).confusion
    ]
    order = sorted(
        (-share, -count, actual, predicted)
        for share, actual, predicted, count in wrong
        if actual != predicted
    )
    return tuple(
        Mistake(run.classes[actual], run.classes[predicted], -count, int(sizes[actual]))
        for _, count, actual, predicted in order[:most]
    )


def about(found: Bench) -> list[Fact]:
    """What all runs have in common; what is not known is left out."""
    first, settings = found.runs[0], found.settings
    backbone = settings.get("backbone") or {"name": "the caller's own", "weights": "", "options": {}}
    images = [f"{own(first).images and sum(own(first).images):,} to test"]
    if "images" in settings:
        images.insert(0, f"{settings['images'][0]:,} to learn")
    given = [
        ("images", ", ".join(images)),
        ("classes", f"{len(first.classes)} in {len(first.tasks)} tasks"),
        ("seeds", ", ".join(map(str, dict.fromkeys(run.seed for run in found.runs)))),
        (
            "backbone",
            " ".join([backbone["name"], *(f"{key}={value}" for key, value in backbone["options"].items())]),
        ),
        ("its weights", f"{backbone['weights']}, sha256 {str(settings.get('fingerprint'))[:16]}"),
        ("precision", settings.get("precision")),
        ("augmentation", _words(settings.get("augmentation"))),
        ("device", ", ".join(dict.fromkeys(run.device for run in found.runs if run.device))),
        ("everlearn", found.version),
    ]
    if "data" in settings:
        given.append(("data", "sha256 " + ", ".join(digest[:16] for digest in settings["data"])))
    return [(name, value) for name, value in given if value]


def made(found: Bench) -> dict[str, list[Fact]]:
    """How each method was made: its arguments, and those of its training where something was trained."""
    given = {}
    for run in found.runs:
        facts = [(name, _words(value)) for name, value in run.record["method"]["config"].items()]
        if run.trained:
            facts += [(name, _words(value)) for name, value in run.record["training"].items()]
        given[run.method] = facts
    return given


def _last(runs: Sequence[Run]) -> float:
    return float(np.mean([own(run).last for run in runs]))


def _tenths(values: Sequence[float | None]) -> str:
    """Mean and standard deviation in percent, by tenths; a dash where nothing was measured."""
    known = 100 * np.array([value for value in values if value is not None])
    if len(known) == 0:
        return "-"
    return f"{known.mean():.1f} ± {known.std():.1f}" if len(known) > 1 else f"{known[0]:.1f}"


def _words(value: object) -> str:
    """A setting in words: no braces, no quotes."""
    if value is None or value == [] or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
