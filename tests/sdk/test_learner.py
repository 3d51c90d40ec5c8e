"""Learner: one loop for every method."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from everlearn import (
    LDA,
    NTKCL,
    Augmentation,
    ClassIncremental,
    FineTune,
    Frozen,
    Images,
    Joint,
    Learner,
    Method,
    Prototypes,
    Ridge,
    checkpoint,
    progress,
)
from everlearn.analysis.of_run import diagnose_run
from everlearn.evaluation import runner
from everlearn.evaluation.run import OWN, Run
from everlearn.evaluation.runner import measure
from everlearn.methods.base import Batches, TaskInfo
from everlearn_runtime import EdgeLearner, GuardError, HeldOutRidge
from everlearn_runtime.bundle import Bundle

from ..conftest import Clock, coloured, digests, fit_all, make_learner, pixels, state, vit

WORKERS = pytest.mark.filterwarnings(  # on a machine of one core, and from Python 3.12 on
    "ignore:This DataLoader will create", "ignore:This process .* is multi-threaded, use of fork"
)


# Data in, names and numbers out


def test_classes_are_names_in_the_order_of_their_arrival() -> None:
    learner = fit_all(make_learner(Frozen()), [coloured(["pen", "mug"], 3), coloured(["cup"], 3)])
    assert learner.classes == ("pen", "mug", "cup")
    assert learner.tasks == [("mug", "pen"), ("cup",)]


def test_numbers_take_the_data_sets_own_names() -> None:
    class Numbered:
        classes = ("cup", "mug", "pen")
        targets = (2, 2, 0, 0)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return coloured([self.classes[self.targets[index]]], 1, seed=index)[0][0], self.targets[index]

    learner = make_learner(Frozen()).fit(Numbered())
    assert learner.classes == ("pen", "cup")
    assert learner.evaluate(Numbered()) == 1
    plain = make_learner(Frozen()).fit([(image, index) for index, (image, _) in enumerate(coloured("ab", 1))])
    assert plain.classes == ("0", "1")


def test_shapes_and_types_of_what_comes_out() -> None:
    learner = make_learner(NTKCL(view="hybrid"), epochs=1).fit(coloured("ab"))
    unseen = coloured("ab", 4, seed=1)
    features = learner.features(unseen)
    assert features.shape == (8, 96)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    predicted = learner.predict(pixels(unseen))
    assert predicted == learner.predict([image for image, _ in unseen])
    assert {type(name) for name in predicted} == {str}
    right = np.mean([a == b for a, b in zip(predicted, unseen.labels, strict=True)])
    assert learner.evaluate(unseen) == right
    grey = np.random.default_rng(0).integers(0, 256, size=(3, 20, 50), dtype=np.uint8)
    assert len(learner.predict(grey[..., None])) == len(learner.predict(list(grey))) == 3
    assert learner.fit(coloured("c", 2)) is learner


def test_features_do_not_depend_on_their_neighbours() -> None:
    learner, data = make_learner(NTKCL(), epochs=1).fit(coloured("ab")), coloured("ab", 40)
    alone = np.concatenate([learner.features(data.subset([index])) for index in (0, 41, 79)])
    np.testing.assert_allclose(learner.features(data)[[0, 41, 79]], alone, atol=1e-5)


def test_nothing_is_predicted_before_something_is_learned(tmp_path: Path) -> None:
    learner = make_learner(Frozen())
    with pytest.raises(ValueError, match=r"nothing has been learned yet.*call fit first"):
        learner.predict(pixels(coloured("a", 1)))
    with pytest.raises(ValueError, match=r"nothing has been learned yet.*call fit first"):
        learner.evaluate(coloured("a", 1))
    with pytest.raises(ValueError, match=r"nothing has been learned yet.*call fit first"):
        learner.export(tmp_path / "bundle")
    assert not any(tmp_path.iterdir())
    assert learner.features(coloured("a", 2)).shape == (2, 48)


def test_a_device_may_forget_exactly_what_it_learned_itself(tmp_path: Path) -> None:
    learner = make_learner(Frozen(), head=LDA()).fit(coloured("ab"))
    before = state(learner)
    learner.export(tmp_path / "bundle", removable=True)
    assert state(learner) == before
    new, unseen = pixels(coloured("c"), learner), pixels(coloured("ab", seed=2), learner)
    with EdgeLearner.open(tmp_path / "bundle", threads=1) as edge:
        expected = edge.predict(unseen).scores
        edge.learn(new, ["c"] * len(new))
        assert edge.forget("c").form == "exact"
        np.testing.assert_allclose(edge.predict(unseen).scores, expected, rtol=1e-9, atol=1e-9)
        assert edge.forget("a").form == "pooled"


def test_with_a_head_that_keeps_them_apart_all_classes_go_exactly(tmp_path: Path) -> None:
    learner = make_learner(Frozen(), head=LDA(removable=True)).fit(coloured("ab"))
    learner.export(tmp_path / "bundle")
    with EdgeLearner.open(tmp_path / "bundle", threads=1) as edge:
        assert edge.forget("a").form == "exact"


def test_held_out_images_calibrate_the_bundle(tmp_path: Path) -> None:
    learner = make_learner(Frozen(), head=LDA()).fit(coloured("ab"))
    before = state(learner)
    held_out = coloured("abx", 110, seed=5)
    learner.export(tmp_path / "bundle", calibration=held_out, canaries=3)
    assert state(learner) == before
    new = pixels(coloured("ab", 20, seed=6), learner)
    with EdgeLearner.open(tmp_path / "bundle", threads=1) as edge:
        found = edge.predict(new)
        assert found.calibrated
        assert edge._head.confidence.judged == 220  # what is of no class that was learned is left out
        assert found.known.mean() > 0.8
        assert edge.learn(new, ["a"] * 20 + ["b"] * 20, guard=0.1).number == 1
        with pytest.raises(GuardError):
            edge.learn(np.concatenate([new] * 5), (["b"] * 20 + ["a"] * 20) * 5, guard=0.1)
    canaries = Bundle.open(tmp_path / "bundle").canaries()
    assert canaries is not None
    assert canaries.labels == ("a",) * 3 + ("b",) * 3
    learner.export(tmp_path / "plain")
    assert not Bundle.open(tmp_path / "plain").head().confidence.judged


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"canaries": 2}, "without images to take them from"),
        ({"canaries": -1, "calibration": "held out"}, "canaries must be a whole number"),
        (
            {"calibration": "others"},
            "no image to calibrate by is of a class that was learned: they are of 'x'",
        ),
        ({"calibration": [1]}, r"expected an \(image, label\) pair"),
    ],
)
def test_what_cannot_calibrate_a_bundle(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    images = {"held out": coloured("ab", 3), "others": coloured("x", 3)}
    given: dict[str, Any] = {
        name: images.get(value, value) if isinstance(value, str) else value
        for name, value in arguments.items()
    }
    with pytest.raises(ValueError, match=says):
        make_learner(Frozen(), head=LDA()).fit(coloured("ab")).export(tmp_path / "bundle", **given)
    assert not any(tmp_path.iterdir())


def test_a_head_that_cannot_is_not_exported_as_one(tmp_path: Path) -> None:
    learner = make_learner(Frozen(), head=HeldOutRidge()).fit(coloured("ab"))
    with pytest.raises(ValueError, match="HeldOutRidge cannot remove a class exactly"):
        learner.export(tmp_path / "bundle", removable=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("data", [[], Images([], lambda i: Image.new("RGB", (8, 8))), iter([]), [1, 2]])
def test_what_is_no_data_set_is_refused(data: Any) -> None:
    learner = make_learner(Frozen())
    before = state(learner)
    with pytest.raises(ValueError, match=r"data set is empty|no length|expected an \(image, label\) pair"):
        learner.fit(data)
    assert state(learner) == before


# Settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"lr": -0.1}, "lr must be at least 0"),
        ({"lr": float("nan")}, "lr must be at least 0 and below inf, got nan"),
        ({"optimizer": "lion"}, "optimizer must be 'sgd' or 'adam', got 'lion'"),
        ({"momentum": 1.0}, r"momentum must be at least 0 and below 1\.0, got 1\.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"precision": "fp16"}, "precision must be 'fp32', 'bf16' or 'auto', got 'fp16'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"device": "cpx"}, "device='cpx' cannot be used here"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_learner(Frozen(), **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device='cuda' cannot be used here.*'cpu'"):
        make_learner(Frozen(), device="cuda")


def test_what_is_left_out_is_the_methods_own() -> None:
    assert Learner(vit(), NTKCL()).training == NTKCL.defaults
    assert Learner(vit(), NTKCL(), epochs=3, lr=0.0).training == replace(NTKCL.defaults, epochs=3, lr=0.0)


def test_a_head_of_another_width_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"192 wide; the sections \[10, 10\] make 20"):
        make_learner(NTKCL(), head=Prototypes([10, 10]))
    used = LDA()
    used.update(np.ones((2, 7)), ["a", "b"])
    with pytest.raises(ValueError, match="192 wide; this head has learned from width 7"):
        make_learner(NTKCL(), head=used)
    assert make_learner(NTKCL()).classes == ()


@pytest.mark.parametrize("head", [LDA, Ridge, lambda: Ridge(projection=200), Prototypes])
def test_any_head_goes_with_any_method(head: Any, tmp_path: Path) -> None:
    learner = fit_all(make_learner(NTKCL(), head=head()), [coloured("ab"), coloured("cd")])
    assert learner.evaluate(coloured("abcd", seed=1)) == 1
    learner.save(tmp_path)
    assert state(Learner.load(tmp_path, device="cpu")) == state(learner)


def test_a_heads_class_means_are_the_means_of_the_features() -> None:
    learner, data = make_learner(NTKCL()), coloured("ab")
    learner.fit(data)
    features = learner.features(data).astype(np.float64)
    means = [features[:6].mean(axis=0), features[6:].mean(axis=0)]
    np.testing.assert_allclose(learner.head.prototypes, means, rtol=1e-12, atol=1e-14)


# What belongs to a learner is its own


@pytest.mark.parametrize("what", ["method", "head"])
def test_what_another_learner_has_is_refused(what: str) -> None:
    method, head = NTKCL(), LDA()
    first = make_learner(method, head=head).fit(coloured("ab"))
    before, features = state(first), first.features(coloured("ab"))
    given: dict[str, Any] = {"method": Frozen(), "head": LDA()} | {what: getattr(first, what)}
    with pytest.raises(
        ValueError, match=f"is the {what} of another learner; give each learner one of its own"
    ):
        make_learner(seed=1, **given)
    assert state(first) == before
    np.testing.assert_array_equal(first.features(coloured("ab")), features)


def test_a_refused_learner_takes_nothing_from_its_parts() -> None:
    method = NTKCL()
    with pytest.raises(ValueError, match="192 wide; the sections"):
        make_learner(method, head=Prototypes([10, 10]))
    assert make_learner(method).method is method


def test_after_a_fit_that_fails_the_callers_objects_are_still_the_learners() -> None:
    method, head = NTKCL(), LDA()
    learner = make_learner(method, head=head).fit(coloured("ab"))
    with pytest.raises(KeyboardInterrupt):
        learner.fit(Clock(9).watch(coloured("cd")))
    assert learner.method is method
    assert learner.head is head
    learner.fit(coloured("cd"))
    assert head.classes == tuple("abcd")
    assert digests(method.learned()) == digests(learner.method.learned())


def test_what_a_fit_does_not_change_is_not_copied_for_it() -> None:
    method = Joint()
    learner = make_learner(method).fit(coloured("ab"))
    weights, images = method.twin.vit.patch_embed.proj.weight, method.memory.images
    before = images.clone()
    with pytest.raises(KeyboardInterrupt):
        learner.fit(Clock(9).watch(coloured("cd")))
    assert method.twin.vit.patch_embed.proj.weight is weights
    assert method.memory.images is images
    assert torch.equal(images, before)


def test_a_class_taken_out_of_the_head_by_hand_leaves_no_row_behind() -> None:
    learner = make_learner(Joint(), carry=False).fit(coloured("abc"))
    learner.head.remove("a")
    learner.fit(coloured("d"))
    assert learner.classes == learner.method.classes.names == ("b", "c", "d")
    assert learner.evaluate(coloured("bcd", seed=1)) == 1


def test_one_picture_gives_one_name() -> None:
    learner = make_learner(Frozen()).fit(coloured("ab"))
    (image, label), array = coloured("ab", seed=1)[0], pixels(coloured("ab", seed=1))[0]
    for one in (image, array, array[:, :, :1], array[:, :, 0]):
        assert len(learner.predict(one)) == 1
    assert learner.predict(image) == learner.predict(array) == [label]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            {"method": NTKCL},
            r"method is the class NTKCL, and an instance is needed, NTKCL\(\); give a method",
        ),
        ({"method": LDA()}, r"method is a LDA, which is none; give a method, for example NTKCL\(\)"),
        ({"method": "NTKLC"}, "no method is named 'NTKLC'; take one of APER, NTKCL, "),
        ({"head": LDA}, r"head is the class LDA, and an instance is needed, LDA\(\)"),
        ({"head": NTKCL()}, r"head is a NTKCL, which is none; give one of everlearn_runtime\.heads"),
        ({"head": "LDB"}, "no head is named 'LDB'; take one of prototypes, lda, "),
    ],
)
def test_what_is_no_method_or_head_is_told_of(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Learner(vit(), **parts)


def test_methods_and_heads_go_by_their_names() -> None:
    for name in ("NTKCL", "ntkcl", "ntk-cl"):
        assert isinstance(Learner(vit(), name, device="cpu").method, NTKCL)
    learner = Learner(vit(), "Frozen", head="random-ridge", seed=7, device="cpu")
    assert isinstance(learner.method, Frozen)
    assert learner.head.options == Ridge(projection=2000, seed=7).options


def test_a_head_that_cannot_be_saved_is_told_of_at_once() -> None:
    class NoKind(LDA):
        pass

    with pytest.raises(ValueError, match="NoKind"):
        make_learner(Frozen(), head=NoKind())


def test_a_method_of_other_arguments_is_refused_on_loading(tmp_path: Path) -> None:
    make_learner(NTKCL()).fit(coloured("ab", 2)).save(tmp_path)
    with pytest.raises(
        ValueError, match=r"regularisation=0\.001.*regularisation=9\.0.*pass one with the same"
    ):
        Learner.load(tmp_path, method=NTKCL(regularisation=9.0))


def test_a_class_taken_out_by_hand_in_the_middle_of_a_task_leaves_no_row(tmp_path: Path) -> None:
    learner = make_learner(FineTune(), epochs=3).fit(coloured("abc"), checkpoint=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(Clock(15).watch(coloured("d")), checkpoint=tmp_path)
    learner = Learner.load(tmp_path, device="cpu")
    assert learner.unfinished is not None
    learner.head.remove("a")
    learner.fit(coloured("d"))
    assert learner.classes == learner.method.classes.names == ("b", "c", "d")


@pytest.mark.parametrize("label", ["z", "", 3])
def test_a_class_that_is_not_known_cannot_be_forgotten(label: Any) -> None:
    learner = make_learner(FineTune()).fit(coloured("ab"))
    before = state(learner)
    with pytest.raises(ValueError, match=r"no class|is not a non-empty str"):
        learner.forget(label)
    assert state(learner) == before


# The loop


def test_the_rate_falls_on_a_cosine_and_every_parameter_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, learner = [], make_learner(NTKCL(), epochs=4, lr=0.2)
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *given: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    before = digests(learner.method.learned())
    learner.fit(coloured("ab", 2))
    assert rates == pytest.approx([0.2, 0.2 * (2 + 2**0.5) / 4, 0.1, 0.2 * (2 - 2**0.5) / 4])
    after = digests(learner.method.learned())
    still = [n for n, value in after.items() if value == before[n] and not n.endswith("bias")]
    assert still == []


@pytest.mark.parametrize(
    "method", [NTKCL(view="hybrid"), NTKCL(view="hybrid", ptm=True)], ids=["two sections", "three"]
)
def test_bf16_trains_near_to_fp32(method: Method) -> None:
    data = [coloured("ab"), coloured("cd")]
    learner = fit_all(make_learner(method, precision="bf16"), data)
    full = fit_all(make_learner(NTKCL(**method.config())), data)
    assert learner.evaluate(coloured("abcd", seed=1)) == 1
    features, expected = learner.features(data[0]), full.features(data[0])
    assert features.dtype == np.float32
    assert 0 < np.abs(features - expected).max() < 0.2
    assert {value.dtype for value in learner.method.learned().values()} == {torch.float32}


def test_augmentation_shows_other_pixels_in_every_epoch() -> None:
    seen: list[list[float]] = []

    class Watching(NTKCL):
        def loss(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(sorted(images.sum((1, 2, 3)).tolist()))
            return super().loss(images, targets)

    for augmentation in (Augmentation(), None):
        seen.clear()
        make_learner(Watching(), augmentation=augmentation).fit(coloured("a", 3))
        first, second = seen
        assert (first == second) == (augmentation is None)


def test_dropout_is_drawn_anew_in_every_epoch_and_task() -> None:
    drawn: list[float] = []

    class Watching(NTKCL):
        def loss(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
            drawn.append(torch.rand(()).item())
            return super().loss(images, targets)

    fit_all(make_learner(Watching(), epochs=3), [coloured("a", 3), coloured("b", 3)])
    assert len(set(drawn)) == len(drawn) == 6


def test_a_method_is_told_of_the_old_classes_that_do_not_come_back() -> None:
    told: list[TaskInfo] = []

    class Watching(Frozen):
        def begin_task(self, task: TaskInfo) -> None:
            told.append(task)

    learner = fit_all(make_learner(Watching()), [coloured("ab"), coloured("c")])
    means = learner.head.prototypes
    learner.fit(coloured("db", seed=1))
    first, second, third = told
    assert (first.index, first.classes, first.known, len(first.prototypes)) == (0, ("a", "b"), (), 0)
    assert (second.index, second.classes, second.known) == (1, ("c",), ("a", "b"))
    assert (third.index, third.classes, third.known) == (2, ("b", "d"), ("a", "b", "c"))
    np.testing.assert_allclose(third.prototypes, means[[0, 2]], rtol=1e-6)
    assert first.prototypes.shape == (0, 48)


def test_a_method_sees_a_task_once_before_it_trains_and_once_after(tmp_path: Path) -> None:
    seen: list[str] = []

    class Watching(NTKCL):
        def survey(self, batches: Batches) -> None:
            seen.append(f"survey {torch.cat([targets for _, targets in batches]).tolist()} {torch.rand(1)}")

        def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
            seen.append("step")
            return super().loss(images, targets)

        def end_task(self, batches: Batches) -> None:
            seen.append(f"end {torch.cat([targets for _, targets in batches]).tolist()} {torch.rand(1)}")
            super().end_task(batches)

    data = coloured("ab", 2)
    make_learner(Watching(), epochs=2).fit(data)
    once, (survey, *steps, end) = list(seen), seen
    assert survey.startswith("survey [0, 0, 1, 1]")
    assert end.startswith("end [0, 0, 1, 1]")
    assert steps == ["step"] * 2
    seen.clear()
    with pytest.raises(KeyboardInterrupt):  # four images for the survey, four for the first epoch
        make_learner(Watching(), epochs=2).fit(Clock(9).watch(data), checkpoint=tmp_path)
    Learner.load(tmp_path, method=Watching(), device="cpu").fit(data)
    assert seen == once  # the survey is not made again, and draws are the same


@WORKERS
def test_the_result_does_not_depend_on_the_workers() -> None:
    tasks = [coloured("ab"), coloured("cd")]
    alone = fit_all(make_learner(NTKCL()), tasks)
    helped = fit_all(make_learner(NTKCL(), workers=2), tasks)
    assert state(helped) == state(alone)
    np.testing.assert_array_equal(helped.features(tasks[0]), alone.features(tasks[0]))


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 0.9}, {"optimizer": "adam", "lr": 1e-3}])
def test_every_optimizer_is_resumed(tmp_path: Path, options: dict[str, Any]) -> None:
    data = coloured("ab")
    expected = make_learner(NTKCL(), epochs=3, **options).fit(data)
    learner = make_learner(NTKCL(), epochs=3, **options)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(Clock(30).watch(data), checkpoint=tmp_path)
    resumed = Learner.load(tmp_path, device="cpu")
    assert resumed.unfinished is not None
    assert resumed.unfinished.epochs == 2
    assert state(resumed.fit(data)) == state(expected)


def test_a_task_is_resumed_with_its_own_data_only(tmp_path: Path) -> None:
    data = coloured("ab")
    others = [coloured("cd"), data.subset(range(11, -1, -1)), coloured("ab", 5), coloured("ab", seed=1)]
    with pytest.raises(KeyboardInterrupt):
        make_learner(NTKCL(), epochs=3).fit(Clock(20).watch(data), checkpoint=tmp_path)
    learner = Learner.load(tmp_path, device="cpu")
    before = state(learner)
    for other in others:
        with pytest.raises(ValueError, match="stopped after epoch 1 of a task with other images"):
            learner.fit(other)
    assert state(learner) == before
    learner.fit(data)
    assert learner.unfinished is None
    assert learner.fit(coloured("cd")).tasks == [("a", "b"), ("c", "d")]


def test_a_head_that_fails_halfway_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(NTKCL(), head=LDA()).fit(coloured("ab"))
    before = state(learner)

    def stopped(self: LDA, *given: Any) -> None:
        raise KeyboardInterrupt  # when counts and means have been updated already

    with monkeypatch.context() as patch:
        patch.setattr(LDA, "_learn_shared", stopped)
        with pytest.raises(KeyboardInterrupt):
            learner.fit(coloured("cd"))
    assert state(learner) == before
    assert learner.fit(coloured("cd")).classes == tuple("abcd")


def test_a_last_checkpoint_that_cannot_be_written_costs_no_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    learner = make_learner(Frozen())

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", full)
        with pytest.raises(OSError, match="no space left"):
            learner.fit(coloured("ab"), checkpoint=tmp_path)
    assert learner.tasks == [("a", "b")]
    learner.save(tmp_path)
    assert state(Learner.load(tmp_path, device="cpu")) == state(learner)


# A stream


def stream(names: str = "abcdef", seed: int | None = None) -> ClassIncremental:
    return ClassIncremental(coloured(names, 4), coloured(names, 2, seed=1), classes_per_task=2, seed=seed)


def test_a_run_measures_every_task_after_each(tmp_path: Path) -> None:
    learner = make_learner(Frozen())
    matrix = learner.run(stream(), checkpoint=tmp_path)
    assert matrix.values.shape == (3, 3)
    assert matrix.images == (4, 4, 4)
    assert np.isnan(matrix.values[np.triu_indices(3, 1)]).all()
    for index, task in enumerate(stream()):
        assert matrix.values[2, index] == learner.evaluate(task.test)
    assert matrix.last == learner.evaluate(stream()[-1].test_so_far)
    assert Run.read(tmp_path).accuracy.to_dict() == matrix.to_dict()


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    expected = make_learner(NTKCL()).run(stream())
    data = coloured("abcdef", 4)
    stopped = ClassIncremental(Clock(60).watch(data), coloured("abcdef", 2, seed=1), classes_per_task=2)
    with pytest.raises(KeyboardInterrupt):
        make_learner(NTKCL()).run(stopped, checkpoint=tmp_path)
    learner = Learner.load(tmp_path, device="cpu")
    assert len(learner.tasks) == 2
    matrix = learner.run(stream(), checkpoint=tmp_path)
    assert matrix.to_dict() == expected.to_dict()
    # All is done: nothing is learned again.
    again = Learner.load(tmp_path, device="cpu").run(stream(), checkpoint=tmp_path)
    assert again.to_dict() == expected.to_dict()


def test_a_run_stopped_while_it_was_measuring_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_learner(Frozen()).run(stream())
    # The folder of an earlier run, which is overwritten.
    old = ClassIncremental(coloured("uvwxyz", 4), coloured("uvwxyz", 3, seed=1), classes_per_task=2)
    make_learner(Frozen()).run(old, checkpoint=tmp_path)
    learner = make_learner(Frozen())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "figures", stop)
        with pytest.raises(KeyboardInterrupt):
            learner.run(stream(), checkpoint=tmp_path)
    learner = Learner.load(tmp_path, device="cpu")
    assert len(learner.tasks) == 1
    assert learner.run(stream(), checkpoint=tmp_path).to_dict() == expected.to_dict()


def test_another_stream_is_refused(tmp_path: Path) -> None:
    learner = make_learner(Frozen())
    learner.run(stream(), checkpoint=tmp_path)
    before = state(learner)
    with pytest.raises(ValueError, match="this learner learned a, b there; give the stream it began with"):
        learner.run(stream("cdefgh"), checkpoint=tmp_path)
    assert state(learner) == before


@pytest.mark.parametrize("name", ["learner.safetensors", "run.json"])
def test_what_cannot_be_read_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(ValueError, match="is not written over: move it away"):
        make_learner(Frozen()).run(stream(), checkpoint=tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"junk")]


def test_a_stream_goes_on_after_a_class_was_forgotten(tmp_path: Path) -> None:
    learner = make_learner(Frozen())

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(learner, stream(), folder=tmp_path, after_task=stop)
    learner.forget("a")
    learner.save(tmp_path)
    run = measure(Learner.load(tmp_path, device="cpu"), stream(), folder=tmp_path)
    score = run.scores[OWN]
    assert score.matrix[2][0] == 0.5  # the images of the forgotten class count as wrong
    assert score.within_task[2] == score.seen[2] == 10 / 12
    with pytest.raises(ValueError, match="knows 1 classes"):
        diagnose_run(learner, [coloured("ab")], samples=4)


def test_a_run_with_a_forgotten_class_can_be_diagnosed() -> None:
    learner = fit_all(make_learner(Frozen()), [coloured("ab"), coloured("cd")])
    learner.forget("c")
    assert diagnose_run(learner, [coloured("ab"), coloured("cd")], samples=4).images == (12, 6)


def test_heads_beside_are_copies_that_learn_once_each() -> None:
    head, learner = LDA(), make_learner(Frozen())
    run = measure(learner, stream(), heads={"one": head, "two": head, "own again": learner.head})
    assert head.classes == ()
    assert learner.head.counts.tolist() == [4] * 6
    assert run.scores["one"] == run.scores["two"]


def test_a_run_without_its_record_is_refused(tmp_path: Path) -> None:
    learner = make_learner(Frozen())
    learner.run(stream(), checkpoint=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(
        ValueError, match="finished 3 tasks, but the accuracies after task 1 are not on record"
    ):
        learner.run(stream(), checkpoint=tmp_path)


def test_a_stream_of_other_images_is_refused(tmp_path: Path) -> None:
    learner = make_learner(Frozen())
    learner.run(stream(), checkpoint=tmp_path)
    other = ClassIncremental(coloured("abcdef", 4), coloured("abcdef", 2, seed=2), classes_per_task=2)
    with pytest.raises(ValueError, match="was begun with other images; go on with the same"):
        learner.run(other, checkpoint=tmp_path)


def test_settings_of_a_saved_learner_are_not_changed_on_loading(tmp_path: Path) -> None:
    make_learner(Frozen()).fit(coloured("ab")).save(tmp_path)
    with pytest.raises(ValueError, match="keeps its settings, so lr, head cannot be given; only backbone"):
        Learner.load(tmp_path, lr=0.1, head=LDA())


# What the user sees


def test_progress_is_quiet_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    learner = make_learner(NTKCL()).fit(coloured("ab", 2))
    learner.evaluate(coloured("ab", 1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_names_task_epoch_and_losses(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    make_learner(NTKCL(), progress=True).fit(coloured("ab", 2))
    out, err = capfd.readouterr()
    assert out == ""
    for part in ("task 1, epoch 1/2", "task 1, epoch 2/2", "features"):
        assert part in err
    assert ("\r" in err) == terminal


def test_a_loss_that_is_not_finite_names_its_terms() -> None:
    with pytest.raises(FloatingPointError, match=r"ce_channel .*, dissimilarity .*\); lower lr=1e\+30"):
        make_learner(NTKCL(), lr=1e30).fit(coloured("ab"))


def test_the_record_is_json_and_says_how_it_was_made() -> None:
    learner = make_learner(NTKCL(ptm=True, hidden=4), seed=5, precision="bf16").fit(coloured("ab", 1))
    record = json.loads(json.dumps(learner.record()))
    assert record["method"]["name"] == "NTKCL"
    assert record["method"]["config"]["hidden"] == 4
    assert record["backbone"]["name"] == "vit_tiny_patch16_224"
    assert record["training"]["lr"] == 0.05
    assert (record["seed"], record["precision"], record["tasks"]) == (5, "bf16", [["a", "b"]])
