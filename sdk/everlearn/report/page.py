"""The page of a report: its text and tables, with the pictures in it."""

import base64
import io
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.analysis.sureness import Sureness
from everlearn.evaluation.bench import Bench, cells
from everlearn.evaluation.run import OWN, Run
from everlearn.files import write_whole
from everlearn.report.record import by_method, own, read
from everlearn.tables import seconds
from everlearn_runtime.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "index.html"


def write_report(
    run: str | Path, *, diagnosis: str = "", sureness: Sureness | None = None, name: str | None = None
) -> Path:
    """Write a page and its pictures into the folder ``report`` of a run.

    The page has the pictures in it and needs nothing else: it can be sent as one file.

    Args:
        run: the folder that a benchmark or a training wrote.
        diagnosis: text to be shown, see `everlearn.analysis.diagnosis.Diagnosis.text`.
        sureness: how sure the learner is, to be shown, see `everlearn.analysis.sureness.how_sure`.
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
    found, is_bench = read(folder)
    out = folder / "report"
    out.mkdir(exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()
    drawn = {}
    for file, figure in _pictures(found, sureness).items():
        png = io.BytesIO()
        figure.savefig(png, format="png")
        (out / f"{file}.png").write_bytes(png.getvalue())
        drawn[file] = base64.b64encode(png.getvalue()).decode()
    page = _page(
        found, drawn, diagnosis, sureness.text() if sureness else "", name or folder.resolve().name, is_bench
    )
    write_whole(out / PAGE, page)
    return out / PAGE


def _pictures(found: Bench, sureness: Sureness | None) -> dict[str, "Figure"]:
    """Every picture, by the name of its file."""
    from everlearn.report import pictures  # only here: matplotlib takes a second to import

    methods = by_method(found.runs)
    drawn = {"accuracy": pictures.accuracy(methods)}
    if len(methods) > 1:
        drawn["forgetting"] = pictures.forgetting(methods)
        drawn["cost"] = pictures.cost(methods)
        drawn["errors"] = pictures.errors(methods)
    for number, seeds in enumerate(methods):
        slug = re.sub(r"[^A-Za-z0-9-]+", "_", seeds[0].method)
        slug = slug if f"confusion-{slug}" not in drawn else f"{slug}-{number}"
        score = own(seeds[0])
        if len(score.images) == 1 or score.average is not None:  # a ceiling has one row only
            drawn[f"matrix-{slug}"] = pictures.matrix(seeds)
        if score.confusion:
            drawn[f"confusion-{slug}"] = pictures.confusion(seeds[0])
    if sureness is not None:
        drawn["reliability"] = pictures.reliability(sureness)
        if len(sureness.unknown) and len(sureness.known):
            drawn["strangers"] = pictures.strangers(sureness)
    return drawn


def _page(
    found: Bench, drawn: Mapping[str, str], diagnosis: str, sureness: str, name: str, is_bench: bool
) -> str:
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows = _rows(found)
    # A ceiling, which has no average, is none of those that compete.
    best = max((row["last"] for row in rows if row["cells"][0] != "-"), default=None)
    return template.from_string(files("everlearn.report").joinpath("page.html").read_text()).render(
        name=name,
        is_bench=is_bench,
        facts=_facts(found),
        rows=rows,
        best=best,
        reused=any(row["reused"] for row in rows),
        seeds=max(int(row["cells"][-1]) for row in rows),
        drawn=drawn,
        made={run.method: _settings(run) for run in found.runs},
        diagnosis=diagnosis,
        sureness=sureness,
        matrices=any(file.startswith("matrix-") for file in drawn),
        confused=any(file.startswith("confusion-") for file in drawn),
    )


def _rows(found: Bench) -> list[dict[str, Any]]:
    """The table of figures: a row for each method and head, over the seeds."""
    rows = []
    for (method, head), runs in found.rows().items():
        scores = [run.scores[head] for run in runs]
        rows.append(
            {
                "method": method,
                "head": f"{scores[0].kind} (its own)" if head == OWN else head,
                "own": head == OWN,
                "cells": [*cells(runs, head), str(len(runs))],
                "reused": None if runs[0].reused is None else seconds(runs[0].reused),
                "last": sum(score.last for score in scores) / len(scores),
            }
        )
    return rows


def _facts(found: Bench) -> dict[str, str]:
    """What all runs have in common; what is not known is left out."""
    first, settings = found.runs[0], found.settings
    backbone = settings.get("backbone") or {"name": "the caller's own", "weights": "", "options": {}}
    facts = {
        "classes": f"{len(first.classes)} in {len(first.tasks)} tasks",
        "test images": f"{sum(own(first).images):,}",
        "seeds": ", ".join(map(str, dict.fromkeys(run.seed for run in found.runs))),
        "backbone": " ".join(
            [backbone["name"], *(f"{key}={value}" for key, value in backbone["options"].items())]
        ),
        "its weights": f"{backbone['weights']}, sha256 {str(settings.get('fingerprint'))[:16]}",
        "precision": settings.get("precision"),
        "augmentation": json.dumps(settings.get("augmentation") or "none").strip('"'),
        "device": ", ".join(dict.fromkeys(run.device for run in found.runs if run.device)),
        "everlearn": found.version,
    }
    if "images" in settings:
        facts["training images"] = f"{settings['images'][0]:,}"
    if "data" in settings:
        facts["data"] = "sha256 " + ", ".join(digest[:16] for digest in settings["data"])
    return {key: value for key, value in facts.items() if value}


def _settings(run: Run) -> str:
    """How the learner of a run was made."""
    record = run.record
    return json.dumps({"method": record["method"]["config"], "training": record["training"]}, indent=1)
