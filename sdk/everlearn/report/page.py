"""The page of a report."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.evaluation.bench import FILE as BENCH
from everlearn.evaluation.bench import Bench, seconds, spread
from everlearn.evaluation.run import OWN, Run
from everlearn.files import write_whole
from everlearn_runtime.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "index.html"


def write_report(run: str | Path, *, diagnosis: str = "", name: str | None = None) -> Path:
    """Write a page and its pictures into the folder ``report`` of a run.

    The page has the pictures in it and needs nothing else: it can be sent as one file.

    Args:
        run: the folder that a benchmark or a training wrote.
        diagnosis: text to be shown, see `everlearn.analysis.diagnosis.Diagnosis.text`.
        name: of the page; the folder's when left out.

    Returns:
        The page, ``report/index.html``.

    Raises:
        ValueError: when there is no run, nothing has been measured yet, or a file is damaged.
        MissingExtra: without matplotlib or jinja2.
    """
    missing = [package for package in ("matplotlib", "jinja2") if not find_spec(package)]
    if missing:
        raise MissingExtra(f"a report (without {', '.join(missing)} here)", "train,cpu")
    folder = Path(run)
    is_bench = (folder / BENCH).is_file()
    found = Bench.read(folder) if is_bench else _of_training(folder)
    if not found.runs:
        raise ValueError(f"{folder} has no finished run yet; the same bench command goes on with it")
    out = folder / "report"
    out.mkdir(exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()
    drawn = {}
    for file, figure in _pictures(found).items():
        png = io.BytesIO()
        figure.savefig(png, format="png")
        (out / f"{file}.png").write_bytes(png.getvalue())
        drawn[file] = base64.b64encode(png.getvalue()).decode()
    page = _page(found, drawn, diagnosis, name or folder.resolve().name, is_bench)
    write_whole(out / PAGE, page)
    return out / PAGE


def _of_training(folder: Path) -> Bench:
    """What ``everlearn train`` wrote, as a benchmark of one run."""
    run = Run.read(folder)
    if not run.scores:
        raise ValueError(f"{folder} has not finished its first task; the same train command goes on with it")
    measured = run.scores[OWN].tasks
    sizes = run.tasks[:measured]
    so_far = replace(run, tasks=sizes, classes=run.classes[: sum(sizes)])
    about = {name: run.record[name] for name in ("backbone", "augmentation", "precision")}
    return Bench(about | run.settings, (so_far,), run.everlearn)


def _by_method(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each method, the best at the end of the stream first."""
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    return sorted(
        methods.values(), key=lambda seeds: -sum(run.scores[OWN].last for run in seeds) / len(seeds)
    )


def _pictures(found: Bench) -> dict[str, "Figure"]:
    """Every picture, by the name of its file."""
    from everlearn.report import pictures  # only here: matplotlib takes a second to import

    methods = _by_method(found.runs)
    drawn = {"accuracy": pictures.accuracy(methods)}
    if len(methods) > 1:
        drawn["forgetting"] = pictures.forgetting(methods)
        drawn["cost"] = pictures.cost(methods)
        drawn["errors"] = pictures.errors(methods)
    for number, seeds in enumerate(methods):
        slug = re.sub(r"[^A-Za-z0-9-]+", "_", seeds[0].method)
        slug = slug if f"confusion-{slug}" not in drawn else f"{slug}-{number}"
        score = seeds[0].scores[OWN]
        if len(score.images) == 1 or score.average is not None:  # a ceiling has one row only
            drawn[f"matrix-{slug}"] = pictures.matrix(seeds)
        if score.confusion:
            drawn[f"confusion-{slug}"] = pictures.confusion(seeds[0])
    return drawn


def _page(found: Bench, drawn: Mapping[str, str], diagnosis: str, name: str, is_bench: bool) -> str:
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows: list[dict[str, Any]] = []
    for (method, head), runs in found.rows().items():
        scores = [run.scores[head] for run in runs]
        rows.append(
            {
                "method": method,
                "head": f"{scores[0].kind} (its own)" if head == OWN else head,
                "own": head == OWN,
                "cells": [
                    spread([score.average for score in scores]),
                    spread([score.last for score in scores]),
                    spread([score.forgetting for score in scores]),
                    spread([score.task_id[-1] for score in scores]),
                    spread([score.within_task[-1] for score in scores]),
                    f"{max(run.trained for run in runs):,}",
                    f"{sum(score.bytes for score in scores) / len(scores) / 1e6:,.2f}",
                    seconds(sum(run.seconds for run in runs) / len(runs)),
                    str(len(runs)),
                ],
                "reused": None if runs[0].reused is None else seconds(runs[0].reused),
                "last": sum(score.last for score in scores) / len(scores),
            }
        )
    # A ceiling, which has no average, is none of those that compete.
    best = max((row["last"] for row in rows if row["cells"][0] != "-"), default=None)
    made = {
        run.method: json.dumps(
            {"method": run.record["method"]["config"], "training": run.record["training"]}, indent=1
        )
        for run in found.runs
    }
    first = found.runs[0]
    backbone = found.settings.get("backbone") or {"name": "the caller's own", "weights": "", "options": {}}
    facts = {
        "classes": f"{len(first.classes)} in {len(first.tasks)} tasks",
        "test images": f"{sum(first.scores[OWN].images):,}",
        "seeds": ", ".join(map(str, dict.fromkeys(run.seed for run in found.runs))),
        "backbone": " ".join(
            [backbone["name"], *(f"{key}={value}" for key, value in backbone["options"].items())]
        ),
        "its weights": f"{backbone['weights']}, sha256 {str(found.settings.get('fingerprint'))[:16]}",
        "precision": found.settings.get("precision"),
        "augmentation": json.dumps(found.settings.get("augmentation") or "none").strip('"'),
        "device": ", ".join(dict.fromkeys(run.device for run in found.runs if run.device)),
        "everlearn": found.version,
    }
    if "images" in found.settings:
        facts["training images"] = f"{found.settings['images'][0]:,}"
    if "data" in found.settings:
        facts["data"] = "sha256 " + ", ".join(digest[:16] for digest in found.settings["data"])
    return template.from_string(files("everlearn.report").joinpath("page.html").read_text()).render(
        name=name,
        is_bench=is_bench,
        facts={key: value for key, value in facts.items() if value},
        rows=rows,
        best=best,
        reused=any(row["reused"] for row in rows),
        seeds=max(int(row["cells"][-1]) for row in rows),
        drawn=drawn,
        made=made,
        diagnosis=diagnosis,
        matrices=any(file.startswith("matrix-") for file in drawn),
        confused=any(file.startswith("confusion-") for file in drawn),
    )
