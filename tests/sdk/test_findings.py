"""What a look into a learner finds: accuracy over k, mistakes with pictures, and the page of it."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from everlearn import LDA, ClassIncremental, Frozen, ILoRA, Images, Learner, Prototypes
from everlearn.analysis.few import over_images
from everlearn.analysis.mistakes import SIDE, find_mistakes
from everlearn.analysis.sureness import how_sure
from everlearn.choices import HEADS
from everlearn.evaluation.run import OWN, Figures, Run, Score
from everlearn.report import Findings, facts, look_into, write_report

from ..conftest import coloured, fit_all, make_learner, state
from .pages import EVIL, Page, mixed, named


@pytest.fixture(scope="module")
def learner() -> Learner:
    return fit_all(make_learner(Frozen(), head=LDA()), [coloured("ab", 20), coloured("cd", 20)])


# Accuracy over k.


def test_new_classes_are_learned_from_k_images(learner: Learner) -> None:
    before = state(learner)
    train, test = coloured("abcd", 12), coloured("abcdx", 9, seed=3)
    found = over_images(learner, train, test, draws=4)
    assert found is not None
    assert state(learner) == before
    assert (found.images, found.taken, found.left) == ((1, 2, 5, 10), ("c", "d"), 2)
    assert found.new.shape == found.old.shape == (4, 4)
    assert found.new[:, -1].mean() > 0.9  # patterns that a head tells from ten images
    assert found.new[:, 0].mean() <= found.new[:, -1].mean()
    np.testing.assert_allclose(found.harmonic[0, 1], 2 / (1 / found.new[0, 1] + 1 / found.old[0, 1]))
    assert "2 classes learned anew beside 2 others: from 1 image each" in found.sentence
    again = over_images(learner, train, test, draws=4, features=learner.features(test))
    assert again is not None
    np.testing.assert_array_equal(again.new, found.new)
    noisy = mixed(train, "c", "d", 6)
    first, other = (over_images(learner, noisy, test, draws=4, seed=seed) for seed in (0, 1))
    assert first is not None
    assert other is not None
    assert (other.new != first.new).any()


def test_it_is_what_a_head_learns_from_these_images() -> None:
    """Five images there are, five are taken: then nothing is left to chance."""
    learner = fit_all(make_learner(Frozen(), head=Prototypes()), [coloured("ab", 5), coloured("cd", 5)])
    test = coloured("abcd", 9, seed=3)
    found = over_images(learner, coloured("abcd", 5), test, draws=2)
    assert found is not None
    right = np.array(learner.predict(test)) == np.array(test.labels)
    is_new = np.isin(test.labels, ("c", "d"))
    assert found.new[:, -1] == pytest.approx(right[is_new].mean())
    assert found.old[:, -1] == pytest.approx(right[~is_new].mean())


@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_looked_into(name: str) -> None:
    tasks = [coloured("ab", 12), coloured("cd", 12)]
    learner = fit_all(make_learner(Frozen(), head=HEADS[name](0)), tasks)
    train, test = coloured("abcd", 12), mixed(coloured("abcd", 6, seed=3), "a", "b", 2)
    before = state(learner)
    found = over_images(learner, train, test, draws=1)
    assert found is not None
    assert np.isfinite(found.harmonic).all()
    assert find_mistakes(learner, test)[0].count >= 2
    assert state(learner) == before


def test_of_one_task_the_later_half_is_new() -> None:
    learner = make_learner(Frozen(), head=Prototypes()).fit(coloured("abcde", 5))
    found = over_images(learner, coloured("abcde", 5), coloured("abcde", 3, seed=3))
    assert found is not None
    assert found.taken == ("d", "e")
    assert found.left == 3


def test_what_is_too_little_is_left_out(learner: Learner) -> None:
    two = make_learner(Frozen(), head=Prototypes()).fit(coloured("ab"))
    assert over_images(two, coloured("ab"), coloured("ab", 3, seed=3)) is None
    assert over_images(learner, coloured("ab"), coloured("abcd", 3, seed=3)) is None
    assert over_images(learner, coloured("abcd"), coloured("ab", 3, seed=3)) is None
    assert over_images(learner, coloured("abcd"), coloured("cd", 3, seed=3)) is None


# What is mistaken for what.


def test_mistakes_come_with_pictures_of_both(learner: Learner) -> None:
    before, test = state(learner), coloured("abcdx", 8, seed=3)
    said = mixed(mixed(test, "a", "b", 4), "c", "d", 2)
    found = find_mistakes(learner, said)
    assert state(learner) == before
    first = found[0]
    assert (first.actual, first.predicted, first.count, first.of) == ("b", "a", 4, 12)
    assert {(one.actual, one.predicted, one.count) for one in found[:2]} == {("b", "a", 4), ("d", "c", 2)}
    assert len(first.mistaken) == 3
    assert len(first.alike) == 3
    pattern = np.asarray(test[0][0], dtype=float)  # all of these images are of a, whatever is said
    for image in (*first.mistaken, *first.alike):
        assert np.abs(np.asarray(image) - pattern).mean() < 30
        assert max(image.size) <= SIDE
    assert len({image.tobytes() for image in first.alike}) == 3
    assert find_mistakes(learner, said, pairs=1) == find_mistakes(learner, said, pairs=1, features=None)[:1]
    assert not find_mistakes(learner, coloured("xy"))


def test_large_pictures_are_made_small() -> None:
    large = Images(["a", "b"] * 3, lambda index: Image.new("L", (640, 400), 40 * index))
    learner = make_learner(Frozen(), head=Prototypes()).fit(large)
    wrong = Images(["b", "a"] * 3, lambda index: large[index][0])
    found = find_mistakes(learner, wrong)
    assert found
    assert {image.size for one in found for image in one.mistaken} == {(96, 60)}
    assert {image.mode for one in found for image in one.mistaken} == {"RGB"}


# The page.


def test_the_page_shows_all_of_it(tmp_path: Path) -> None:
    names = [EVIL, "b & c", "マグ", "d"]
    train, test = named(names, 10), named(names, 6, seed=1)
    learner = make_learner(ILoRA(memory=8), epochs=1, lr=0.1)
    learner.run(ClassIncremental(train, test, classes_per_task=2), checkpoint=tmp_path)
    wrong = mixed(test, EVIL, "d", 3)
    found = look_into(learner, train, wrong, samples=8, readouts=2)
    assert found.diagnosis is not None
    assert found.own is not None
    assert found.sureness is not None
    assert found.few is not None
    assert found.mistakes
    page = Page(write_report(tmp_path, findings=found))
    for heading in ("What limits it", "What is mistaken for what", "How sure it is", "From a few images"):
        assert f"<h2>{heading}</h2>" in page.source
    for text in (*(factor.sentence for factor in found.diagnosis.factors), *found.diagnosis.advice):
        assert text in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert found.diagnosis.verdict[1:] in page.text
    assert page.text.count("Measured in the end: of the answers") == 1
    assert page.tags.count("img") == sum(len(one.mistaken) + len(one.alike) for one in found.mistakes) > 0
    for source in (one["src"] for tag, one in page.elements if tag == "img"):
        with Image.open(
            io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))
        ) as image:
            assert max(image.size) <= SIDE
    assert {"reliability.png", "strangers.png", "few.png"} <= {
        file.name for file in (tmp_path / "report").iterdir()
    }
    assert found.own.title in page.text
    assert all(cell in page.text for row in found.own.rows for cell in row)
    assert {"script", "pre"}.isdisjoint(page.tags)
    assert found.text().count("verdict: ") == 1


def test_bars_are_as_long_as_the_gains(tmp_path: Path, learner: Learner) -> None:
    found = look_into(learner, coloured("abcd", 20), coloured("abcd", 6, seed=1), samples=8)
    make_learner(Frozen()).run(
        ClassIncremental(coloured("abcd"), coloured("abcd", 2, seed=1), classes_per_task=2),
        checkpoint=tmp_path,
    )
    page = write_report(tmp_path, findings=Findings(diagnosis=found.diagnosis)).read_text()
    assert found.diagnosis is not None
    gains = [max(gain, 0) for gain in found.diagnosis.gains.values()]
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%", page.split("</style>")[1])]
    assert widths == pytest.approx([100 * gain / max(0.1, *gains) for gain in gains], abs=0.06)
    assert "How sure it is" not in page


def test_to_train_more_is_not_advised_without_a_word_where_much_is_forgotten(learner: Learner) -> None:
    found = look_into(learner, coloured("abcd", 20), coloured("abcd", 6, seed=1), samples=8).diagnosis
    assert found is not None
    less = replace(found, regularisation=2 * found.best_regularisation, error=9.0, interference=0.0)
    assert less.case == "less"
    fallen, kept = (
        Run("NTKCL", 0, {}, list("abcd"), [2, 2], {OWN: Score("lda", rows(now), 0)}) for now in (0.7, 0.96)
    )
    assert "fallen by 30.00 points: to train more may make them fall further." in facts.measured(fallen, less)
    assert "fallen by 4.00 points." in facts.measured(kept, less)
    for other in (None, replace(less, regularisation=None)):
        assert "fallen by 30.00 points." in facts.measured(fallen, other)


def rows(now: float) -> tuple[Figures, ...]:
    """Of two tasks, the first of which was all right once."""
    return Figures(1.0, [1.0], [8], 1.0, 1.0), Figures(0.9, [now, 0.9], [8, 8], 0.9, 0.95)


def test_without_a_look_the_page_says_how_to_have_one(tmp_path: Path) -> None:
    stream = ClassIncremental(coloured("abcd"), coloured("abcd", 2, seed=1), classes_per_task=2)
    make_learner(Frozen()).run(stream, checkpoint=tmp_path)
    page = Page(write_report(tmp_path))
    assert "everlearn report RUN DATA" in page.text
    assert "What limits it" not in page.text


def test_features_of_the_test_images_are_computed_once(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, features = coloured("abcdx", 6, seed=1), learner.features
    counts: list[int] = []

    def counted(data: Images) -> NDArray[np.float32]:
        counts.append(len(data))
        return features(data)

    monkeypatch.setattr(learner, "features", counted)
    found = look_into(learner, coloured("abcd", 20), test, samples=8)
    assert counts.count(24) == 1
    assert found.sureness is not None
    alone = how_sure(learner, test)
    assert alone is not None
    np.testing.assert_array_equal(alone.known, found.sureness.known)
