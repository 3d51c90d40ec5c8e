"""Methods beside each other: the figures are right, nothing is done twice, nothing is lost."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from everlearn import (
    LDA,
    NTKCL,
    Augmentation,
    ClassIncremental,
    Frozen,
    Images,
    Learner,
    Method,
    Ridge,
    methods,
)
from everlearn.evaluation import beside
from everlearn.evaluation.bench import FILE, Bench, bench
from everlearn.evaluation.cache import CachedLearner, FeatureStore
from everlearn.evaluation.run import OWN, Run
from everlearn.evaluation.runner import measure
from everlearn_runtime.heads import Head

from ..conftest import Clock, coloured, fit_all, make_learner, state, vit

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 5, "lr": 0.05, "device": "cpu"}
MAKERS: dict[str, Callable[[], Method]] = {"frozen": Frozen, "NTK-CL": NTKCL}


class Ceiling(Frozen):
    """Learns all tasks at once."""

    at_once = True


def data(names: str = "abcdef") -> tuple[Images, Images]:
    return coloured(names, 4), coloured(names, 2, seed=1)


def run_bench(out: Path, **changes: Any) -> Bench:
    train, test = changes.pop("data", None) or data()
    given: dict[str, Any] = {"classes_per_task": 2, "methods": MAKERS, "seeds": [0, 1], "backbone": vit()}
    return bench(train, test, out, **{**given, **QUICK, **changes})


def figures(found: Bench) -> list[dict[str, Any]]:
    """All but the times."""
    return [{**run.to_dict(), "seconds": 0, "reused": run.reused is not None} for run in found.runs]


# What is measured


def test_figures_are_those_of_the_learner_alone(tmp_path: Path) -> None:
    found = run_bench(tmp_path)
    assert [(run.method, run.seed) for run in found.runs] == [
        ("frozen", 0),
        ("NTK-CL", 0),
        ("frozen", 1),
        ("NTK-CL", 1),
    ]
    for run in found.runs:
        settings = {name: value for name, value in QUICK.items() if name != "device"}
        learner = make_learner(MAKERS[run.method](), seed=run.seed, augmentation=Augmentation(), **settings)
        stream = ClassIncremental(*data(), classes_per_task=2, seed=run.seed)
        matrix, score = learner.run(stream), run.scores[OWN]
        assert score.average == matrix.average
        assert score.last == matrix.last == score.seen[-1]
        assert score.forgetting == matrix.forgetting
        np.testing.assert_array_equal(np.array(score.matrix, dtype=float), matrix.values)
        assert score.images == [4, 4, 4]
        assert score.kind == learner.head.kind
        kept = sum(value.nbytes for value in learner.method.learned().values())
        assert score.bytes == kept + learner.head.nbytes
        assert run.trained == max(lesson.parameters for lesson in learner.history)
        assert (run.trained > 0) == (run.method == "NTK-CL")
        assert run.record == json.loads(json.dumps(learner.record()))
        assert run.classes == list(stream.classes)


def test_an_error_is_told_apart_by_task_and_within_it() -> None:
    # A head that takes every image for the last class that it has learned.
    class Last(LDA):
        kind = "last"

        def scores(self, features: Any) -> Any:
            return np.tile(np.arange(len(self.classes)), (len(features), 1)).astype(float)

    learner = make_learner(Frozen(), head=Last())
    run = measure(learner, ClassIncremental(*data("abcd"), classes_per_task=2))
    score = run.scores[OWN]
    assert score.seen == [0.5, 0.25]
    assert score.task_id == [1, 0.5]
    assert score.within_task == [0.5, 0.5]
    assert score.matrix == [[0.5, None], [0.0, 0.5]]
    assert score.forgetting == 0.5
    assert score.confusion == [[0, 3, 2], [1, 3, 2], [2, 3, 2], [3, 3, 2]]


def test_further_heads_learn_from_the_same_training(tmp_path: Path) -> None:
    found = run_bench(tmp_path, methods={"NTK-CL": NTKCL}, seeds=[0], heads=["ridge", "whitened-cosine"])
    (run,) = found.runs
    assert list(run.scores) == [OWN, "ridge", "whitened-cosine"]
    assert run.scores["whitened-cosine"] == run.scores[OWN]  # its own is one
    learner = make_learner(NTKCL(), head=Ridge())
    matrix = learner.run(ClassIncremental(*data(), classes_per_task=2, seed=0))
    assert run.scores["ridge"].average == matrix.average
    assert run.scores["ridge"].kind == "ridge"


def test_what_a_device_would_make_of_it_is_measured_after_every_task(tmp_path: Path) -> None:
    found = run_bench(tmp_path, seeds=[0], methods={"frozen": Frozen}, exported=["fp32", "int8"])
    (run,) = found.runs
    assert list(run.scores) == [OWN, "exported fp32", "exported int8"]
    own, exact = run.scores[OWN], run.scores["exported fp32"]
    assert exact.matrix == own.matrix  # the gate lets no class change
    assert exact.bytes > own.bytes  # the graph is in it
    lower = run.scores["exported int8"]
    assert lower.kind == own.kind
    assert [len(row.accuracies) for row in lower.rows] == [1, 2, 3]
    assert lower.bytes < exact.bytes
    assert "exported int8" in found.table()
    assert figures(run_bench(tmp_path, seeds=[0], methods={"frozen": Frozen}, exported=["fp32", "int8"])) == (
        figures(found)
    )
    with pytest.raises(ValueError, match="was begun with"):
        run_bench(tmp_path, seeds=[0], methods={"frozen": Frozen}, exported=["int8"])
    with pytest.raises(ValueError, match="precision is 'int4'; give one of 'fp32', 'fp16', 'int8'"):
        run_bench(tmp_path / "other", exported=["int4"])


def test_a_ceiling_has_figures_for_the_end_only(tmp_path: Path) -> None:
    found = run_bench(tmp_path, methods={"joint": Ceiling}, seeds=[0])
    (run,) = found.runs
    assert [len(classes) for classes in run.record["tasks"]] == [6]
    score = run.scores[OWN]
    assert (score.average, score.forgetting) == (None, None)
    assert score.seen == [None, None, score.last]
    assert score.matrix[:2] == [[None] * 3] * 2
    learner = make_learner(Frozen()).fit(data()[0])
    assert score.last == learner.evaluate(data()[1])
    assert "-" in found.table().splitlines()[1].split()


def test_a_run_of_one_task_has_no_forgetting(tmp_path: Path) -> None:
    (run,) = run_bench(tmp_path, methods={"f": Frozen}, seeds=[0], classes_per_task=6).runs
    assert run.scores[OWN].forgetting is None
    assert run.scores[OWN].average == run.scores[OWN].last


def test_the_table_has_a_row_for_each_method_and_head(tmp_path: Path) -> None:
    lines = run_bench(tmp_path, heads=["lda"]).table().splitlines()
    assert lines[0].split()[:3] == ["method", "head", "A_bar"]
    rows = [tuple(line.split("  ")[0].split()) for line in lines[1:-1]]
    assert rows == [("frozen",), ("frozen",), ("NTK-CL",), ("NTK-CL",)]
    assert all("±" in line and line.endswith("2") for line in lines[1:-1])
    assert lines[-1].startswith("* features computed once")


def test_every_method_of_the_package_can_be_benched(tmp_path: Path) -> None:
    found = run_bench(tmp_path, data=data("abcd"), methods=None, seeds=[0], epochs=1)
    assert [run.method for run in found.runs] == methods.__all__
    for run in found.runs:
        assert (run.scores[OWN].average is None) == getattr(methods, run.method).at_once
        assert run.scores[OWN].bytes > 0
        assert (run.reused is None) == bool(run.trained)


# What is reused


def cached(method: Method, store: FeatureStore, **settings: Any) -> CachedLearner:
    given: dict[str, Any] = {"backbone": vit(), "augmentation": Augmentation(scale=(0.05, 1.0)), **QUICK}
    given |= settings
    learner = CachedLearner(given.pop("backbone"), method, **given)
    learner.store = store
    return learner


def test_frozen_features_are_computed_once_and_told_of(tmp_path: Path) -> None:
    clock, said = Clock(), list[str]()
    train, test = clock.watch(coloured("abcdef", 4)), clock.watch(coloured("abcdef", 2, seed=1))
    makers = {"one": Frozen, "two": Frozen}
    images = len(train) + len(test)
    found = run_bench(tmp_path, data=(train, test), methods=makers, say=said.append)
    assert clock.reads == 2 * images  # once to know the data again, once for their features
    assert all(run.reused is not None for run in found.runs)
    assert sum("features of 36 images computed" in line for line in said) == 1
    assert sum("features reused" in line for line in said) == 3

    said.clear()
    more = run_bench(tmp_path, data=(train, test), methods={"three": Frozen}, say=said.append)
    assert clock.reads == 3 * images
    assert sum("features reused, from" in line for line in said) == 1
    assert {run.method for run in more.runs} == {"one", "two", "three"}
    assert figures(more)[0]["scores"] == figures(found)[0]["scores"]


def test_features_of_a_store_are_those_of_the_method_to_the_bit(tmp_path: Path) -> None:
    train, test = data()
    store = FeatureStore(tmp_path, train, test)
    for method in (Frozen(), Frozen(patches=True), NTKCL()):
        plain, kept = make_learner(method), cached(type(method)(**method.config()), store)
        for images in (train.of_classes("db"), test.subset([3, 1]), test, coloured("x")):
            np.testing.assert_array_equal(kept.features(images), plain.features(images))
        assert (store.stored(kept.method) is not None) == isinstance(method, Frozen)
        assert state(fit_all(kept, [train, train])) == state(fit_all(plain, [train, train]))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_features_of_another_backbone_or_other_data_are_not_taken(tmp_path: Path) -> None:
    train, test = data()
    cached(Frozen(), FeatureStore(tmp_path, train, test)).features(train)
    other = cached(Frozen(), FeatureStore(tmp_path, train, test), backbone=vit(depth=1))
    np.testing.assert_array_equal(
        other.features(train), make_learner(Frozen(), backbone=vit(depth=1)).features(train)
    )
    new = coloured("abcdef", 4, seed=5)
    third = cached(Frozen(), FeatureStore(tmp_path, new, test))
    np.testing.assert_array_equal(third.features(new), make_learner(Frozen()).features(new))
    assert len(list(tmp_path.iterdir())) == 3


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def of_fewer_images(file: Path) -> None:
    save_file({name: part[1:] for name, part in load_file(file).items()}, file, {"seconds": "[1, 1]"})


@pytest.mark.parametrize("damage", [cut, of_fewer_images])
def test_damaged_features_are_computed_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    train, test = data()
    expected = cached(Frozen(), FeatureStore(tmp_path, train, test)).features(train)
    (file,) = tmp_path.iterdir()
    damage(file)
    said: list[str] = []
    store = FeatureStore(tmp_path, train, test, say=said.append)
    np.testing.assert_array_equal(cached(Frozen(), store).features(train), expected)
    assert "is damaged" in said[0]
    assert "computed in" in said[1]


# Going on


def test_a_stopped_bench_goes_on_to_the_same_figures(tmp_path: Path) -> None:
    clock = Clock()

    def watched() -> tuple[Images, Images]:
        return tuple(map(clock.watch, data()))  # type: ignore[return-value]

    makers = {"NTK-CL": NTKCL, "frozen": Frozen}
    given: dict[str, Any] = {"methods": makers, "seeds": [0], "heads": ["ridge"]}
    expected = run_bench(tmp_path / "whole", data=watched(), **given)
    total = clock.reads
    first = sum(map(len, data()))  # to know the data again
    for stop in (first + 1, first + 13, total // 2, 2 * total // 3, total):
        out = tmp_path / str(stop)
        clock = Clock(stop)
        with pytest.raises(KeyboardInterrupt):
            run_bench(out, data=watched(), **given)
        assert Bench.read(out).settings == expected.settings
        clock, said = Clock(), list[str]()
        found = run_bench(out, data=watched(), say=said.append, **given)
        assert figures(found) == figures(expected), f"stopped at {stop} of {total}"
        assert figures(Bench.read(out)) == figures(expected)
        assert sorted(path.name for path in (out / "runs").iterdir()) == ["NTK-CL-0", "frozen-0"]
        assert {path.name for path in (out / "runs" / "frozen-0").iterdir()} == {"run.json", "log.csv"}
        if stop > total // 3:
            assert any("going on after" in line or "runs reused" in line for line in said)
            assert clock.reads < total


def test_finished_runs_are_not_done_again(tmp_path: Path) -> None:
    first = run_bench(tmp_path, methods={"NTK-CL": NTKCL}, seeds=[0])
    said: list[str] = []
    more = run_bench(tmp_path, say=said.append)
    assert said[0] == f"1 of 4 runs reused, they are in {tmp_path} already"
    told = [line.split("; ", 1)[1] for line in said if "A_bar" in line]
    assert [line.split(";")[0] for line in told] == [f"run {number} of 4" for number in (2, 3, 4)]
    assert [bool(re.search(r", about \d+ s left$", line)) for line in told] == [True, True, False]
    assert [run for run in more.runs if (run.method, run.seed) == ("NTK-CL", 0)] == list(first.runs)
    assert len(more.runs) == 4
    assert Bench.read(tmp_path) == more


def test_a_run_that_is_not_taken_is_not_finished(tmp_path: Path) -> None:
    taken: list[tuple[str, tuple[str, ...]]] = []

    def take(run: Run, learner: Learner) -> None:
        if not taken:
            taken.append(("stopped", ()))
            raise KeyboardInterrupt
        taken.append((run.method, learner.classes))

    given: dict[str, Any] = {"methods": {"NTK-CL": NTKCL}, "seeds": [0], "finished": take}
    with pytest.raises(KeyboardInterrupt):
        run_bench(tmp_path, **given)
    said: list[str] = []
    (run,) = run_bench(tmp_path, say=said.append, **given).runs
    assert said[0] == "NTK-CL, seed 0: going on after 3 tasks"
    assert [name for name, _ in taken] == ["stopped", "NTK-CL"]
    assert set(taken[1][1]) == set(run.classes)


def test_a_checkpoint_that_cannot_be_used_is_told_of(tmp_path: Path) -> None:
    given: dict[str, Any] = {"methods": {"NTK-CL": NTKCL}, "seeds": [0]}
    expected = run_bench(tmp_path / "whole", **given)
    clock = Clock(100)
    with pytest.raises(KeyboardInterrupt):
        run_bench(tmp_path, data=tuple(map(clock.watch, data())), **given)
    (checkpoint,) = (tmp_path / "runs").glob("*/learner.safetensors")
    checkpoint.write_bytes(b"nothing")
    said: list[str] = []
    assert figures(run_bench(tmp_path, say=said.append, **given)) == figures(expected)
    assert "NTK-CL, seed 0: begun anew, for its checkpoint cannot be used" in said[0]
    (aside,) = (tmp_path / "runs").glob(".NTK-CL-0-unreadable-*")
    assert str(aside) in said[0]
    assert (aside / "learner.safetensors").read_bytes() == b"nothing"


def test_a_checkpoint_of_a_newer_version_stops_the_bench(tmp_path: Path) -> None:
    given: dict[str, Any] = {"methods": {"NTK-CL": NTKCL}, "seeds": [0]}
    with pytest.raises(KeyboardInterrupt):
        run_bench(tmp_path, data=tuple(map(Clock(100).watch, data())), **given)
    (checkpoint,) = (tmp_path / "runs").glob("*/learner.safetensors")
    with safe_open(checkpoint, "np") as stored:
        about = json.loads(stored.metadata()["everlearn"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    save_file(tensors, checkpoint, {"everlearn": json.dumps(about | {"format": 99, "everlearn": "9.9"})})
    kept = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"has format 99, by everlearn 9\.9"):
        run_bench(tmp_path, **given)
    assert checkpoint.read_bytes() == kept


def test_numpys_numbers_are_numbers(tmp_path: Path) -> None:
    given: dict[str, Any] = {"methods": {"frozen": Frozen}, "seeds": np.arange(1), "batch_size": np.int64(5)}
    given |= {"classes_per_task": np.int64(2), "first": np.int64(2), "lr": np.float32(0.5)}
    assert len(run_bench(tmp_path, **given).runs) == len(run_bench(tmp_path, **given).runs) == 1


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"classes_per_task": 3}, "was begun with classes_per_task 2, not 3"),
        ({"epochs": 3}, "was begun with training"),
        ({"heads": ["lda"]}, r"was begun with heads \[\], not \['lda'\]"),
        ({"backbone": vit(depth=1)}, "was begun with backbone"),
        ({"precision": "bf16"}, "was begun with precision fp32, not bf16"),
        ({"augmentation": None}, "was begun with augmentation"),
        (
            {"data": (coloured("abcdef", 4, seed=7), coloured("abcdef", 2, seed=1))},
            "was begun with other data",
        ),
        ({"methods": {"frozen": lambda: Frozen(patches=True)}}, "frozen-0 was made with method"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, other: Mapping[str, Any], says: str) -> None:
    before = run_bench(tmp_path, methods={"frozen": Frozen})
    with pytest.raises(ValueError, match=rf"{says}.*another --out"):
        run_bench(tmp_path, **{"methods": {"frozen": Frozen}, **other})
    assert Bench.read(tmp_path) == before


@pytest.mark.parametrize("spoil", ["", "[]", "{}", '{"settings": {}}', "\ud800"])
def test_a_damaged_file_is_named(tmp_path: Path, spoil: str) -> None:
    run_bench(tmp_path, methods={"frozen": Frozen}, seeds=[0])
    for file in (tmp_path / "runs" / "frozen-0" / "run.json", tmp_path / FILE):
        whole = file.read_bytes()
        file.write_bytes(spoil.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError, match=file.name):
            run_bench(tmp_path, methods={"frozen": Frozen}, seeds=[0])
        file.unlink()
        if file.name == FILE:
            with pytest.raises(ValueError, match=f"no benchmark is at .*; expected the file {FILE}"):
                Bench.read(tmp_path)
            assert run_bench(tmp_path, methods={"frozen": Frozen}, seeds=[0]).runs[0].seed == 0
        file.write_bytes(whole)


def test_a_method_that_diverges_leaves_the_others_their_results(tmp_path: Path) -> None:
    class Wild(NTKCL):
        def loss(self, images: Any, targets: Any) -> Any:
            return {"wild": sum(super().loss(images, targets).values()) * float("nan")}

    said: list[str] = []
    with pytest.raises(ValueError, match=r"1 of 2 runs were given up \(wild, seed 0\)"):
        run_bench(tmp_path, methods={"wild": Wild, "frozen": Frozen}, seeds=[0], say=said.append)
    assert any(line.startswith("wild, seed 0: given up") for line in said)
    assert re.search(r"; run 2 of 2; \d+ s$", said[-1])
    assert [run.method for run in Bench.read(tmp_path).runs] == ["frozen"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"methods": ["Frozn"]}, "no method is named 'Frozn'; take some of .*Frozen"),
        ({"methods": {}}, "give at least one"),
        ({"methods": {"a/b": Frozen}}, "by a name that a file can have"),
        ({"heads": ["knn"]}, "no head is named 'knn'; take some of prototypes, lda"),
        ({"seeds": []}, r"seeds are \[\]; give at least one"),
        ({"seeds": [1, 1]}, r"seeds are \[1, 1\]; give at least one, and each once"),
        ({"seeds": 3}, "seeds is 3; give a list"),
        ({"seeds": [0.5]}, "a seed must be a whole number"),
        ({"epochs": 0}, "epochs must be"),
        ({"nonsense": 1}, "there is no setting 'nonsense'; training has epochs, batch_size"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run_bench(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_run_is_plain_data_and_back(tmp_path: Path) -> None:
    (run,) = run_bench(tmp_path, methods={"frozen": Frozen}, seeds=[0]).runs
    assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    with pytest.raises(ValueError, match="not the figures of a run"):
        Run.from_dict({})


# Going on in the middle of a task


@pytest.mark.parametrize("share", [0.01, 0.4, 0.6, 0.8, 1.0])
def test_heads_beside_the_own_one_go_on_with_the_learner(tmp_path: Path, share: float) -> None:
    """Whatever is written last when the run stops, the other heads go on from there, to the bit."""
    train, test = coloured("abcd", 4), coloured("abcd", 2, seed=1)
    clock = Clock()
    stream = ClassIncremental(clock.watch(train), test, classes_per_task=2)

    def heads() -> dict[str, Head]:
        return {"ridge": Ridge(), "random": Ridge(projection=50, seed=3)}

    def tidy(run: Run) -> dict[str, Any]:
        return {**run.to_dict(), "seconds": 0}

    expected = measure(make_learner(NTKCL()), stream, heads=heads(), folder=tmp_path / "whole")
    stop = max(round(share * clock.reads), 1)
    watched = ClassIncremental(Clock(stop).watch(train), test, classes_per_task=2)
    with pytest.raises(KeyboardInterrupt):
        measure(make_learner(NTKCL()), watched, heads=heads(), folder=tmp_path / "run")
    learner = Learner.load(tmp_path / "run", device="cpu")
    assert tidy(measure(learner, stream, heads=heads(), folder=tmp_path / "run")) == tidy(expected)
    found, whole = (beside.Beside.load(tmp_path / name) for name in ("run", "whole"))
    features = learner.features(train)
    for name, head in whole.heads.items():
        np.testing.assert_array_equal(found.heads[name].scores(features), head.scores(features))


def test_seconds_and_trained_parameters_go_on_where_they_were(tmp_path: Path) -> None:
    learner = make_learner(NTKCL()).fit(coloured("ab"), checkpoint=tmp_path)
    loaded = Learner.load(tmp_path, device="cpu")
    assert loaded.history == learner.history
    assert loaded.history[0].seconds > 0
    assert loaded.history[0].parameters > 0
    with pytest.raises(KeyboardInterrupt):
        loaded.fit(Clock(3).watch(coloured("cd")))
    assert loaded.history == learner.history
    first, second = loaded.fit(coloured("cd")).history
    assert (first, second.classes, second.images) == (learner.history[0], ("c", "d"), 12)


def test_the_digest_of_data_is_theirs(tmp_path: Path) -> None:
    images = coloured("ab", 2)
    assert images.digest() == coloured("ab", 2).digest()
    assert len({images.digest(), images.subset([1, 0, 2, 3]).digest(), coloured("ac", 2).digest()}) == 3
    black = [Image.new("RGB", size) for size in ((2, 3), (3, 2))]
    assert Images("a", black[:1].__getitem__).digest() != Images("a", black[1:].__getitem__).digest()
