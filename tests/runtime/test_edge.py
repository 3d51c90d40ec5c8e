"""The device's learner, on a real graph."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import LDA, BundleError, EdgeLearner, MissingExtra, OnnxRuntime, Ridge
from everlearn_runtime.errors import StateError
from everlearn_runtime.state import Owner

MakeImages = Callable[..., NDArray[np.uint8]]


def snapshot(learner: EdgeLearner) -> Any:
    state = learner._head.state()
    return state.classes, {name: array.tobytes() for name, array in state.arrays.items()}


def test_it_predicts_learns_and_forgets(learner: EdgeLearner, make_images: MakeImages) -> None:
    found = learner.predict(make_images("pen", 3, seed=1))
    assert found.labels == ["pen"] * 3
    assert found.classes == learner.classes == ("mug", "pen")
    assert found.scores.shape == (3, 2)
    assert found.scores.dtype == np.float64

    learner.learn(np.concatenate([make_images("cup"), make_images("mug", seed=2)]), ["cup"] * 4 + ["mug"] * 4)
    assert learner.counts == {"mug": 8, "pen": 4, "cup": 4}
    assert learner.predict(make_images("cup", 5, seed=3)).labels == ["cup"] * 5
    learner.forget("pen")
    assert learner.classes == ("mug", "cup")
    assert learner.predict(make_images("pen", 2)).scores.shape == (2, 2)


def test_learning_is_the_heads_own_update(bundle: Path, make_images: MakeImages) -> None:
    backend, head = OnnxRuntime(bundle / "features.onnx"), LDA()
    for label in ("mug", "pen", "cup"):
        head.update(backend.run(make_images(label)), [label] * 4)
    with EdgeLearner.open(bundle) as learner:
        learner.learn(make_images("cup"), ["cup"] * 4)
        images = make_images("cup", 2, seed=8)
        np.testing.assert_allclose(
            learner.predict(images).scores, head.scores(backend.run(images)), rtol=1e-12
        )


def test_a_bundle_may_start_without_classes(
    make_bundle: Callable[..., Path], make_images: MakeImages
) -> None:
    with EdgeLearner.open(make_bundle(head=Ridge(projection=32))) as learner:
        with pytest.raises(ValueError, match="no class is known yet"):
            learner.predict(make_images("mug"))
        learner.learn(make_images("mug"), ["mug"] * 4)
        assert learner.predict(make_images("mug")).labels == ["mug"] * 4


def test_without_a_state_nothing_is_kept(bundle: Path, make_images: MakeImages) -> None:
    before = sorted(bundle.parent.rglob("*"))
    with EdgeLearner.open(bundle) as learner:
        learner.learn(make_images("cup"), ["cup"] * 4)
    with EdgeLearner.open(bundle) as learner:
        assert learner.classes == ("mug", "pen")
    assert sorted(bundle.parent.rglob("*")) == before


GOOD = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (np.zeros((2, 8, 9, 4), np.uint8), ["a", "b"], "shape"),
        (np.zeros((2, 8, 8, 3)), ["a", "b"], "float64"),
        (np.full((2, 8, 8, 3), np.nan), ["a", "b"], "NaN pixels"),
        (np.zeros((0, 8, 8, 3), np.uint8), [], "empty"),
        (GOOD[0], ["a", "b"], "2 labels for 1 images"),
        (np.array([None]), ["a"], "objects"),
        (GOOD, ["a"], "1 labels for 2 images"),
        (GOOD, [], "no labels"),
        (GOOD, "ab", "give a list"),
        (GOOD, ["a", None], "non-empty str"),
        (GOOD, ["a", " "], "non-empty str"),
    ],
)
def test_bad_input_says_why_and_changes_nothing(
    learner: EdgeLearner, bundle: Path, tmp_path: Path, images: Any, labels: Any, says: str
) -> None:
    before = snapshot(learner)
    with pytest.raises(ValueError, match=says):
        learner.learn(images, labels)
    if "labels" not in says and "str" not in says and "list" not in says:
        with pytest.raises(ValueError, match=says):
            learner.predict(images)
    assert snapshot(learner) == before
    learner.close()
    with EdgeLearner.open(bundle, state=tmp_path / "device.db") as again:
        assert snapshot(again) == before


def test_an_unknown_class_cannot_be_forgotten(learner: EdgeLearner) -> None:
    before = snapshot(learner)
    with pytest.raises(ValueError, match=r"no class 'cup'.*'mug', 'pen'"):
        learner.forget("cup")
    with pytest.raises(ValueError, match="non-empty str"):
        learner.forget("")
    assert snapshot(learner) == before


def test_after_close_every_call_says_so(learner: EdgeLearner, make_images: MakeImages) -> None:
    images = make_images("mug")
    learner.close()
    learner.close()
    calls: list[Callable[[], Any]] = [
        lambda: learner.predict(images),
        lambda: learner.learn(images, ["mug"] * 4),
        lambda: learner.forget("mug"),
        lambda: learner.classes,
        lambda: learner.counts,
        lambda: learner.nbytes,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


def test_threads_may_share_a_learner(learner: EdgeLearner, make_images: MakeImages) -> None:
    images, errors = make_images("cup", 2), []

    def work(name: str) -> None:
        try:
            for _ in range(20):
                learner.learn(images, [name, "shared"])
                assert name in learner.predict(images).classes
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"class {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert learner.counts["shared"] == 80
    assert all(learner.counts[f"class {number}"] == 20 for number in range(4))


def test_large_batches_are_run_in_parts(bundle: Path, make_images: MakeImages) -> None:
    backend, images = OnnxRuntime(bundle / "features.onnx"), make_images("mug", 75)
    whole = backend.run(images)
    assert whole.shape == (75, 6)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(
        whole, np.concatenate([backend.run(images[row : row + 1]) for row in range(75)]), rtol=1e-5
    )
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.run(images)


def test_a_provider_that_is_not_there(bundle: Path) -> None:
    with pytest.raises(ValueError, match="NoSuchProvider is not in this build"):
        EdgeLearner.open(bundle, providers=["NoSuchProvider"])
    with pytest.raises(ValueError, match="give a list"):
        EdgeLearner.open(bundle, providers="CPUExecutionProvider")
    with pytest.raises(ValueError, match="threads is 0"):
        EdgeLearner.open(bundle, threads=0)


def test_without_onnxruntime_one_line_says_what_to_install(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r'^running a bundle needs: pip install "everlearn\[cpu\]"$'):
        EdgeLearner.open(bundle)
    with pytest.raises(MissingExtra, match=r"everlearn\[gpu\]"):
        EdgeLearner.open(bundle, providers=["CUDAExecutionProvider"])


def test_graphs_that_do_not_fit(
    make_bundle: Callable[..., Path], graph: bytes, make_images: MakeImages
) -> None:
    with pytest.raises(BundleError, match="cannot load this graph"):
        EdgeLearner.open(make_bundle("broken", LDA(), features=graph[:-40]))
    with (
        EdgeLearner.open(make_bundle("narrow", LDA(), sections=[4])) as learner,
        pytest.raises(BundleError, match="6 features"),
    ):
        learner.learn(make_images("mug"), ["mug"] * 4)


def test_features_that_are_not_finite(make_bundle: Callable[..., Path], make_images: MakeImages) -> None:
    import onnx
    from onnx import numpy_helper

    good = make_bundle()
    model = onnx.load_from_string((good / "features.onnx").read_bytes())
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((12, 6), np.inf, np.float32), "weights")
    )
    with EdgeLearner.open(make_bundle("inf", LDA(), features=model.SerializeToString())) as learner:
        with pytest.raises(ValueError, match="NaN or infinite features"):
            learner.learn(make_images("mug"), ["mug"] * 4)
        assert learner.classes == ()


def test_a_state_inside_the_bundle_is_refused(bundle: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        EdgeLearner.open(bundle, state=bundle / "device.db")


def test_a_full_disk_leaves_the_learner_as_it_was(learner: EdgeLearner, make_images: MakeImages) -> None:
    learner.learn(make_images("cup"), ["cup"] * 4)
    before = snapshot(learner)
    assert isinstance(learner._keeper, Owner)
    database = learner._keeper._file.database
    database.execute(f"PRAGMA max_page_count = {database.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(StateError, match=r"full.*free space"):
        learner.learn(make_images("axe", 300), ["axe"] * 300)
    assert snapshot(learner) == before
    database.execute("PRAGMA max_page_count = 1000000")
    learner.learn(make_images("axe"), ["axe"] * 4)
    assert learner.classes == ("mug", "pen", "cup", "axe")


def test_no_training_library_is_brought_in(bundle: Path, tmp_path: Path) -> None:
    program = f"""
import sys
import everlearn_runtime
light = {{name.partition(".")[0] for name in sys.modules}}
assert not light & {{"torch", "onnx", "timm", "onnxruntime", "PIL", "scipy"}}, light
import numpy as np
with everlearn_runtime.EdgeLearner.open({str(bundle)!r}, state={str(tmp_path / "device.db")!r}) as learner:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    learner.learn(images, ["cup", "mug"])
    learner.predict(images)
    everlearn_runtime.prepare(images[0], learner.bundle.manifest.input)
heavy = {{name.partition(".")[0] for name in sys.modules}}
assert not heavy & {{"torch", "onnx", "timm", "scipy"}}, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
