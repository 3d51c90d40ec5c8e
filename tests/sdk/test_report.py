"""A report: one page that needs nothing else, pictures that say what the figures say, nothing run."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everlearn import NTKCL, ClassIncremental, Frozen
from everlearn.evaluation.bench import FILE, Bench
from everlearn.evaluation.run import OWN, Run
from everlearn.evaluation.runner import as_it_stands
from everlearn.report import facts, write_report
from everlearn.report import page as report
from everlearn_runtime.errors import MissingExtra

from ..conftest import coloured, fit_all, make_learner
from .pages import BOLD, EVIL, MAKERS, Page, make_bench


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of three methods and two seeds with its page, and a picture of an older one."""
    folder = make_bench(tmp_path_factory.mktemp("bench"))
    (folder / "report").mkdir()
    (folder / "report" / "matrix-of-a-method-that-is-gone.png").write_bytes(b"")
    write_report(folder, name=EVIL)
    return folder


@pytest.fixture(scope="module")
def page(benched: Path) -> Page:
    return Page(benched / "report" / "index.html")


def test_the_page_needs_nothing_else(benched: Path, page: Page) -> None:
    assert {"link", "iframe", "object", "script", "base"}.isdisjoint(page.tags)
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert "url(http" not in page.source
    assert page.tags.count("svg") == len(list((benched / "report").glob("*.png")))


def test_it_is_a_page_for_people(page: Page) -> None:
    assert {"pre", "textarea"}.isdisjoint(page.tags)
    assert not re.search(r"[{}]|None", re.sub(r"<style>.*?</style>", "", page.source, flags=re.DOTALL))
    assert [one for one in page.tags if one in ("h1", "main", "header", "footer")] == [
        *("header", "h1", "main", "footer"),
    ]
    assert "prefers-color-scheme: dark" in page.source
    assert 'content="width=device-width, initial-scale=1"' in page.source
    assert all(one.get("alt") for tag, one in page.elements if tag == "img")
    drawn = [one for tag, one in page.elements if tag == "svg"]
    assert all(one.get("aria-label") and one.get("role") == "img" for one in drawn)
    assert len({one["aria-label"] for one in drawn}) == len(drawn)
    ids = [one["id"] for _, one in page.elements if "id" in one]
    assert len(ids) == len(set(ids))
    assert {source[1:] for source in page.sources if source.startswith("#")} <= set(ids)
    for number, tag in enumerate(page.tags):
        if tag == "table":  # in a box of its own, that scrolls
            assert page.elements[number - 1][1]["class"] == "wide"


def test_names_are_shown_and_never_run(page: Page) -> None:
    assert page.text.count(EVIL) == 3  # title, heading, its task
    assert sum("&lt;script&gt;" in one for one in re.findall("<svg.*?</svg>", page.source, re.DOTALL)) == 3
    assert BOLD in page.text
    assert {"script"}.isdisjoint(page.tags)
    assert "<b>bold" not in page.source


def test_three_figures_stand_on_top(benched: Path, page: Page) -> None:
    best = [run for run in Bench.read(benched).runs if run.method != "ceiling"]
    last = {name: [100 * r.scores[OWN].last for r in best if r.method == name] for name in MAKERS}
    mean, spread = max((np.mean(some), np.std(some)) for some in last.values() if some)
    top = page.text[: page.text.index("Figures")]
    assert f"{mean:.1f} ± {spread:.1f}\N{NO-BREAK SPACE}%" in top or f"{mean:.1f} ± {spread:.1f} %" in top
    for what in ("accuracy at the end", "forgetting", "kept between tasks", "guessing would reach 16.7"):
        assert what in top
    assert top.count(" MB") == 1


def test_tasks_stand_with_their_classes(benched: Path, page: Page) -> None:
    found = facts.leader(Bench.read(benched))[0]
    chips = [name for task in facts.tasks(found) for name in task["classes"]]
    assert chips == found.classes
    assert page.source.count('class="chip"') == len(chips)
    first, last = (found.scores[OWN].matrix[row][0] for row in (0, -1))
    assert first is not None
    assert last is not None
    assert facts.tasks(found)[0]["change"] == f"{100 * (last - first):+.2f}"


def test_the_commonest_mistakes_are_named(benched: Path, page: Page) -> None:
    found = facts.leader(Bench.read(benched))[0]
    wrong = facts.mistakes(found)
    assert wrong
    counts = {(a, p): count for a, p, count in found.scores[OWN].confusion}
    shares = [one.count / one.of for one in wrong]
    assert shares == sorted(shares, reverse=True)
    for one in wrong:
        assert one.actual != one.predicted
        assert counts[found.classes.index(one.actual), found.classes.index(one.predicted)] == one.count
        assert f"{one.actual} taken for {one.predicted}" in page.text


def test_every_figure_is_in_the_table(benched: Path, page: Page) -> None:
    assert page.tags.count("tr") == 1 + 3 * 2 + 1 + 3  # the methods' and the tasks'
    for runs in Bench.read(benched).rows().values():
        last = 100 * np.array([run.scores[OWN].last for run in runs])
        assert f"{last.mean():.2f} ± {last.std():.2f}" in page.text
    for what in ("6 in 3 tasks", "computed once for all of them", "0, 1"):
        assert what in page.text


def test_every_method_has_its_pictures(benched: Path) -> None:
    files = {file.stem for file in (benched / "report").glob("*.png")}
    one_each = {"NTK-CL", "_b_bold_"}
    assert files == {
        *("accuracy", "forgetting", "errors", "seconds", "bytes", "parameters", "confusion-ceiling"),
        *(f"{kind}-{name}" for kind in ("matrix", "confusion") for name in one_each),
    }
    for file in (benched / "report").glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 150
            assert len(np.unique(np.asarray(picture.convert("RGB")))) > 5


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
