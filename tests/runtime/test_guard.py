"""Probabilities, the unknown, suspects, canaries and drift, on a real graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import (
    LDA,
    BundleError,
    Canaries,
    Confidence,
    DriftWatch,
    EdgeLearner,
    GuardError,
    Head,
    OnnxRuntime,
    Suspect,
    from_state,
)
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.guard import doubtful
from everlearn_runtime.heads.confidence import Look, judge

from .state.harness import bits

MakeImages = Callable[..., NDArray[np.uint8]]
MakeBundle = Callable[..., Path]
NAMES = ("mug", "pen", "cup")


@pytest.fixture
def known(bundle: Path, make_images: MakeImages) -> tuple[Head, Canaries]:
    """A head that has judged 240 images, and canaries for it."""
    backend, head = OnnxRuntime(bundle / "features.onnx"), LDA()
    for seed in range(1, 9):
        for label in NAMES:
            features = backend.run(make_images(label, 10, seed=seed))
            if seed > 1 and (judgement := head.judge(features, [label] * 10)) is not None:
                head.note(judgement)
            head.update(features, [label] * 10)
    canaries = [backend.run(make_images(label, 5, seed=50)) for label in NAMES]
    backend.close()
    return head, Canaries(np.concatenate(canaries), tuple(label for label in NAMES for _ in range(5)))


@pytest.fixture
def edge(make_bundle: MakeBundle, known: tuple[Head, Canaries], tmp_path: Path) -> Iterator[EdgeLearner]:
    head, canaries = known
    path = make_bundle("sure", head, canaries=canaries)
    with EdgeLearner.open(path, state=tmp_path / "sure.db", threads=1) as opened:
        yield opened


def noise(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images that are of no class."""
    colours = np.random.default_rng(seed).integers(0, 256, size=(n, 2, 2, 3))
    return colours.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)


def test_a_prediction_says_how_sure_it_is(edge: EdgeLearner, make_images: MakeImages) -> None:
    assert edge._head.confidence.judged == 210
    found = edge.predict(np.concatenate([make_images(name, 20, seed=77) for name in NAMES]))
    assert found.calibrated
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert found.probabilities.shape == found.scores.shape
    assert found.known.dtype == np.bool_
    assert found.known.mean() > 0.8
    assert [row[0][0] for row in found.top(1)] == found.labels
    for best, row in zip(found.top(), found.probabilities, strict=True):
        assert [name for name, _ in best] == [found.classes[i] for i in np.argsort(-row, kind="stable")]
        assert [share for _, share in best] == sorted(row, reverse=True)
    for k in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="whole number"):
            found.top(k)  # type: ignore[arg-type]


def test_what_is_unlike_everything_is_unknown(edge: EdgeLearner) -> None:
    assert edge.predict(noise(60)).known.mean() < 0.7


def test_the_rate_of_false_alarms_is_asked_for(
    make_bundle: MakeBundle, known: tuple[Head, Canaries], make_images: MakeImages
) -> None:
    path = make_bundle("rates", known[0])
    images = np.concatenate([make_images(name, 100, seed=78) for name in NAMES])
    unknown = []
    for rate in (0.01, 0.2):
        with EdgeLearner.open(path, false_alarm=rate) as opened:
            unknown.append(1 - opened.predict(images).known.mean())
    assert unknown[0] == pytest.approx(0.01, abs=0.02)
    assert unknown[1] == pytest.approx(0.2, abs=0.06)
    with pytest.raises(ValueError, match="false_alarm is 5"):
        EdgeLearner.open(path, false_alarm=5)


def test_without_figures_nothing_is_unknown(learner: EdgeLearner) -> None:
    found = learner.predict(noise(8))
    assert not found.calibrated
    assert found.known.all()
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert not learner.drifted
    assert learner.learn(noise(8), ["mug"] * 8).suspects == ()


def test_predict_then_learn_calibrates_the_device(learner: EdgeLearner, make_images: MakeImages) -> None:
    for seed in range(1, 8):
        assert not learner.predict(make_images("mug")).calibrated
        for name in NAMES:
            learner.learn(make_images(name, 10, seed=seed), [name] * 10)
    assert learner._head.confidence.judged == 200  # the first cups were of no class that was known
    assert learner.predict(make_images("mug")).calibrated


def test_a_head_that_cannot_answer_still_learns(
    learner: EdgeLearner, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LDA, "_score", lambda self, rows: np.full((len(rows), len(self.classes)), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        learner.predict(make_images("mug"))
    assert learner.learn(make_images("mug"), ["mug"] * 4).suspects == ()
    assert learner.counts["mug"] == 8


def test_suspects_are_named(edge: EdgeLearner, make_images: MakeImages) -> None:
    learned = edge.learn(
        np.concatenate([make_images("mug", 9, seed=60), make_images("pen", 1, seed=60)]), ["mug"] * 10
    )
    wrong = [one for one in learned.suspects if one.reason == "label"]
    assert [(one.index, one.label, one.looks) for one in wrong] == [(9, "mug", "pen")]
    assert (learned.number, learned.counts, learned.kind) == (1, {"mug": 10}, "learn")
    new = edge.learn(make_images("axe", 3), ["axe"] * 3)
    assert new.suspects == ()


# One unit with the journal.


def test_figures_are_journalled_and_come_back_to_the_bit(
    edge: EdgeLearner, make_images: MakeImages, tmp_path: Path
) -> None:
    states = [bits(edge._head)]
    for seed in range(6):
        name = NAMES[seed % 3]
        edge.learn(make_images(name, 1 + seed, seed=90 + seed), [name] * (1 + seed))
        states.append(bits(edge._head))
    assert edge._head.confidence.judged == 210 + 21
    edge.rollback(3)
    assert bits(edge._head) == states[3]
    assert edge._head.confidence.judged == 210 + 6
    edge.rollback(6)
    path = edge.bundle.path
    with EdgeLearner.open(path, state=tmp_path / "sure.db", read_only=True) as reader:
        assert bits(reader._head) == states[6]
        edge.learn(make_images("mug", 2, seed=99), ["mug"] * 2)
        assert bits(reader._head) == bits(edge._head)
    edge.close()
    with EdgeLearner.open(path, state=tmp_path / "sure.db") as again:
        assert again._head.confidence.judged == 233
        again.undo()
        assert bits(again._head) == states[6]
        again.forget("mug", purge=True)
        after = bits(again._head)
    with EdgeLearner.open(path, state=tmp_path / "sure.db") as again:
        assert bits(again._head) == after
        assert again._head.confidence.judged == 231


def test_a_guard_refuses_and_leaves_everything(edge: EdgeLearner, make_images: MakeImages) -> None:
    before, version = bits(edge._head), edge.version
    swapped = np.concatenate([make_images("pen", 200, seed=70), make_images("mug", 200, seed=70)])
    labels = ["mug"] * 200 + ["pen"] * 200
    with pytest.raises(
        GuardError, match=r"400 of 400 images do not look like what .*200 of 'mug' like 'pen'"
    ):
        edge.learn(swapped, labels, guard=0.1)
    assert (bits(edge._head), edge.version) == (before, version)
    assert edge.learn(make_images("mug", 5, seed=71), ["mug"] * 5, guard=0.1).number == 1
    assert edge.learn(make_images("axe", 5, seed=71), ["axe"] * 5, guard=0.1).number == 2
    assert edge.learn(swapped, labels).number == 3
    edge.undo()
    assert edge.classes == (*NAMES, "axe")


def test_what_would_be_forgotten_is_refused(
    known: tuple[Head, Canaries], make_bundle: MakeBundle, make_images: MakeImages
) -> None:
    """Also by a head that has no figures, and so no doubts."""
    head, canaries = known
    state = head.state()
    arrays = {name: array for name, array in state.arrays.items() if not name.startswith("confidence.")}
    path = make_bundle("plain", from_state(replace(state, arrays=arrays)), canaries=canaries)
    swapped = np.concatenate([make_images("pen", 200, seed=70), make_images("mug", 200, seed=70)])
    with EdgeLearner.open(path) as edge:
        before = bits(edge._head)
        with pytest.raises(GuardError, match=r"from \d+ to \d+ of 15") as caught:
            edge.learn(swapped, ["mug"] * 200 + ["pen"] * 200, guard=0.1)
        assert caught.value.before is not None
        assert caught.value.after is not None
        assert caught.value.before > caught.value.after + 0.1
        assert (bits(edge._head), edge.version) == (before, 0)


def test_a_few_doubts_are_chance() -> None:
    suspect = Suspect(0, "mug", "pen", "label")
    assert doubtful(1, [suspect], 0.05) is None
    assert doubtful(2, [suspect] * 2, 0.05) is None
    assert doubtful(100, [suspect] * 15, 0.05) is None
    assert doubtful(100, [replace(suspect, reason="far")] * 90, 0.05) is None
    assert doubtful(0, [], 0.05) is None
    for images, found in ((4, 4), (100, 25), (100_000, 11_000)):
        assert isinstance(doubtful(images, [suspect] * found, 0.05), GuardError)


@pytest.mark.parametrize("guard", [-0.1, 1, True, "0.1", float("nan")])
def test_what_is_no_guard(edge: EdgeLearner, make_images: MakeImages, guard: Any) -> None:
    with pytest.raises(ValueError, match=r"guard is .*at least 0 and below 1"):
        edge.learn(make_images("mug"), ["mug"] * 4, guard=guard)
    assert edge.version == 0


def test_a_guard_needs_canaries(learner: EdgeLearner, make_images: MakeImages) -> None:
    with pytest.raises(ValueError, match="without canaries; export"):
        learner.learn(make_images("mug"), ["mug"] * 4, guard=0.1)
    assert learner.version == 0


def test_canaries_come_back(make_bundle: MakeBundle, known: tuple[Head, Canaries]) -> None:
    head, canaries = known
    found = Bundle.open(make_bundle("canaries", head, canaries=canaries)).canaries()
    assert found is not None
    assert found.labels == canaries.labels
    assert found.features.tobytes() == canaries.features.tobytes()
    assert found.right(head) == (15, 15)
    assert found.right(head, ["pen"]) == (5, 5)
    head.remove("pen")
    assert found.right(head)[1] == 10
    assert found.right(head, ["pen"]) == (0, 0)
    assert Bundle.open(make_bundle("none", head)).canaries() is None


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("features", lambda array: array.astype(np.float64), "float32"),
        ("features", lambda array: array[:, :3], "float32"),
        ("features", lambda array: array * np.nan, "NaN"),
        ("features", lambda array: array[:0], "at least one row"),
        ("places", lambda array: array.astype(np.int32), "int32"),
        ("places", lambda array: array[:-1], "shape"),
        ("places", lambda array: array - 1, "within the 3 classes"),
        ("places", lambda array: array + 1, "within the 3 classes"),
    ],
)
def test_damaged_canaries(
    make_bundle: MakeBundle, known: tuple[Head, Canaries], name: str, change: Any, says: str
) -> None:
    head, canaries = known

    class Damaged(Canaries):
        def arrays(self, classes: Any) -> dict[str, NDArray[Any]]:
            arrays = super().arrays(classes)
            return {**arrays, name: change(arrays[name])}

    with pytest.raises(BundleError, match=says):
        Bundle.open(make_bundle("damaged", head, canaries=Damaged(canaries.features, canaries.labels)))


# Drift.


def figures(n: int = 2000) -> Confidence:
    """Figures of images whose strangeness is spread evenly."""
    found, random = Confidence(), np.random.default_rng(0)
    found.note(judge(np.zeros((n, 2)), np.zeros(n, np.intp), Look(random.random(n), random.normal(size=n))))
    return found


def stream(n: int, seed: int, least: float = 0.0, remote: float = 0.0) -> Look:
    """Images of the same kind, or stranger or more remote ones."""
    random = np.random.default_rng(seed)
    return Look(random.uniform(least, 1.0, n), random.normal(remote, size=n))


def test_a_stream_that_does_not_drift_is_left_alone() -> None:
    watch, found = DriftWatch(), figures()
    for seed in range(20):
        watch.see(found, stream(1000, seed))
        assert not watch.told
    assert watch.seen == 20_000


@pytest.mark.parametrize("drift", [{"least": 0.95}, {"remote": 3.0}, {"remote": -3.0}])
def test_a_stream_that_drifts_is_told_and_may_come_back(drift: dict[str, float]) -> None:
    watch, found = DriftWatch(), figures()
    watch.see(found, stream(100, 1))
    watch.see(found, stream(15, 2, **drift))
    assert watch.told
    again = copy.deepcopy(watch)
    again.reset()
    assert not again.told
    watch.see(found, stream(200, 3))
    assert not watch.told


def test_a_watch_without_figures_sees_nothing() -> None:
    watch = DriftWatch()
    watch.see(Confidence(), stream(100, 0))
    assert (watch.told, watch.seen) == (False, 0)


def test_the_learner_tells_drift(edge: EdgeLearner, make_images: MakeImages) -> None:
    for seed in range(30):
        edge.predict(make_images(NAMES[seed % 3], 5, seed=200 + seed))
    assert not edge.drifted
    edge.predict(noise(200))
    assert edge.drifted
    edge.reset_drift()
    assert not edge.drifted
