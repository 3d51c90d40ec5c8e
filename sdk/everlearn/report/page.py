"""The page of a report: its text and tables, with the pictures in it."""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.evaluation.bench import Bench
from everlearn.files import write_whole
from everlearn.report import facts
from everlearn.report.findings import Findings
from everlearn.report.record import by_method, own, read
from everlearn_runtime.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

PAGE = "index.html"


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Attributes:
        section: of the page, where it stands.
        svg: to be put into the page as it is.
        title: above it; empty for none.
    """

    section: str
    svg: str
    title: str = ""


def write_report(run: str | Path, *, findings: Findings | None = None, name: str | None = None) -> Path:
    """Write a page and its pictures into the folder ``report`` of a run.

    The page has the pictures in it and needs nothing else: it can be sent as one file.

    Args:
        run: the folder that a benchmark or a training wrote.
        findings: what a look into the learner has brought, see `look_into`.
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
    looked = findings or Findings()
    out = folder / "report"
    out.mkdir(exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()
    page = _page(found, _draw(found, looked, out), looked, name or folder.resolve().name, is_bench)
    # A name that is no text, of a folder in another encoding, say, is shown escaped.
    write_whole(out / PAGE, page.encode("utf-8", "backslashreplace").decode("utf-8"))
    return out / PAGE


def _draw(found: Bench, looked: Findings, out: Path) -> list[Picture]:
    """Every picture, which is written as a file, too."""
    from everlearn.report import pictures  # only here: matplotlib takes a second to import

    drawn = []
    with pictures.style():
        for section, file, figure, alt, title in _figures(found, looked):
            (out / f"{file}.png").write_bytes(pictures.as_png(figure))
            drawn.append(Picture(section, pictures.as_svg(figure, file, alt), title))
    return drawn


def _figures(found: Bench, looked: Findings) -> Iterator[tuple[str, str, "Figure", str, str]]:
    """Section, name of the file, figure, what it shows, and the title above it."""
    from everlearn.report import pictures

    methods = by_method(found.runs)
    curve = "Accuracy over all classes seen so far, after each task"
    yield "accuracy", "accuracy", pictures.accuracy(methods), curve, "All classes seen so far"
    if len(methods) > 1:
        errors = "Accuracy, share of the right task, and accuracy within the right task, of each method"
        yield "methods", "errors", pictures.errors(methods), errors, "Where the last model errs"
        yield "methods", "forgetting", pictures.forgetting(methods), "Forgetting of each method", "Forgetting"
        for file, draw, title in (
            ("seconds", pictures.learning_time, "Time"),
            ("bytes", pictures.memory, "Memory"),
            ("parameters", pictures.parameters, "Parameters"),
        ):
            yield "cost", file, draw(methods), f"{title} of each method", title
    slugs: set[str] = set()
    best = facts.leader(found)[0].method
    for number, seeds in enumerate(sorted(methods, key=lambda seeds: seeds[0].method != best)):
        method, slug = seeds[0].method, re.sub(r"[^A-Za-z0-9-]+", "_", seeds[0].method)
        slug = f"{slug}-{number}" if slug in slugs else slug
        slugs.add(slug)
        score = own(seeds[0])
        if score.tasks > 1 and score.average is not None:  # one task, or a ceiling, has one row only
            alt = f"Accuracy on each task after each task: {method}"
            title = (
                f"Each task, after each task: {method}" if len(methods) > 1 else "Each task, after each task"
            )
            yield "matrix", f"matrix-{slug}", pictures.matrix(seeds), alt, title
        if score.confusion:
            alt = f"What the last model takes each class for: {method}"
            title = f"{method}, seed {seeds[0].seed}" if len(methods) > 1 else "All classes"
            yield "confusion", f"confusion-{slug}", pictures.confusion(seeds[0]), alt, title
    if sure := looked.sureness:
        alt = "Share of right answers over the probability that they were given"
        yield "sure", "reliability", pictures.reliability(sure), alt, "Is it as often right as it says?"
        if len(sure.unknown) and len(sure.known):
            alt = "How strange images of known and of unknown classes are"
            yield "sure", "strangers", pictures.strangers(sure), alt, "Known or unknown?"
    if looked.few:
        alt = "Accuracy over the number of images of each new class"
        yield "few", "few", pictures.over_images(looked.few), alt, "Accuracy over k"


def _page(found: Bench, drawn: list[Picture], looked: Findings, name: str, is_bench: bool) -> str:
    from jinja2 import Environment, StrictUndefined

    from everlearn.report import pictures

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["picture"] = _embedded
    environment.filters["units"] = partial(re.sub, r"(?<=\d) (?=%|points)", "\N{NO-BREAK SPACE}")
    here = files("everlearn.report")
    rows, leader = facts.rows(found), facts.leader(found)[0]
    # A ceiling, which has no average, is none of those that compete.
    best = max((row["last"] for row in rows if row["cells"][0] != "-"), default=None)
    sections = {section: [one for one in drawn if one.section == section] for section in (
        "accuracy", "methods", "cost", "matrix", "confusion", "sure", "few"
    )}  # fmt: skip
    methods = by_method(found.runs)
    return environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8")).render(
        css=here.joinpath("page.css").read_text(encoding="utf-8"),
        name=name,
        is_bench=is_bench,
        lede=facts.lede(found),
        headline=facts.headline(found),
        looked=looked,
        factors=looked.diagnosis.factors if looked.diagnosis else (),
        most=max([0.1, *(one.gain for one in looked.diagnosis.factors)]) if looked.diagnosis else 1,
        rows=rows,
        best=best,
        reused=any(row["reused"] for row in rows),
        seeds=max(int(row["cells"][-1]) for row in rows),
        pictures=sections,
        leader=leader,
        measured=facts.measured(leader, looked.diagnosis),
        tasks=facts.tasks(leader),
        mistakes=looked.mistakes or facts.mistakes(leader),
        legend=leader.classes if any(pictures.numbered(seeds[0]) for seeds in methods) else (),
        many=len(methods) > 1,
        about=facts.about(found),
        made=facts.made(found),
    )


def _embedded(image: "Image.Image") -> str:
    """A picture as the source of an ``img``."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
