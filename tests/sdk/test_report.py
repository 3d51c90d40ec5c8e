"""A report: one page that needs nothing else, pictures that say what the figures say, nothing run."""

import base64
import importlib.util
import io
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from everlearn import NTKCL, ClassIncremental, Frozen, Images, Method
from everlearn.evaluation.bench import FILE, Bench, bench
from everlearn.evaluation.run import OWN, Figures, Run
from everlearn.evaluation.runner import as_it_stands
from everlearn.report import page as report
from everlearn.report import pictures, write_report
from everlearn_runtime.errors import MissingExtra

from ..conftest import coloured, fit_all, make_learner, vit


class Ceiling(Frozen):
    """Learns all tasks at once."""

    at_once = True


BOLD = "<b>bold $_"
MAKERS: dict[str, Callable[[], Method]] = {BOLD: Frozen, "NTK-CL": NTKCL, "ceiling": Ceiling}
EVIL = '<script>alert("$x^$")</script>'


class Page(HTMLParser):
    """What a browser would see: tags, text, and where things are fetched from."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def named(names: list[str], count: int, seed: int = 0) -> Images:
    """Images of classes with these names."""
    plain = coloured("abcdefgh"[: len(names)], count, seed)
    return Images([names["abcdefgh".index(label)] for label in plain.labels], lambda index: plain[index][0])


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of three methods and two seeds, with a class and a method of ugly names."""
    names = [EVIL, "b & c", "$d$", "e" * 40, "f", "g"]
    folder = tmp_path_factory.mktemp("bench")
    given: dict[str, Any] = {"epochs": 1, "batch_size": 8, "lr": 0.05, "device": "cpu"}
    bench(
        named(names, 4),
        named(names, 2, seed=1),
        folder,
        classes_per_task=2,
        methods=MAKERS,
        seeds=[0, 1],
        heads=["lda"],
        backbone=vit(),
        **given,
    )
    (folder / "report").mkdir()
    (folder / "report" / "matrix-of-a-method-that-is-gone.png").write_bytes(b"")
    write_report(folder, name=EVIL, diagnosis=EVIL)
    return folder


@pytest.fixture(scope="module")
def page(benched: Path) -> Page:
    return Page(benched / "report" / "index.html")


def test_the_page_needs_nothing_else(benched: Path, page: Page) -> None:
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert {"link", "iframe", "object", "script"}.isdisjoint(page.tags)
    on_page = {base64.b64decode(source.split(",")[1]) for source in page.sources}
    beside = {file.read_bytes() for file in (benched / "report").glob("*.png")}
    assert on_page == beside


def test_names_are_shown_and_never_run(page: Page) -> None:
    assert page.text.count(EVIL) == 3  # title, heading, diagnosis
    assert BOLD in page.text
    assert {"script", "b"}.isdisjoint(page.tags)


def test_every_figure_is_in_the_table(benched: Path, page: Page) -> None:
    assert page.tags.count("tr") == 1 + 3 * 2
    for runs in Bench.read(benched).rows().values():
        last = 100 * np.array([run.scores[OWN].last for run in runs])
        assert f"{last.mean():.2f} ± {last.std():.2f}" in page.text
    for what in ("6 in 3 tasks", "computed once for all of them", "0, 1"):
        assert what in page.text


def test_every_method_has_its_pictures(benched: Path) -> None:
    files = {file.stem for file in (benched / "report").glob("*.png")}
    one_each = {"NTK-CL", "_b_bold_"}
    assert files == {
        *("accuracy", "forgetting", "cost", "errors", "confusion-ceiling"),
        *(f"{kind}-{name}" for kind in ("matrix", "confusion") for name in one_each),
    }
    for file in (benched / "report").glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 150
            assert len(np.unique(np.asarray(picture.convert("RGB")))) > 5


def test_the_pictures_show_the_figures(benched: Path) -> None:
    found = Bench.read(benched)
    methods = [[run for run in found.runs if run.method == name] for name in MAKERS]
    (axes,) = pictures.accuracy(methods).axes
    lines = {str(line.get_label()): np.asarray(line.get_ydata(), dtype=float) for line in axes.lines}
    for name, runs in zip(MAKERS, methods, strict=True):
        mean = np.mean(np.array([run.scores[OWN].seen for run in runs], dtype=float), axis=0) * 100
        if name == "ceiling":
            assert lines["ceiling (all at once)"] == pytest.approx([mean[-1]] * 2)
        else:
            assert lines[pictures.plain(name)] == pytest.approx(mean)
    image = pictures.matrix(methods[0]).axes[0].images[0].get_array()
    assert image is not None
    expected = np.mean(
        [np.array(run.scores[OWN].matrix, dtype=float) for run in methods[0]],
        axis=0,
    )
    np.testing.assert_allclose(np.ma.filled(image, np.nan), 100 * expected)
    shares = pictures.confusion(methods[1][0]).axes[0].images[0].get_array()
    assert shares is not None
    np.testing.assert_allclose(np.asarray(shares).sum(axis=1), 100)
    right = np.diagonal(np.asarray(shares)).mean() / 100
    assert right == pytest.approx(methods[1][0].scores[OWN].last)


def test_many_methods_classes_and_tasks_are_told_apart(benched: Path) -> None:
    run = Bench.read(benched).runs[0]
    tasks, classes = 30, [f"class {index}" for index in range(120)]
    confusion = [[index, (7 * index) % 120, 2] for index in range(120)]
    rows = [Figures(0.5, [0.5] * task, [4] * task, 0.5, 0.5, confusion) for task in range(1, tasks + 1)]
    score = replace(run.scores[OWN], rows=tuple(rows))
    many = replace(run, classes=classes, tasks=[4] * tasks, scores={OWN: score})
    (axes,) = pictures.accuracy([[replace(many, method=f"method {number}")] for number in range(14)]).axes
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(looks) == 14
    for figure in (pictures.matrix([many]), pictures.confusion(many)):
        figure.savefig(io.BytesIO(), format="png")
        for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels]
            assert len(boxes) > 5
            assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_labels_of_close_costs_are_told_apart(benched: Path) -> None:
    run = Bench.read(benched).runs[0]
    trained = [72_970, 299_905, 351_076, 0]
    figure = pictures.cost([[replace(run, trained=count, seconds=1000 + count / 200)] for count in trained])
    figure.savefig(io.BytesIO(), format="png")
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        low, high = axes.get_xlim()
        assert sum(low <= label.get_position()[0] <= high for label in labels) > 1
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


# What a training wrote


@pytest.fixture
def stream() -> ClassIncremental:
    return ClassIncremental(coloured("abcd", 4), coloured("abcd", 2, seed=1), classes_per_task=2)


def test_a_training_is_reported_too(tmp_path: Path, stream: ClassIncremental) -> None:
    learner = make_learner(NTKCL())
    matrix = learner.run(stream, checkpoint=tmp_path)
    page = Page(write_report(tmp_path))
    assert f"{100 * matrix.average:.2f}" in page.text
    assert f"{100 * matrix.last:.2f}" in page.text
    assert f"{learner.history[0].parameters:,}" in page.text
    assert {file.name for file in (tmp_path / "report").iterdir()} == {
        *("index.html", "accuracy.png", "matrix-NTKCL.png", "confusion-NTKCL.png")
    }
    assert "so it is" in Page(write_report(tmp_path, diagnosis="so it is")).text


def test_a_training_without_figures_is_measured(tmp_path: Path) -> None:
    learner = fit_all(make_learner(Frozen()), [coloured("ab"), coloured("cd")])
    learner.save(tmp_path)
    with pytest.raises(ValueError, match="no run is at"):
        write_report(tmp_path)
    test = coloured("abcdx", 3, seed=1)
    as_it_stands(learner, test).write(tmp_path)
    page = Page(write_report(tmp_path))
    assert f"{100 * learner.evaluate(test.of_classes('abcd')):.2f}" in page.text


# What cannot be reported


def test_nothing_to_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run is at"):
        write_report(tmp_path)
    Bench({}, ()).write(tmp_path)
    with pytest.raises(ValueError, match="has no finished run yet"):
        write_report(tmp_path)
    Run("Frozen", 0, {}, ["a"], [1], {}).write(tmp_path / "fresh")
    with pytest.raises(ValueError, match="has not finished its first task"):
        write_report(tmp_path / "fresh")
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match=rf"{re.escape(FILE)} is damaged"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_without_matplotlib_one_line_names_the_extra(benched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(MissingExtra, match=r"without matplotlib here.*everlearn\[train,cpu\]"):
        write_report(benched)
