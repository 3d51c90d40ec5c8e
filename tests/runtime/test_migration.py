"""A device's state carried over to a new model: exact where the map is, whole or not at all."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from everlearn_runtime import (
    LDA,
    BalancedRidge,
    Bundle,
    BundleError,
    EdgeLearner,
    FeCAM,
    Head,
    OnnxRuntime,
    Prototypes,
    Ridge,
    StateError,
    WhitenedCosine,
    from_state,
    write_bundle,
)
from everlearn_runtime.bundle import dump_arrays, load_arrays
from everlearn_runtime.cli import main
from everlearn_runtime.heads.drift import Drift, _regressed, affine_drift, affine_map
from everlearn_runtime.identity import model_of
from everlearn_runtime.migration import Replaced

from .conftest import SPEC, WIDTH, MakeBundle, MakeImages
from .state.harness import TORTURE, Bomb

MOVABLE: dict[str, Callable[[], Head]] = {
    "prototypes": Prototypes,
    "lda": LDA,
    "lda by number": lambda: LDA("auto", correction=0.7),
    "whitened cosine": WhitenedCosine,
    "ridge": Ridge,
    "ridge balanced": BalancedRidge,
    "ridge with intercept": lambda: BalancedRidge(0.1, balanced=False),
}
NEW_WIDTH = 9

Rows = NDArray[np.float32]


def moved_graph(graph: bytes, width: int = NEW_WIDTH, seed: int = 5) -> bytes:
    """A graph whose features are an affine map of another graph's."""
    random = np.random.default_rng(seed)
    model = onnx.load_from_string(graph)
    model.graph.node[-1].output[0] = "old"
    linear = (random.normal(size=(WIDTH, width)) / 2).astype(np.float32)
    offset = random.normal(size=width).astype(np.float32)
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["old", "linear"], ["turned"]),
            helper.make_node("Add", ["turned", "offset"], ["features"]),
        ]
    )
    model.graph.initializer.extend(
        [numpy_helper.from_array(linear, "linear"), numpy_helper.from_array(offset, "offset")]
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width]))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def run(bundle: Path, images: NDArray[np.uint8]) -> Rows:
    backend = OnnxRuntime(bundle / "features.onnx")
    try:
        return backend.run(images)
    finally:
        backend.close()


class Pair:
    """An old bundle, whose head knows "mug" and "pen", and a new one, which knows "cup" too."""

    def __init__(
        self, folder: Path, graph: bytes, make_images: MakeImages, new_head: Callable[[], Head], width: int
    ) -> None:
        self.images = make_images
        self.new_head = new_head
        self.old, self.new = folder / "old", folder / "new"
        self.graph = moved_graph(graph, width)
        self.width = width
        self.write(self.old, graph, WIDTH, ["mug", "pen"])
        self.write(self.new, self.graph, width, ["mug", "pen", "cup"])
        some = np.concatenate([make_images(name, 20, seed=9) for name in "uvwxyz"])
        before, after = run(self.old, some).astype(np.float64), run(self.new, some).astype(np.float64)
        drift, _ = affine_map(before, after)
        old = Bundle.open(self.old)
        self.replaced = Replaced(
            old.id,
            model_of(old.manifest),
            old.head().state(),
            drift,
            len(some),
            explained=1.0,
            agreement=None,
        )
        self.write(self.new, self.graph, width, ["mug", "pen", "cup"], replaces=self.replaced)

    def write(self, path: Path, graph: bytes, width: int, names: list[str], **more: Any) -> None:
        arguments: dict[str, Any] = {
            "features": graph,
            "input": SPEC,
            "sections": [width],
            "training": {},
            "parity": {},
            "everlearn": "0.1.0",
            "overwrite": True,
            **more,
        }
        head = self.new_head()
        write_bundle(path, head=head, **arguments)
        for name in names:
            head.update(run(path, self.images(name)), [name] * 4)
        write_bundle(path, head=head, **arguments)

    def learn(self, edge: EdgeLearner) -> None:
        """What a device goes through: old and new classes, and some that go and come back."""
        edge.learn(self.images("mug", 3, seed=1), ["mug"] * 3)
        edge.learn(self.images("fork", 5, seed=1), ["fork"] * 5)
        edge.forget("pen")
        edge.learn(self.images("spoon", 4, seed=1), ["spoon"] * 4)
        edge.learn(self.images("pen", 2, seed=1), ["pen"] * 2)

    def same(self, edge: EdgeLearner, expected: EdgeLearner) -> None:
        assert edge.counts == expected.counts
        tests = np.concatenate([self.images(name, 6, seed=2) for name in ("mug", "pen", "cup", "fork", "x")])
        found, right = edge.predict(tests), expected.predict(tests)
        columns = [found.classes.index(name) for name in right.classes]
        scale = np.abs(right.scores).max()
        np.testing.assert_allclose(found.scores[:, columns], right.scores, rtol=0, atol=2e-4 * scale)


@pytest.fixture(params=MOVABLE)
def pair(request: pytest.FixtureRequest, tmp_path: Path, graph: bytes, make_images: MakeImages) -> Pair:
    return Pair(tmp_path, graph, make_images, MOVABLE[request.param], NEW_WIDTH)


@pytest.fixture
def lda(tmp_path: Path, graph: bytes, make_images: MakeImages) -> Pair:
    return Pair(tmp_path, graph, make_images, LDA, WIDTH)


@pytest.fixture
def learned(lda: Pair, tmp_path: Path) -> Path:
    """The state of a device that has learned with the old bundle."""
    path = tmp_path / "device.db"
    with EdgeLearner.open(lda.old, state=path, threads=1) as edge:
        lda.learn(edge)
    return path


def test_what_the_device_learned_is_as_if_learned_with_the_new_model(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    with EdgeLearner.open(pair.old, state=path, threads=1) as edge:
        pair.learn(edge)
        said = edge.version
        before = edge.predict(pair.images("fork", 6, seed=3))
    with (
        EdgeLearner.open(pair.new, state=path, migrate=True, threads=1) as edge,
        EdgeLearner.open(pair.new, threads=1) as expected,
    ):
        pair.learn(expected)
        pair.same(edge, expected)
        assert edge.migrated is not None
        assert edge.migrated.learned == {"mug": 3, "fork": 5, "spoon": 4, "pen": 2}
        assert edge.migrated.images == 120
        assert [(version.number, version.kind) for version in edge.history()] == [(said + 1, "migrate")]
        edge.learn(pair.images("bowl", 3), ["bowl"] * 3)
        expected.learn(pair.images("bowl", 3), ["bowl"] * 3)
        pair.same(edge, expected)
        kept = edge.migrated.kept
    with EdgeLearner.open(pair.new, state=path, migrate=True, threads=1) as edge:
        assert edge.migrated is None
        assert edge.version == said + 2
    with EdgeLearner.open(pair.old, state=kept, threads=1) as edge:
        after = edge.predict(pair.images("fork", 6, seed=3))
        np.testing.assert_array_equal(after.scores, before.scores)
        assert edge.version == said
        edge.undo()


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_purge_reaches_the_state_that_was_kept(lda: Pair, learned: Path, forgotten: bool) -> None:
    def naming() -> list[str]:
        files = sorted(learned.parent.glob("device.db*"))
        return [file.name for file in files if b"fork" in file.read_bytes()]

    with EdgeLearner.open(lda.new, state=learned, migrate=True, threads=1) as edge:
        assert edge.migrated is not None
        kept = edge.migrated.kept
        other = kept.with_name("device.db.before-mine")  # of no migration
        other.write_bytes(b"fork")
        if forgotten:
            edge.forget("fork")
        with pytest.raises(ValueError, match="no class 'glass'"):
            edge.forget("glass", purge=True)
        with EdgeLearner.open(lda.old, state=kept, threads=1):
            before = edge.predict(lda.images("fork")).scores
            with pytest.raises(StateError, match="in use"):
                edge.forget("fork", purge=True)
            np.testing.assert_array_equal(edge.predict(lda.images("fork")).scores, before)
        assert kept.name in naming()
        edge.forget("fork", purge=True)
        assert "fork" not in edge.classes
        assert naming() == [other.name]
        assert not kept.exists()


def test_a_purge_leaves_a_kept_state_without_the_class(lda: Pair, learned: Path) -> None:
    with EdgeLearner.open(lda.new, state=learned, migrate=True, threads=1) as edge:
        assert edge.migrated is not None
        edge.learn(lda.images("bowl"), ["bowl"] * 4)
        edge.forget("bowl", purge=True)
        assert edge.migrated.kept.exists()


def test_classes_that_the_device_forgot_stay_forgotten(lda: Pair, tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    with EdgeLearner.open(lda.old, state=path, threads=1) as edge:
        edge.forget("pen")
    with EdgeLearner.open(lda.new, state=path, migrate=True, threads=1) as edge:
        assert edge.classes == ("mug", "cup")
        assert edge.migrated is not None
        assert (edge.migrated.forgotten, edge.migrated.learned) == (("pen",), {})


def test_a_last_class_that_was_forgotten_and_came_back_is_what_it_is_now(lda: Pair, tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    with EdgeLearner.open(lda.old, state=path, threads=1) as edge:
        edge.forget("pen")
        edge.learn(lda.images("pen", 7, seed=3), ["pen"] * 7)  # more than the bundle's four
    with EdgeLearner.open(lda.new, state=path, migrate=True, threads=1) as edge:
        assert edge.migrated is not None
        assert (edge.migrated.learned, edge.counts["pen"]) == ({"pen": 7}, 7)


def test_a_state_that_has_learned_nothing_becomes_the_new_bundles(lda: Pair, tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    EdgeLearner.open(lda.old, state=path, threads=1).close()
    with (
        EdgeLearner.open(lda.new, state=path, migrate=True, threads=1) as edge,
        EdgeLearner.open(lda.new, threads=1) as expected,
    ):
        lda.same(edge, expected)


def test_without_a_state_there_is_nothing_to_migrate(lda: Pair, tmp_path: Path) -> None:
    with EdgeLearner.open(lda.new, state=tmp_path / "new.db", migrate=True, threads=1) as edge:
        assert (edge.migrated, edge.version) == (None, 0)


def test_without_migrate_the_error_names_it(lda: Pair, learned: Path) -> None:
    before = learned.read_bytes()
    for read_only in (False, True):
        with pytest.raises(StateError, match=r"another bundle.*migrate=True carries over"):
            EdgeLearner.open(lda.new, state=learned, read_only=read_only, threads=1)
    with pytest.raises(ValueError, match="migrate=True without a state"):
        EdgeLearner.open(lda.new, migrate=True, threads=1)
    with pytest.raises(ValueError, match="migrate=True with read_only=True"):
        EdgeLearner.open(lda.new, state=learned, read_only=True, migrate=True, threads=1)
    assert learned.read_bytes() == before
    assert [entry.name for entry in learned.parent.glob("device.db*")] == ["device.db"]


def test_a_bundle_that_replaces_another_one_refuses(
    lda: Pair, learned: Path, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    stranger = make_bundle("stranger", Ridge())
    before = learned.read_bytes()
    with pytest.raises(StateError, match="belongs to another bundle") as caught:
        EdgeLearner.open(stranger, state=learned, migrate=True, threads=1)
    assert "this bundle replaces" not in str(caught.value)
    path = tmp_path / "other.db"
    EdgeLearner.open(stranger, state=path, threads=1).close()
    with pytest.raises(StateError, match="belongs to another bundle"):
        EdgeLearner.open(lda.new, state=path, migrate=True, threads=1)
    assert learned.read_bytes() == before


def test_readers_follow_a_migrated_state(lda: Pair, learned: Path) -> None:
    with EdgeLearner.open(lda.new, state=learned, migrate=True, threads=1) as edge:
        with EdgeLearner.open(lda.new, state=learned, read_only=True, threads=1) as reader:
            lda.same(reader, edge)
            edge.learn(lda.images("bowl"), ["bowl"] * 4)
            lda.same(reader, edge)
        undone = edge.undo()
        assert undone.to == 6
        with pytest.raises(ValueError, match="nothing left to undo"):
            edge.undo()


def test_something_in_the_place_of_the_old_state_is_left_alone(lda: Pair, learned: Path) -> None:
    whole = learned.read_bytes()
    with EdgeLearner.open(lda.new, state=learned, migrate=True, threads=1) as edge:
        assert edge.migrated is not None
        kept = edge.migrated.kept
    learned.write_bytes(whole)  # the same again finds its copy
    with EdgeLearner.open(lda.new, state=learned, migrate=True, threads=1) as edge:
        assert edge.migrated is not None
        assert edge.migrated.kept == kept
    learned.write_bytes(whole)
    with EdgeLearner.open(lda.old, state=kept, threads=1) as edge:
        edge.forget("mug")
    other = kept.read_bytes()
    with pytest.raises(StateError, match="is in the way"):
        EdgeLearner.open(lda.new, state=learned, migrate=True, threads=1)
    assert (learned.read_bytes(), kept.read_bytes()) == (whole, other)


# An interrupt in a destructor goes nowhere, as CPython says.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_leaves_the_old_state_or_the_new_one(
    lda: Pair, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was interrupted, the next open finishes, and nothing is lost on the way."""
    whole = learned.read_bytes()
    opened = Bundle.open(lda.new)
    monkeypatch.setattr(
        Bundle, "open", lambda path, trust=None: opened
    )  # its checks are not what is tried here

    def migrate() -> None:
        EdgeLearner.open(lda.new, state=learned, migrate=True, threads=1).close()

    def reset() -> None:
        for entry in learned.parent.glob("device.db*"):
            entry.unlink()
        learned.write_bytes(whole)

    with Bomb(-1, only=_of_states) as bomb:
        migrate()
    lines, outcomes = bomb.count, set()
    with EdgeLearner.open(lda.new, threads=1) as expected:
        lda.learn(expected)
        for at in range(0, lines, 1 if TORTURE else max(1, lines // 100)):
            reset()
            with suppress(KeyboardInterrupt), Bomb(at, only=_of_states):
                migrate()
            try:
                with EdgeLearner.open(lda.new, state=learned, threads=1) as edge:
                    lda.same(edge, expected)
                outcomes.add("new")
            except StateError as error:
                if "migrate=True" not in str(error):
                    raise
                outcomes.add("old")
            with EdgeLearner.open(lda.new, state=learned, migrate=True, threads=1) as edge:
                lda.same(edge, expected)
            (kept,) = learned.parent.glob("device.db.before-*")
            assert kept.name.endswith(tuple("0123456789abcdef"))
    assert outcomes == {"old", "new"}
    gc.collect()  # what interrupts have left open is noticed here, not in the next test


def _of_states(name: str) -> bool:
    return f"{os.sep}state{os.sep}" in name or name.endswith("migration.py")


KILLED = """
import os, sys
from everlearn_runtime import EdgeLearner
from everlearn_runtime.state import copies
at, replaced = int(sys.argv[3]), os.replace
def kill(source, target):
    global at
    if at == 0: os._exit(9)
    replaced(source, target)
    if at == 1: os._exit(9)
    at -= 2
copies.os.replace = kill
EdgeLearner.open(sys.argv[1], state=sys.argv[2], migrate=True, threads=1)
"""


@pytest.mark.parametrize("at", range(4))
def test_a_process_that_dies_beside_a_rename_leaves_one_of_the_two(lda: Pair, learned: Path, at: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(lda.new), str(learned), str(at)], check=False)
    assert done.returncode == 9
    if at < 3:  # the old one is still there, as it was
        with EdgeLearner.open(lda.old, state=learned, threads=1) as edge:
            assert edge.version == 5
    with (
        EdgeLearner.open(lda.new, state=learned, migrate=at < 3, threads=1) as edge,
        EdgeLearner.open(lda.new, threads=1) as expected,
    ):
        lda.learn(expected)
        lda.same(edge, expected)
    assert len(list(learned.parent.glob("device.db.before-*"))) == 1


PURGED = """
import os, pathlib, sys
from everlearn_runtime import EdgeLearner
at, calls = int(sys.argv[3]), []
def dies(call):
    def around(*given, **named):
        calls.append(call)
        if at == 2 * len(calls) - 2: os._exit(9)
        found = call(*given, **named)
        if at == 2 * len(calls) - 1: os._exit(9)
        return found
    return around
with EdgeLearner.open(sys.argv[1], state=sys.argv[2], threads=1) as edge:
    pathlib.Path.unlink, os.replace = dies(pathlib.Path.unlink), dies(os.replace)
    edge.forget("fork", purge=True)
    os._exit(len(calls))
"""


def test_a_process_that_dies_in_a_purge_can_purge_again(lda: Pair, learned: Path) -> None:
    """It dies before and after each file that it deletes or renames; those that were kept go first."""

    def naming() -> list[str]:
        files = sorted(learned.parent.glob("device.db*"))
        return [file.name for file in files if b"fork" in file.read_bytes()]

    EdgeLearner.open(lda.new, state=learned, migrate=True, threads=1).close()
    whole = {file: file.read_bytes() for file in learned.parent.glob("device.db*")}
    assert len(naming()) == 2
    with EdgeLearner.open(lda.new, state=learned, threads=1) as edge:
        before = edge.predict(lda.images("fork")).scores
    at, code, left = 0, 9, set()
    while code == 9:
        for file in learned.parent.glob("device.db*"):
            file.unlink()
        for file, content in whole.items():
            file.write_bytes(content)
        call = [sys.executable, "-c", PURGED, str(lda.new), str(learned), str(at)]
        code, at = subprocess.run(call, check=False).returncode, at + 1
        left.add(len(naming()))
        with EdgeLearner.open(lda.new, state=learned, threads=1) as edge:
            if "fork" in edge.classes:
                np.testing.assert_array_equal(edge.predict(lda.images("fork")).scores, before)
                edge.forget("fork", purge=True)
            assert naming() == []
            assert "fork" not in edge.classes
    assert at == 2 * code + 1
    assert code >= 3  # a companion, what was kept, the new file
    assert left == {0, 1, 2}


def test_from_the_command_line(lda: Pair, learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(lda.new), "--state", str(learned)]
    assert main(["status", *asked]) == 2
    assert "with `everlearn-device migrate` carries over" in capsys.readouterr().err
    assert main(["migrate", *asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["migrated"]["learned"] == {"mug": 3, "fork": 5, "spoon": 4, "pen": 2}
    assert Path(said["migrated"]["kept"]).is_file()
    assert said["classes"]["mug"] == 7
    assert main(["migrate", *asked]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["migrate", str(lda.old), "--state", said["migrated"]["kept"]]) == 0
    os.replace(said["migrated"]["kept"], learned)
    assert main(["migrate", *asked]) == 0
    assert "carried over 14 samples of 4 classes; the map, from 120 images" in capsys.readouterr().out


# The bundle


def test_the_map_is_read_as_it_was_written(lda: Pair) -> None:
    bundle = Bundle.open(lda.new)
    found = bundle.replaced()
    assert found is not None
    assert bundle.manifest.format == 2
    assert (found.bundle, found.model, found.images) == (lda.replaced.bundle, lda.replaced.model, 120)
    for array, expected in zip(found.drift, lda.replaced.drift, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert found.head().classes == ("mug", "pen")
    assert Bundle.open(lda.old).replaced() is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda says: says.pop("images"), "expected the fields"),
        (lambda says: says.update(images=0), "wrong type"),
        (lambda says: says.update(explained="much"), "wrong type"),
        (lambda says: says.update(head={"kind": "lda"}), "wrong type"),
        (lambda says: says.update(classes=[3, 4]), "wrong type"),
    ],
)
def test_a_wrong_manifest_is_refused(lda: Pair, change: Callable[[Any], Any], says: str) -> None:
    path = lda.new / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["replaces"])
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"replaces in manifest.json is wrong: .*{says}"):
        Bundle.open(lda.new)


@pytest.mark.parametrize("name", ["linear", "offset", "left_over", "old.means"])
def test_a_map_that_does_not_fit_is_refused(lda: Pair, name: str) -> None:
    path = lda.new / "map.safetensors"
    arrays = load_arrays(path.read_bytes())
    for wrong in (arrays[name][:-1], arrays[name] * np.nan, arrays[name].astype(np.float32)):
        path.write_bytes(dump_arrays({**arrays, name: wrong}))
        manifest = json.loads((lda.new / "manifest.json").read_text())
        manifest["files"]["map.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (lda.new / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=r"map\.safetensors: "):
            Bundle.open(lda.new)


# Heads and maps


@pytest.mark.parametrize("name", MOVABLE)
def test_since_and_merge_give_the_head_again(name: str) -> None:
    random = np.random.default_rng(3)
    base = MOVABLE[name]()
    base.update(random.normal(size=(30, 5)), [*"abcde"] * 6)
    head = from_state(base.state())
    head.remove("b")
    head.update(random.normal(size=(9, 5)), [*"afaafffba"])
    kept = head.kept(base)
    assert kept == ("a", "c", "d", "e")
    since = head.since(base)
    assert dict(zip(since.classes, since.counts, strict=True)) == {"a": 4, "f": 4, "b": 1}
    again = from_state(base.state())
    again.remove("b")
    again.merge(since)
    rows = random.normal(size=(20, 5))
    right, found = head.scores(rows), again.scores(rows)
    columns = [again.classes.index(label) for label in head.classes]
    np.testing.assert_allclose(found[:, columns], right, rtol=1e-9, atol=1e-9 * np.abs(right).max())


@pytest.mark.parametrize("name", MOVABLE)
def test_a_moved_head_is_that_of_the_moved_features(name: str) -> None:
    """To another width, and what the map leaves over is in the scatter of those that keep one."""
    random = np.random.default_rng(4)
    linear, offset = random.normal(size=(5, 8)), random.normal(size=8)
    x, y, probes = random.normal(size=(60, 5)), [*"abcde"] * 12, random.normal(size=(9, 5))
    head, wanted = MOVABLE[name](), MOVABLE[name]()
    head.update(x, y)
    wanted.update(x @ linear + offset, y)
    drift = Drift(linear, offset, np.zeros((8, 8)))
    before = head.state().arrays
    found = head.moved(drift, MOVABLE[name]())
    assert (found.width, found.classes, found.options) == (8, head.classes, head.options)
    np.testing.assert_array_equal(found.counts, wanted.counts)
    np.testing.assert_allclose(found.prototypes, wanted.prototypes, atol=1e-12)
    rows = probes @ linear + offset
    right = wanted.scores(rows)
    np.testing.assert_allclose(found.scores(rows), right, rtol=1e-5, atol=1e-6 * np.abs(right).max())
    for key, array in head.state().arrays.items():
        np.testing.assert_array_equal(array, before[key])
    noisier = head.moved(drift._replace(left_over=np.eye(8)), MOVABLE[name]()).state().arrays
    for key in {"scatter", "gram"} & set(noisier):
        free = 60 - 5 if key == "scatter" else 60
        gained = noisier[key] - found.state().arrays[key]
        np.testing.assert_allclose(gained, free * np.eye(8)[np.tril_indices(8)], atol=1e-9 * free)


def test_heads_that_keep_more_than_sums_of_features_cannot_be_moved() -> None:
    head = FeCAM()
    head.update(np.eye(4), [*"abcd"])
    with pytest.raises(ValueError, match="more than sums of features, from which"):
        head.since(head)
    with pytest.raises(ValueError, match="can be moved"):
        head.moved(affine_drift(np.eye(4), 2 * np.eye(4)), head)


EXPANDING: dict[str, Callable[[], Head]] = {
    "ridge": lambda: Ridge(0.1, projection=12, seed=2),
    "lda": lambda: LDA(projection=12, seed=2),
    "cosine, removable": lambda: WhitenedCosine(projection=12, removable=True),
    "balanced": lambda: BalancedRidge(projection=12),
}


@pytest.mark.parametrize("name", EXPANDING)
def test_random_features_move_by_images_of_both_models(name: str) -> None:
    """To the same features scaled, of which the random ones are the same, scaled: an affine map of them."""
    random = np.random.default_rng(4)
    x, y, probes = random.normal(size=(60, 5)), [*"abcde"] * 12, random.normal(size=(9, 5))
    before = random.normal(size=(80, 5))
    head, wanted = EXPANDING[name](), EXPANDING[name]()
    head.update(x, y)
    wanted.update(2 * x, y)
    drift, _ = affine_map(before, 2 * before)
    with pytest.raises(ValueError, match="takes some images' features by both models"):
        head.moved(drift, head)
    with pytest.raises(ValueError, match="both need random features, or neither"):
        head.moved(drift, type(head)(), (before, 2 * before))
    found = head.moved(drift, EXPANDING[name](), (before, 2 * before))
    np.testing.assert_array_equal(found.counts, wanted.counts)
    np.testing.assert_allclose(found.prototypes, wanted.prototypes, atol=1e-9)
    right = wanted.scores(2 * probes)
    np.testing.assert_allclose(found.scores(2 * probes), right, rtol=1e-4, atol=1e-5 * np.abs(right).max())
    wider = before @ random.normal(size=(5, 7))
    moved = head.moved(affine_map(before, wider)[0], EXPANDING[name](), (before, wider))
    assert (moved.width, moved.classes) == (7, head.classes)
    moved.update(wider[:5], [*"abcde"])
    assert np.isfinite(moved.scores(wider)).all()


@pytest.mark.parametrize("new", [LDA, Ridge])
def test_a_removable_head_moves_class_by_class(new: Callable[..., Head]) -> None:
    random = np.random.default_rng(5)
    x, y, linear = random.normal(size=(40, 5)), [*"abcd"] * 10, random.normal(size=(5, 7))
    head, wanted = new(removable=True), new(removable=True)
    head.update(x, y)
    head = head.moved(Drift(linear, np.zeros(7), np.zeros((7, 7))), new(removable=True))
    head.remove("b")
    wanted.update((x @ linear)[[label != "b" for label in y]], [label for label in y if label != "b"])
    right = wanted.scores(x @ linear)
    np.testing.assert_allclose(head.scores(x @ linear), right, rtol=1e-5, atol=1e-6 * np.abs(right).max())


@pytest.mark.parametrize("rows", [12, 40])
@pytest.mark.parametrize("width", [3, 7, 11])
def test_an_affine_map_is_found_whatever_the_width(rows: int, width: int) -> None:
    random = np.random.default_rng(width)
    linear, offset = random.normal(size=(7, width)), random.normal(size=width)
    before = random.normal(size=(rows, 7))
    drift, misses = affine_map(before, before @ linear + offset)
    np.testing.assert_allclose(drift.linear, linear, atol=1e-9)
    np.testing.assert_allclose(drift.offset, offset, atol=1e-9)
    assert np.abs(misses).max() < 1e-8


def test_misses_are_those_of_maps_fitted_without_the_image() -> None:
    """Against the same ridge, fitted anew without each image."""
    random = np.random.default_rng(0)
    before = random.normal(size=(9, 3))
    after = before @ random.normal(size=(3, 4)) + 0.3 * random.normal(size=(9, 4))
    given, target = before - before.mean(axis=0), after - after.mean(axis=0)
    misses, gain = _regressed(given, target, centred=True)
    assert gain is not None
    # s from (H'H + s I) G = H'T
    product = given.T @ target - given.T @ given @ gain
    ridge = float((product * gain).sum() / (gain**2).sum())
    for place in range(9):
        rest = np.arange(9) != place
        h, t = before[rest] - before[rest].mean(axis=0), after[rest] - after[rest].mean(axis=0)
        alone = np.linalg.solve(h.T @ h + ridge * np.eye(3), h.T @ t)
        expected = (
            after[place] - after[rest].mean(axis=0) - (before[place] - before[rest].mean(axis=0)) @ alone
        )
        np.testing.assert_allclose(misses[place], expected, atol=1e-9)


def test_noise_has_no_map_and_is_brought_to_the_mean() -> None:
    random = np.random.default_rng(0)
    before, after = random.normal(size=(10, 30)), random.normal(size=(10, 4)) + 5
    drift, _ = affine_map(before, after)
    np.testing.assert_allclose(drift.move(before), np.tile(after.mean(axis=0), (10, 1)), atol=1.0)
