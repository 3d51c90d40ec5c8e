"""`EdgeLearner.adapt`: adapters go on learning on the device, and all that knows of them follows."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from everlearn import NTKCL, Learner
from everlearn.trainable import trainable
from everlearn_export import places
from everlearn_export.onnx import with_preprocessing
from everlearn_export.parity import ParityError
from everlearn_runtime import (
    Adapted,
    Backend,
    Bundle,
    EdgeLearner,
    Linear,
    OnnxRuntime,
    StateError,
    TrainStep,
    from_state,
)
from everlearn_runtime.adapt import train
from everlearn_runtime.cli import main
from everlearn_runtime.state import Memory

from ..conftest import coloured, fit_all, make_learner, pixels, vit
from ..runtime.state.harness import TORTURE, Bomb

STEPS = 4


@pytest.fixture(scope="module")
def learner() -> Learner:
    made = make_learner(NTKCL(), backbone=vit(depth=3))
    return fit_all(made, [coloured("ab"), coloured("cd")])


@pytest.fixture(scope="module")
def write(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A bundle with a training step, written once."""
    folder = tmp_path_factory.mktemp("adapt")

    def export(blocks: str | None = "last2", **options: Any) -> Path:
        path = folder / "-".join(map(str, [blocks, *options.values()]))
        if not path.exists():
            learner.export(path, train_step=blocks, images=coloured("abcd", 10, seed=4), **options)
        return path

    return export


@pytest.fixture(scope="module")
def bundle(write: Callable[..., Path]) -> Path:
    return write()


IMAGES = pixels(coloured("ef", 12, seed=5))
LABELS = ["e"] * 12 + ["f"] * 12
ASKED = pixels(coloured("abcdef", 4, seed=6))


def opened(path: Path, state: Path | None = None, **options: Any) -> EdgeLearner:
    return EdgeLearner.open(path, state=state, threads=1, **options)


@pytest.fixture
def edge(bundle: Path, tmp_path: Path) -> Iterator[EdgeLearner]:
    """One that has learned two classes of its own."""
    with opened(bundle, tmp_path / "device.db") as made:
        made.learn(IMAGES, LABELS)
        yield made


def known(edge: EdgeLearner) -> tuple[Any, ...]:
    """All that it knows and answers, to the bit."""
    state = edge._head.state()
    arrays = {name: array.tobytes() for name, array in state.arrays.items()}
    return edge.version, state.classes, arrays, edge.predict(ASKED).scores.tobytes()


def same_again(found: tuple[Any, ...], wanted: Sequence[Any]) -> None:
    """The same to the bit; answers to the rounding of sums that were put together in another order."""
    assert found[1:3] == tuple(wanted[:2])
    scores, expected = np.frombuffer(found[3]), np.frombuffer(wanted[2])
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)


# What it computes


@pytest.mark.parametrize("blocks", ["last2", "all"])
def test_the_graph_has_the_mean_of_the_adapters(
    learner: Learner, write: Callable[..., Path], blocks: str
) -> None:
    path = write(blocks)
    shipped = Bundle.open(path)
    with opened(path) as edge:
        edge.learn(IMAGES, LABELS)
        head = from_state(edge._head.state())
        classifier = head.prototypes
        before = edge._deployed.backend.run(IMAGES)
        done = edge.adapt(IMAGES, LABELS, steps=STEPS, rate=1e-2)
        after, found = edge._deployed.backend.run(ASKED), edge._head.state()
        moved = edge._deployed.backend.run(IMAGES)
    backend = OnnxRuntime(shipped.features, threads=1)
    inputs = backend.tokens(IMAGES) if blocks == "last2" else IMAGES
    step = TrainStep(path / "train_step.onnx", shipped.adapters(), classifier, threads=1)
    random, order, losses = np.random.default_rng(0), np.zeros(0, np.int64), []
    for _ in range(STEPS):
        if len(order) < 16:
            order = np.concatenate([order, random.permutation(24)])
        rows = np.array([head.classes.index(LABELS[index]) for index in order[:16]])
        losses.append(step.step(inputs[order[:16]], rows, 1e-2))
        order = order[16:]
    assert (done.first, done.last) == (losses[0], losses[-1])
    assert done.weight == 1 / 3  # two tasks, and this one
    made, backbone = trainable(learner.method, blocks, weight_decay=0.0, tasks=2), learner.backbone
    with torch.no_grad():
        for name, value in shipped.adapters().items():
            mean = value + (step.adapters[name] - value) / 3
            made.deployed[name].copy_(torch.from_numpy(mean))
        assert made.whole is not None
        given = with_preprocessing(
            made.whole, backbone.mean.flatten().tolist(), backbone.std.flatten().tolist()
        )
        expected = given(torch.from_numpy(ASKED))
        expected = (expected[0] if blocks == "last2" else expected).numpy()
    np.testing.assert_allclose(after, expected, atol=3e-5)
    assert np.abs(after - backend.run(ASKED)).max() > 1e-3
    head.carry(before, moved)
    for name, array in head.state().arrays.items():
        np.testing.assert_allclose(found.arrays[name], array, rtol=1e-9, atol=1e-12)


def test_it_learns(edge: EdgeLearner) -> None:
    done = edge.adapt(IMAGES, LABELS, steps=40, rate=3e-3)
    assert done.last < 0.9 * done.first
    assert 0.95 <= done.explained <= 1
    assert done.moved > 0
    assert (done.kind, done.steps, done.images) == ("adapt", 40, 24)
    assert done.counts == {"e": 12, "f": 12}
    assert repr(done).startswith(f"Adapted(number={done.number}, images=24, steps=40, loss=")


def test_the_same_call_gives_the_same_bits(bundle: Path) -> None:
    answers = []
    for seed in (0, 0, 1):
        with opened(bundle) as edge:
            edge.learn(IMAGES, LABELS)
            edge.adapt(IMAGES, LABELS, steps=STEPS, seed=seed)
            answers.append(known(edge))
    assert answers[0] == answers[1] != answers[2]


def test_each_training_counts_as_a_task(edge: EdgeLearner) -> None:
    weights = [edge.adapt(IMAGES, LABELS, steps=1).weight for _ in range(3)]
    assert weights == [1 / 3, 1 / 4, 1 / 5]
    edge.undo()
    assert edge.adapt(IMAGES, LABELS, steps=1).weight == 1 / 5


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_graph_of_lower_precision_takes_them_too(write: Callable[..., Path], precision: str) -> None:
    path = write("last2", precision=precision, tolerance=1.0)
    with opened(path) as edge:
        edge.learn(IMAGES, LABELS)
        before = edge._deployed.backend.run(ASKED)
        done = edge.adapt(IMAGES, LABELS, steps=20, rate=1e-2)
        after = edge._deployed.backend.run(ASKED)
        assert done.last < done.first
        assert np.abs(after - before).max() > 1e-2
        assert edge.predict(ASKED).scores.shape == (24, 6)


def test_adapters_that_16_bits_hardly_hold_are_found_again(learner: Learner, tmp_path: Path) -> None:
    other = copy.deepcopy(learner)
    biases = [value for name, value in other.method.named_parameters() if name.endswith("down.bias")]
    assert biases
    for bias in biases:  # the converter rounds these up
        bias.data[:4] = torch.tensor([1e-9, -1e-9, 3e-8, -1e-12])
    other.export(tmp_path / "bundle", precision="fp16", train_step="last2", tolerance=1.0)
    with opened(tmp_path / "bundle") as edge:
        edge.learn(IMAGES, LABELS)
        assert edge.adapt(IMAGES, LABELS, steps=STEPS).number == 2


# A version like any other


def test_it_can_be_taken_back_and_is_there_again(bundle: Path, edge: EdgeLearner, tmp_path: Path) -> None:
    seen = [known(edge)]
    edge.adapt(IMAGES, LABELS, steps=STEPS)
    seen.append(known(edge))
    edge.learn(ASKED[:2], ["g", "g"])
    seen.append(known(edge))
    assert [version.kind for version in edge.history()] == ["start", "learn", "adapt", "learn"]
    for version, *rest in (*reversed(seen), *seen):
        edge.rollback(version)
        same_again(known(edge), rest)
    edge.rollback(2)
    edge.backup(tmp_path / "copy.db")
    edge.close()
    for name in ("device.db", "copy.db"):
        with opened(bundle, tmp_path / name) as again:
            same_again(known(again), seen[1][1:])
            again.undo()


def test_undo_brings_the_shipped_adapters_back(edge: EdgeLearner) -> None:
    before = known(edge)
    edge.adapt(IMAGES, LABELS, steps=STEPS)
    assert known(edge)[3] != before[3]
    assert edge.undo().to == before[0]
    assert known(edge)[1:] == before[1:]


def test_readers_follow(bundle: Path, edge: EdgeLearner, tmp_path: Path) -> None:
    with opened(bundle, tmp_path / "device.db", read_only=True) as reader:
        assert known(reader) == known(edge)
        edge.adapt(IMAGES, LABELS, steps=STEPS)
        assert known(reader) == known(edge)
        edge.learn(ASKED[:2], ["g", "g"])
        edge.undo()
        assert known(reader) == known(edge)
        edge.rollback(1)
        assert known(reader) == known(edge)
        with pytest.raises(StateError, match="opened with read_only=True"):
            reader.adapt(IMAGES, LABELS)


def test_forgotten_for_good(edge: EdgeLearner, tmp_path: Path) -> None:
    edge.adapt(IMAGES, LABELS, steps=STEPS)
    before = edge._deployed.backend.run(ASKED)
    edge.forget("e", purge=True)
    assert edge.history()[0].kind == "purge"
    assert "e" not in edge.classes
    np.testing.assert_array_equal(edge._deployed.backend.run(ASKED), before)  # these stay


def test_what_is_learned_meanwhile_is_kept(edge: EdgeLearner) -> None:
    started, problems = threading.Event(), []

    def others() -> None:
        started.wait()
        try:
            for number in range(8):
                edge.predict(ASKED)
                edge.learn(ASKED[number : number + 1], ["g"])
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=others)
    thread.start()
    started.set()
    edge.adapt(IMAGES, LABELS, steps=30)
    thread.join()
    assert problems == []
    assert edge.counts["g"] == 8
    assert edge.predict(ASKED).labels == edge.predict(ASKED).labels


def test_adapters_that_changed_meanwhile_win(edge: EdgeLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any) -> Any:
        trained = train(*arguments)
        monkeypatch.setattr("everlearn_runtime.edge.train", train)
        edge.adapt(IMAGES, LABELS, steps=1)
        return trained

    monkeypatch.setattr("everlearn_runtime.edge.train", slow)
    with pytest.raises(StateError, match="changed by another call meanwhile; adapt again"):
        edge.adapt(IMAGES, LABELS, steps=1)
    assert edge.version == 2
    known(edge)


def test_from_the_command_line(
    bundle: Path, edge: EdgeLearner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edge.close()
    common = [str(bundle), "--state", str(tmp_path / "device.db"), "--threads", "1"]
    folder = tmp_path / "images"
    assert main(["adapt", *common, str(folder)]) == 2
    assert "no such folder" in capsys.readouterr().err
    for name in "ef":
        (folder / name).mkdir(parents=True)
        (folder / name / "notes.txt").write_text("no image")
    assert main(["adapt", *common, str(folder)]) == 2
    assert "no images" in capsys.readouterr().err
    np.save(folder / "e" / "0.npy", IMAGES[:12])
    np.save(folder / "f" / "0.npy", IMAGES[12:])
    assert main(["adapt", *common, str(folder), "--steps", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["version"], said["images"], said["steps"]) == (2, 24, 2)
    assert main(["history", *common]) == 0
    assert "adapt 12 of 'e', 12 of 'f'" in capsys.readouterr().out
    with opened(bundle) as other:
        other.learn(IMAGES, LABELS)
        assert other.adapt(IMAGES, LABELS, steps=2).last == said["loss"][1]


# What is refused, and changes nothing


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, r"steps is 0; give a whole number, at least 1"),
        ({"steps": True}, r"steps is True"),
        ({"rate": 0.0}, r"rate is 0.0; give a finite number above 0"),
        ({"rate": float("nan")}, r"rate is nan"),
        ({"seed": -1}, r"seed is -1"),
        ({"labels": LABELS[1:]}, r"23 labels for 24 images"),
        ({"labels": ["z", *LABELS[1:]]}, r"a prototype of each class, and there is none of 'z'; learn some"),
        ({"labels": [1] * 24}, r"label 1 is not a non-empty str"),
        ({"images": IMAGES[:3], "labels": LABELS[:3]}, r"at least 4 images, got 3"),
        ({"images": np.zeros((2, 3)), "labels": LABELS[:2]}, r"the images are float64"),
        ({"rate": 1e30, "steps": 20}, r"not finite"),
        ({"rate": 3.0, "steps": 20}, r"no map explains well enough for the head to follow \(-?\d+% of their"),
    ],
)
def test_what_does_not_fit_is_refused(edge: EdgeLearner, changes: dict[str, Any], says: str) -> None:
    before = known(edge)
    with pytest.raises(ValueError, match=says):
        edge.adapt(**{"images": IMAGES, "labels": LABELS, "steps": 2, **changes})
    assert known(edge) == before


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (None, r"has no training step to adapt with; export it with train_step='last2'"),
        ("head", r"trains a classifier only, no adapters; export it with train_step='last2' or 'all'"),
    ],
)
def test_bundles_that_cannot(write: Callable[..., Path], blocks: str | None, says: str) -> None:
    with opened(write(blocks)) as edge:
        with pytest.raises(ValueError, match=says):
            edge.adapt(IMAGES, ["a"] * 24)
        assert edge.version == 0


def test_a_graph_without_places_cannot(bundle: Path, tmp_path: Path) -> None:
    path = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["train_step"]["places"] = {}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with opened(path) as edge, pytest.raises(ValueError, match=r"adapters of this bundle's graph cannot be"):
        edge.adapt(IMAGES, ["a"] * 24)


class Engine:
    """A backend whose weights are fixed, as an engine's are."""

    name = "engine 1.0"

    def __init__(self, backend: Backend) -> None:
        self.run = backend.run
        self.close = backend.close


def test_an_engine_cannot(
    bundle: Path, edge: EdgeLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.adapt(IMAGES, LABELS, steps=1)
    edge.close()
    before = (tmp_path / "device.db").read_bytes()
    monkeypatch.setattr(
        "everlearn_runtime.edge.open_backend", lambda opened, *_: Engine(OnnxRuntime(opened.features))
    )
    with opened(bundle) as other, pytest.raises(ValueError, match=r"engine 1.0 runs an engine whose weights"):
        other.adapt(IMAGES, ["a"] * 24)
    with pytest.raises(StateError, match=r"state has adapters that this learner cannot run: engine 1.0"):
        opened(bundle, tmp_path / "device.db")
    assert (tmp_path / "device.db").read_bytes() == before


def test_a_head_that_cannot_follow(bundle: Path) -> None:
    shipped = Bundle.open(bundle)
    backend = OnnxRuntime(shipped.features, threads=1)
    head = Linear()
    head.update(backend.run(IMAGES), LABELS)
    edge = EdgeLearner(shipped, backend, Memory(lambda: head))
    with pytest.raises(ValueError, match=r"Linear\(.*\) was trained step by step and keeps no sums"):
        edge.adapt(IMAGES, LABELS)
    edge.close()


def test_no_guard_after_it(write: Callable[..., Path]) -> None:
    path = write("last2", calibration=coloured("abcd", 10, seed=8), canaries=3)
    with opened(path) as edge:
        edge.learn(IMAGES, LABELS, guard=0.5)
        edge.adapt(IMAGES, LABELS, steps=1)
        before = known(edge)
        with pytest.raises(ValueError, match=r"guard after adapt: the bundle's canaries are features under"):
            edge.learn(IMAGES, LABELS, guard=0.5)
        assert known(edge) == before


def test_a_state_with_adapters_is_not_migrated(learner: Learner, bundle: Path, tmp_path: Path) -> None:
    """The map to the next bundle is from features under the shipped adapters."""
    new, path = tmp_path / "new", tmp_path / "device.db"
    with opened(bundle, path) as edge:
        edge.learn(IMAGES, LABELS)
        edge.adapt(IMAGES, LABELS, steps=1)
        before = known(edge)
    learner.export(new, replaces=bundle, images=coloured("abcd", 20, seed=7))
    with pytest.raises(StateError, match=r"has adapters of its own.*roll back to before adapt with the old"):
        opened(new, path, migrate=True)
    assert not list(tmp_path.glob("*.before-*"))
    with opened(bundle, path) as edge:
        assert known(edge) == before
        edge.undo()
    with opened(new, path, migrate=True) as edge:
        assert edge.migrated is not None
        assert set(edge.classes) == {*"abcdef"}


def test_sums_under_other_adapters_are_no_delta(edge: EdgeLearner) -> None:
    """They do not add up with the bundle's."""
    edge.adapt(IMAGES, LABELS, steps=1)
    edge.learn(IMAGES, LABELS)
    for since in (None, 1, 2):
        with pytest.raises(ValueError, match=r"adapters were trained on this device.*roll back to before"):
            edge.delta(since)
    edge.forget("f", purge=True)  # and with it the history that would tell
    with pytest.raises(ValueError, match=r"adapters were trained on this device"):
        edge.delta()


def test_an_adapter_that_is_not_in_the_graph_is_told() -> None:
    adapter = torch.nn.Parameter(torch.zeros(3, 4))
    graph = helper.make_model(helper.make_graph([], "empty", [], []))
    with pytest.raises(ParityError, match=r"the adapter blocks.0.up is not among the weights"):
        places.with_places(lambda: bytes(graph.SerializeToString()), {"blocks.0.up": adapter})
    assert not adapter.detach().numpy().any()


# Whatever is raised


# An interrupt in a destructor goes nowhere, as CPython says.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line(bundle: Path, edge: EdgeLearner, tmp_path: Path) -> None:
    edge.close()
    ready, path = tmp_path / "ready.db", tmp_path / "device.db"
    shutil.copy(path, ready)
    with opened(bundle, path) as own:
        before = known(own)
        with Bomb(-1) as bomb:
            own.adapt(IMAGES, LABELS, steps=1)
        after = known(own)
    assert bomb.count > 300
    for at in range(7, bomb.count, max(3, bomb.count // 400) if TORTURE else bomb.count // 25):
        shutil.copy(ready, path)
        with opened(bundle, path) as own:
            with Bomb(at) as bomb, pytest.raises(BaseException):  # noqa: B017, PT011 - whatever came of it
                own.adapt(IMAGES, LABELS, steps=1)
            found = known(own)
            assert found in (before, after), (at, bomb.place)
        with opened(bundle, path) as again:
            assert known(again) == found, (at, bomb.place)


def test_it_works_without_a_state(bundle: Path) -> None:
    with opened(bundle) as edge:
        edge.learn(IMAGES, LABELS)
        before = known(edge)
        done = edge.adapt(IMAGES, LABELS, steps=STEPS)
        assert isinstance(done, Adapted)
        assert (done.number, edge.version) == (2, 2)
        assert known(edge)[3] != before[3]
        with pytest.raises(ValueError, match="without a state file no version is kept"):
            edge.undo()
