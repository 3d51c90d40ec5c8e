"""Pictures of a report: they say what the figures say, and can be read."""

import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from PIL import Image

from everlearn.evaluation.bench import Bench
from everlearn.evaluation.run import OWN, Figures
from everlearn.report import pictures, write_report
from everlearn.report.pictures import fonts
from everlearn.report.pictures.style import COLOURS

from .pages import EVIL, MAKERS, Page, make_bench


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def _styled() -> Iterator[None]:
    fonts.families.cache_clear()
    with pictures.style():
        yield
    fonts.families.cache_clear()  # when what a test has put in their place is gone


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
    score = methods[1][0].scores[OWN]
    sizes = np.bincount([a for a, _, _ in score.confusion], [count for *_, count in score.confusion])
    assert np.average(np.diagonal(np.asarray(shares)), weights=sizes) / 100 == pytest.approx(score.last)


def test_small_differences_do_not_look_large(benched: Path) -> None:
    run = Bench.read(benched).runs[0]
    rows = tuple(
        Figures(value, [1.0] * task, [4] * task, 1, 1) for task, value in enumerate((1, 0.99, 0.98), 1)
    )
    score = replace(run.scores[OWN], rows=rows)
    low, high = pictures.accuracy([[replace(run, scores={OWN: score})]]).axes[0].get_ylim()
    assert high - low >= 20
    assert 100 < high < 102


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
    runs = [[replace(run, trained=count, seconds=1000 + count / 200)] for count in trained]
    for figure in (pictures.parameters(runs), pictures.learning_time(runs)):
        figure.savefig(io.BytesIO(), format="png")
        (axes,) = figure.axes
        labels = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        low, high = axes.get_xlim()
        assert sum(low <= label.get_position()[0] <= high for label in labels) > 1
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
        numbers = [text.get_window_extent() for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(numbers))
        assert max(box.x1 for box in numbers) <= figure.bbox.x1


def test_every_picture_has_the_same_width_and_no_margin(benched: Path, tmp_path: Path) -> None:
    methods = [[run] for run in Bench.read(benched).runs[:3]]
    drawn = [pictures.accuracy(methods), pictures.matrix(methods[0]), pictures.confusion(methods[0][0])]
    for figure in drawn:
        with Image.open(io.BytesIO(pictures.as_png(figure))) as image:
            picture = np.asarray(image.convert("L"))
        assert picture.shape[1] == 750
        rows = np.flatnonzero((picture < 200).any(axis=1))
        assert rows[0] < 38  # a quarter of an inch
        assert len(picture) - rows[-1] < 38
        view = re.search(r'viewBox="0 0 ([\d.]+) ', pictures.as_svg(figure, "a", "what it shows"))
        assert view is not None
        assert float(view[1]) == pytest.approx(360)


def test_a_picture_takes_the_page_s_colours_and_keeps_its_text(benched: Path) -> None:
    runs = [[run] for run in Bench.read(benched).runs[:3]]
    svg = pictures.as_svg(pictures.confusion(runs[0][0]), "confusion", 'of "all" <classes>')
    assert svg.startswith('<svg class="plot" role="img" aria-label="of &quot;all&quot; &lt;classes&gt;"')
    assert "currentColor" in svg
    assert "&lt;script&gt;" in svg
    assert "<script" not in svg
    assert "<style" not in svg
    assert "system-ui" in svg
    assert "DejaVu" not in svg
    assert "var(--blue)" in pictures.as_svg(pictures.accuracy(runs), "accuracy", "curves")
    assert svg == pictures.as_svg(pictures.confusion(runs[0][0]), "confusion", 'of "all" <classes>')


def test_colours_stand_out_on_light_and_dark() -> None:
    def luminance(colour: str) -> float:
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)
        ]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    css = (Path(pictures.__file__).parents[1] / "page.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in css.split("@media", 2)[:2]]
    for theme, least in zip(themes, (1.9, 3.0), strict=True):  # Okabe and Ito's orange and sky are light
        paper = luminance(theme["paper"])
        shown = [theme["blue"], theme["sky"], *COLOURS[1:5]]
        for colour, needed in [(theme["ink"], 7), (theme["soft"], 4.5), *((one, least) for one in shown)]:
            dark, light = sorted((luminance(colour), paper))
            assert (light + 0.05) / (dark + 0.05) >= needed, colour


# Names in other scripts.

NAMES = ["マグカップ", "钢笔", "머그잔"]


def test_without_a_font_numbers_stand_for_names_and_the_page_says_which(
    benched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "EAST_ASIAN", ())
    monkeypatch.setattr(fonts, "FILES", ("no such file",))
    fonts.families.cache_clear()
    found = Bench.read(benched)
    names = [*NAMES, "caf\udce9"]  # the last one is no text: Latin-1, where UTF-8 was to be
    runs = tuple(replace(run, classes=names + run.classes[4:]) for run in found.runs)
    assert not fonts.drawable(NAMES[0])
    assert fonts.plain("a マ $") == r"a ? \$"
    assert not pictures.numbered(found.runs[0])
    assert pictures.numbered(runs[0])
    labels = pictures.confusion(runs[0]).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["1", "2", "3", "4", "5", "6"]
    replace(found, runs=runs).write(tmp_path)
    page = Page(write_report(tmp_path))
    assert page.elements.count(("ol", {"class": "legend"})) == 1
    for name in NAMES:
        assert page.text.count(name) >= 2  # its task, the legend
    assert r"caf\udce9" in page.text


def test_a_font_that_is_there_is_taken(
    benched: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = (
        Path(matplotlib.get_data_path()) / "fonts/ttf/STIXGeneral.ttf"
    )  # which stands for one with the characters
    file = tmp_path / "NotoSansCJK-Regular.ttf"
    file.write_bytes(own.read_bytes())
    monkeypatch.setattr(fonts, "EAST_ASIAN", ("Noto Sans CJK JP", "STIXGeneral"))
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [one for one in manager.ttflist if one.name == "DejaVu Sans"])
    monkeypatch.setattr(fonts, "FILES", ("notosanscjk",))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(file), "other.ttf"])
    fonts.families.cache_clear()
    assert fonts.families() == ("DejaVu Sans", "STIXGeneral")
    assert manager.ttflist[-1].fname == str(file)
    run = Bench.read(benched).runs[0]
    labels = pictures.confusion(replace(run, classes=["mug", *run.classes[1:]])).axes[0].get_yticklabels()
    assert labels[0].get_text() == "mug"
    assert fonts.drawable(EVIL)


@pytest.mark.parametrize("name", NAMES)
def test_with_a_font_names_are_drawn(name: str) -> None:
    if not fonts.drawable(name):
        pytest.skip("no font for it is installed here")
    figure = pictures.accuracy([])
    figure.axes[0].set_title(fonts.plain(name))
    assert name in pictures.as_svg(figure, "name", "a name")
    assert pictures.as_png(figure)  # and nothing is warned of
