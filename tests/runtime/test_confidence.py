"""How sure a head may be: sums over what it said of images before it learned them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlearn_runtime import (
    LDA,
    Aggregate,
    FeCAM,
    Head,
    Linear,
    Prototypes,
    Ridge,
    WhitenedCosine,
    from_state,
)
from everlearn_runtime.heads import Confidence, HeadState, Judgement
from everlearn_runtime.heads.confidence import (
    ENOUGH,
    HALF_LIFE,
    LARGEST_BIN,
    TEMPERATURES,
    Look,
    judge,
    probabilities,
    strangeness,
)
from everlearn_runtime.heads.second_order import SELDOM_ROWS, SecondOrder

Array = NDArray[np.float64]


def opinions(n: int, seed: int = 0, classes: int = 5) -> tuple[Array, NDArray[np.intp], Look]:
    """Scores of n images, what they show, and how strange and remote they are."""
    random = np.random.default_rng(seed)
    truth = random.integers(classes, size=n)
    scores = random.normal(size=(n, classes))
    scores[np.arange(n), truth] += 1.5
    return scores, truth, Look(random.gamma(4.0, size=n) / 20, random.normal(3.0, 2.0, size=n))


def plain(strange: Any) -> Look:
    """Images that are so strange, and all as remote."""
    return Look(np.asarray(strange, dtype=float), np.ones(len(strange)))


def judged(n: int, seed: int = 0, parts: int = 1) -> Confidence:
    """Figures after n images."""
    figures = Confidence()
    scores, truth, look = opinions(n, seed)
    for part in np.array_split(np.arange(n), parts):
        figures.note(judge(scores[part], truth[part], Look(*(each[part] for each in look))))
    return figures


def same(one: Confidence, other: Confidence, rtol: float = 0.0) -> None:
    """Whether two have the same figures; sums in another order differ by rounding."""
    first, second = one.arrays(), other.arrays()
    assert set(first) == set(second)
    np.testing.assert_array_equal(first["bins"], second["bins"])
    np.testing.assert_array_equal(first["judged"], second["judged"])
    np.testing.assert_allclose(first["weights"], second["weights"], rtol=rtol)
    np.testing.assert_allclose(first["losses"], second["losses"], rtol=rtol)
    np.testing.assert_allclose(first["moments"], second["moments"], rtol=rtol, atol=1e-9 * bool(rtol))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.randoms())
@settings(deadline=None, max_examples=30)
def test_figures_of_streams_add_in_any_order(sizes: list[int], random: Any) -> None:
    parts = [judged(size, seed) for seed, size in enumerate(sizes)]
    one, other = Confidence(), Confidence()
    for part in parts:
        one.merge(part)
    random.shuffle(parts)
    for part in parts:
        other.merge(part)
    same(one, other, rtol=1e-12)
    assert one.judged == sum(sizes)
    assert one.weight == pytest.approx(sum(sizes))


@given(st.integers(1, 40), st.randoms())
@settings(deadline=None, max_examples=30)
def test_the_order_within_a_judgement_does_not_matter(n: int, random: Any) -> None:
    scores, truth, look = opinions(n)
    order = list(range(n))
    random.shuffle(order)
    one, other = (
        judge(scores, truth, look),
        judge(scores[order], truth[order], Look(*(each[order] for each in look))),
    )
    assert one.bins == other.bins
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-6)
    np.testing.assert_allclose(one.moments, other.moments, rtol=1e-9, atol=1e-9)


def test_earlier_images_count_for_less() -> None:
    figures = Confidence()
    figures.note(
        judge(np.zeros((HALF_LIFE, 2)), np.zeros(HALF_LIFE, np.intp), plain(np.full(HALF_LIFE, 8.0)))
    )
    assert (figures.judged, figures.weight) == (HALF_LIFE, HALF_LIFE)
    for _ in range(HALF_LIFE):
        figures.note(judge(np.zeros((1, 2)), np.zeros(1, np.intp), plain([0.5])))
    new = (1 - 0.5) / (1 - 0.5 ** (1 / HALF_LIFE))
    assert figures.weight == pytest.approx(HALF_LIFE / 2 + new)
    assert figures.share_beyond(1.0) == pytest.approx(HALF_LIFE / 2 / figures.weight)
    assert figures.judged == 2 * HALF_LIFE
    for _ in range(40):
        figures.note(
            judge(np.zeros((HALF_LIFE, 2)), np.zeros(HALF_LIFE, np.intp), plain(np.full(HALF_LIFE, 2.0)))
        )
    assert figures.arrays()["bins"].tolist() == [64]
    same(Confidence.from_arrays(figures.arrays()), figures)


def test_a_merge_leaves_the_other_alone() -> None:
    one, other = judged(9, 1), judged(9, 2)
    before = other.arrays()
    one.merge(other)
    one.note(judge(*opinions(3, 3)))
    assert {name: array.tobytes() for name, array in other.arrays().items()} == {
        name: array.tobytes() for name, array in before.items()
    }


def test_figures_come_back_to_the_bit() -> None:
    figures = judged(300)
    again = Confidence.from_arrays(figures.arrays())
    same(figures, again)
    assert (again.temperature, again.threshold(), again.judged) == (
        figures.temperature,
        figures.threshold(),
        300,
    )
    assert sum(array.nbytes for array in figures.arrays().values()) == figures.nbytes
    assert Confidence.from_arrays({}).arrays() == {}
    assert Confidence().nbytes == 0


@given(st.integers(1, 40), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_a_judgement_is_the_same_after_it_was_written(n: int, seed: int) -> None:
    judgement = judge(*opinions(n, seed))
    says = judgement.says()
    again = Judgement.read(json.loads(json.dumps(says)))
    assert again.losses.tobytes() == judgement.losses.tobytes()
    assert again.losses.dtype == judgement.losses.dtype
    assert (again.bins, again.moments) == (judgement.bins, judgement.moments)
    if n == 1:
        assert len(json.dumps(says)) < 400


GOOD = judge(*opinions(2)).says()


@pytest.mark.parametrize(
    "says",
    [
        None,
        {},
        {"losses": "", "bins": [1]},
        {**GOOD, "bins": []},
        {**GOOD, "bins": 3},
        {**GOOD, "bins": [1.0]},
        {**GOOD, "bins": [True]},
        {**GOOD, "bins": [LARGEST_BIN + 1]},
        {**GOOD, "more": 1},
        {**GOOD, "moments": [1.0]},
        {**GOOD, "moments": [1.0, float("inf")]},
        {**GOOD, "moments": [1.0, 2]},
        {**GOOD, "moments": None},
        {**GOOD, "losses": "ä"},
        {**GOOD, "losses": GOOD["losses"][:-8]},
        {**GOOD, "losses": "AADAfw==" * 20 + GOOD["losses"][160:]},  # NaN
        {**GOOD, "losses": 7},
    ],
)
def test_what_is_no_judgement(says: Any) -> None:
    with pytest.raises(ValueError, match="no judgement"):
        Judgement.read(says)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("losses", lambda array: array[:3], "expected float64 of shape"),
        ("losses", lambda array: array.astype(np.float32), "expected float64 of shape"),
        ("losses", lambda array: array * np.nan, "negative, nor larger"),
        ("losses", lambda array: -array, "negative, nor larger"),
        ("losses", lambda array: array + 1e9, "negative, nor larger"),
        ("moments", lambda array: array[:1], "expected float64 of shape"),
        ("moments", lambda array: array * np.inf, "infinite"),
        ("bins", lambda array: array[::-1], "ascend"),
        ("bins", lambda array: array * 0, "ascend"),
        ("bins", lambda array: array[:-1], "expected float64 of shape"),
        ("bins", lambda array: array.astype(np.float64), "expected int64"),
        ("bins", lambda array: array + (1 << 30), "within"),
        ("bins", lambda array: array[:0], "expected int64"),
        ("weights", lambda array: array * 0, "above 0"),
        ("weights", lambda array: array * np.nan, "above 0"),
        ("weights", lambda array: array * 2, "no more than the 20"),
        ("judged", lambda array: array - 5, "no more than the 15"),
        ("judged", lambda array: array * 0, "above 0"),
        ("judged", lambda array: array.astype(np.int32), "expected int64"),
    ],
)
def test_arrays_that_no_judgements_add_up_to(name: str, change: Any, says: str) -> None:
    arrays = judged(20).arrays()
    with pytest.raises(ValueError, match=says):
        Confidence.from_arrays({**arrays, name: change(arrays[name])})
    with pytest.raises(ValueError, match="expected bins, judged, losses, moments, weights"):
        Confidence.from_arrays({key: array for key, array in arrays.items() if key != name})


@pytest.mark.parametrize("temperature", [0.02, 0.3, 5.0, 70.0])
def test_the_temperature_is_that_of_the_images(temperature: float) -> None:
    """Labels drawn by softmax(scores / T): that T is found, and the probabilities are what they say."""
    random = np.random.default_rng(0)
    scores = 2 * temperature * random.normal(size=(4000, 10))
    chances = probabilities(scores, temperature)
    truth = (chances.cumsum(axis=1) < random.random((4000, 1))).sum(axis=1).clip(max=9)
    figures = Confidence()
    figures.note(judge(scores, truth, plain(np.ones(4000))))
    assert figures.temperature == pytest.approx(temperature, rel=0.06)
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-12)


def test_a_head_without_a_mistake_is_not_called_infallible() -> None:
    figures = Confidence()
    figures.note(judge(np.tile([1.0, 0.0], (300, 1)), np.zeros(300, np.intp), plain(np.ones(300))))
    sure = probabilities(np.array([[1.0, 0.0]]), figures.temperature)[0, 0]
    assert 0.999 < sure < 1


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_the_threshold_keeps_the_rate_of_false_alarms(rate: float) -> None:
    figures, fresh = judged(4000), opinions(20_000, seed=1)[2].strangeness
    assert (fresh > figures.threshold(rate)).mean() == pytest.approx(rate, abs=0.01)
    assert figures.share_beyond(figures.threshold(rate)) == pytest.approx(rate, abs=1e-9)
    assert figures.share_beyond(0.0) == 1
    assert figures.share_beyond(1e9) == 0


def test_remoteness_is_measured_in_deviations_of_judged_images() -> None:
    fresh = opinions(5000, seed=1)[2].remoteness
    scores = judged(5000).remoteness_score(fresh)
    assert scores.mean() == pytest.approx(0, abs=0.05)
    assert scores.std() == pytest.approx(1, abs=0.05)
    assert not Confidence().remoteness_score(fresh).any()
    alike = Confidence()
    alike.note(judge(np.zeros((9, 2)), np.zeros(9, np.intp), plain(np.ones(9))))
    assert np.isfinite(alike.remoteness_score(fresh)).all()


@pytest.mark.parametrize("rate", [0, 1, -0.1, np.nan, "0.1", None, True])
def test_what_is_no_rate(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"false_alarm is .*above 0 and below 1"):
        judged(3).threshold(rate)


def test_nothing_judged_nothing_said() -> None:
    with pytest.raises(ValueError, match="no image was judged yet"):
        _ = Confidence().temperature
    with pytest.raises(ValueError, match="no image was judged yet"):
        Confidence().threshold()
    assert not judged(ENOUGH - 1).calibrated
    assert judged(ENOUGH).calibrated


def test_scores_of_any_size_are_judged() -> None:
    scores = np.array([[1e300, -1e300], [0.0, 0.0], [1e-300, 0.0]])
    for truth in ([0, 0, 0], [1, 1, 1]):
        losses = judge(scores, np.array(truth), plain([0.0, 1e300, 1.0])).losses
        assert np.isfinite(losses).all()
        assert (losses >= 0).all()
        assert len(losses) == len(TEMPERATURES)


def test_strangeness_is_relative_and_plain_distance() -> None:
    distances = np.random.default_rng(0).gamma(3.0, size=(20, 6))
    np.testing.assert_allclose(strangeness(7 * distances, distances), strangeness(distances, distances))
    np.testing.assert_allclose(strangeness(distances, 16 * distances), 2 * strangeness(distances, distances))
    one = np.array([[0.0], [16.0]])
    assert strangeness(one, one).tolist() == [0.0, 2.0]


# In heads.

KINDS: list[Any] = [
    LDA,
    lambda: LDA(removable=True),
    Ridge,
    lambda: Ridge(0.1, projection=16),
    Prototypes,
    FeCAM,
    Linear,
    lambda: Aggregate([2, 2], [LDA(), Ridge()]),
]


def rows(n: int, seed: int = 0) -> tuple[Array, list[str]]:
    """Features (n, 4) in three classes."""
    random = np.random.default_rng(seed)
    codes = random.integers(3, size=n)
    return random.normal(size=(n, 4)) + 2 * np.eye(4)[codes], ["abc"[code] for code in codes]


def taught(new: Any, n: int = 250) -> Head:
    """A head that judged and learned."""
    head: Head = new()
    head.update(*rows(30))
    for seed in range(n // 50):
        features, labels = rows(50, seed + 1)
        judgement = head.judge(features, labels)
        head.update(features, labels)
        assert judgement is not None
        head.note(judgement)
    return head


@pytest.mark.parametrize("new", KINDS)
def test_a_heads_figures_go_where_its_statistics_go(new: Any) -> None:
    head = taught(new)
    assert head.confidence.judged == 250
    state = head.state()
    again = from_state(state)
    same(again.confidence, head.confidence)
    assert again.temperature == head.temperature
    assert head.nbytes == sum(array.nbytes for array in state.arrays.values())
    if head.exact:
        other = taught(new, 100)
        other.merge(head)
        assert other.confidence.judged == 350
        same(head.confidence, again.confidence)
    head.remove("a")
    assert head.confidence.judged == 250
    if head.exact:
        assert head.to_removable().confidence.judged == 250 if _removable(head) else True


def _removable(head: Head) -> bool:
    try:
        head.to_removable()
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("new", KINDS)
def test_judging_changes_nothing(new: Any) -> None:
    head, silent = taught(new, 50), taught(new, 50)
    for seed in range(20, 26):
        features, labels = rows(1 + seed % 3, seed)
        head.judge(features, labels)
        head.update(features, labels)
        silent.update(features, labels)
    one, other = head.state(), silent.state()
    assert {name: array.tobytes() for name, array in one.arrays.items()} == {
        name: array.tobytes() for name, array in other.arrays.items()
    }


def test_only_images_of_known_classes_are_judged() -> None:
    head = LDA()
    features, labels = rows(20)
    assert head.judge(features, labels) is None
    head.update(features[:5], ["a"] * 5)
    judgement = head.judge(features, labels)
    assert judgement is not None
    assert len(judgement.bins) == labels.count("a")
    assert head.opinion(features, labels).rows.tolist() == [i for i, name in enumerate(labels) if name == "a"]
    with pytest.raises(ValueError, match="to calibrate by is of a class that this head knows"):
        head.calibrate(features, ["x"] * 20)
    with pytest.raises(ValueError, match="labels for"):
        head.judge(features, labels[:3])


def test_calibrating_begins_anew() -> None:
    head = taught(LDA)
    head.calibrate(*rows(40, 99))
    assert head.confidence.judged == 40


def test_other_features_other_figures() -> None:
    head = taught(LDA)
    before = rows(30, 5)[0]
    head.carry(before, before)
    assert head.confidence.judged == 250
    head.carry(before, 2 * before)
    assert head.confidence.judged == 0
    assert taught(LDA).since(LDA()).confidence.judged == 0


def test_a_state_of_an_earlier_version_has_no_figures() -> None:
    state = taught(LDA).state()
    arrays = {name: array for name, array in state.arrays.items() if not name.startswith("confidence.")}
    head = from_state(HeadState(state.kind, state.classes, state.options, arrays))
    assert not head.confidence.calibrated
    assert head.temperature == LDA.usual_temperature
    with pytest.raises(ValueError, match="expected bins, judged, losses, moments, weights"):
        from_state(
            HeadState(state.kind, state.classes, state.options, {**arrays, "confidence.odd": arrays["means"]})
        )


def test_heads_that_solve_at_length_say_so() -> None:
    head = taught(Ridge, 50)
    assert not head.answers_soon
    head.scores(rows(1)[0])
    assert head.answers_soon
    assert taught(LDA, 50).answers_soon
    assert not taught(lambda: Ridge(0.1, projection=2000), 50).answers_soon
    assert not taught(lambda: Aggregate([2, 2], [LDA(), Ridge()]), 50).answers_soon


@pytest.mark.parametrize("new", [LDA, WhitenedCosine])
def test_judging_seldom_solves_anew(new: Callable[[], Head]) -> None:
    random = np.random.default_rng(0)
    head, judged = new(), 0
    rows = random.normal(size=(900, 300)) + np.arange(900)[:, None] % 5
    labels = [str(number % 5) for number in range(900)]
    head.update(rows[:300], labels[:300])
    assert isinstance(head, SecondOrder)
    for row, label in zip(rows[300:], labels[300:], strict=True):
        if head.answers_soon:
            judgement = head.judge(row[None], [label])
            assert judgement is not None
            judged += 1
        head.update(row[None], [label])
    assert head._running.solves <= 2 * (600 // SELDOM_ROWS + 1)  # for the scores, and for the distances
    assert judged > 50
