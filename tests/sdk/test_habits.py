"""Representations that tell, and the names that users of scikit-learn expect."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from everlearn import ClassIncremental, Frozen, Images, Learner
from everlearn.choices import HEADS
from everlearn.evaluation.metrics import AccuracyMatrix
from everlearn_runtime import Bundle, EdgeLearner

from ..conftest import coloured, vit


@pytest.fixture
def learner() -> Learner:
    return Learner(vit(), Frozen(), device="cpu", progress=False)


def test_a_learner_says_what_it_has_learned(learner: Learner) -> None:
    assert (
        repr(learner) == f"<Learner({learner.backbone.name}, Frozen, WhitenedCosine) on cpu: nothing learned>"
    )
    told = repr(learner.fit(coloured("ab", 3)).fit(coloured("c", 2)))
    assert "cpu: 2 tasks, 3 classes; the last of 2 images of 'c', 0 parameters trained, 0 s>" in told


def test_data_says_what_it_is(learner: Learner) -> None:
    images = coloured("abcdefg", 2)
    assert repr(images) == "<Images: 14 images of 7 classes: 'a', 'b', 'c', 'd', 'e' and 2 more>"
    assert repr(Images([], load=lambda i: None)) == "<Images: 0 images of no class>"
    stream = ClassIncremental(images, images, 3)
    assert repr(stream) == "<ClassIncremental: 3 tasks of 3, 3, 1 classes, 14 images to train, 14 to test>"
    assert repr(AccuracyMatrix()) == "<AccuracyMatrix: nothing measured>"
    assert repr(learner.run(stream)).startswith("<AccuracyMatrix: 3 tasks, average ")


def test_on_the_device_too(learner: Learner, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learner.fit(coloured("ab", 3)).export(tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    width = bundle.manifest.width
    assert (
        repr(bundle)
        == f"<Bundle {str(bundle.path)!r}: 2 classes, {width} features, head whitened_cosine, fp32>"
    )
    images, labels = [image for image, _ in coloured("abc", 2)], ["a", "b", "c"] * 2
    with caplog.at_level(logging.INFO, "everlearn_runtime"):
        edge = EdgeLearner.open(tmp_path / "bundle", state=tmp_path / "device.db")
        learned = edge.learn(images, labels)
        found = edge.predict(images)
        assert repr(learned).startswith("Learned(number=1, ")
        assert repr(found).startswith(f"<Prediction of 6 images: {found.labels[0]!r} ")
        assert repr(found).endswith(", ...; not calibrated>")
        assert "version 1, WhitenedCosine(" in repr(edge)
        assert f": 3 classes, 12 samples, {width} features, on " in repr(edge)
        assert (edge.predict_proba(images) == found.probabilities).all()
        assert edge.score(images, found.labels) == 1
        assert edge.score(images, ["c"] * 6) == found.labels.count("c") / 6
        with pytest.raises(ValueError, match="2 labels for 6 images"):
            edge.score(images, ["a", "b"])
        edge.undo()
        edge.forget("b")
        edge.close()
    assert repr(edge).endswith(": not open here>")
    said = [record.getMessage() for record in caplog.records if record.name == "everlearn_runtime.edge"]
    assert said[0].startswith(f"opened {tmp_path / 'bundle'} with state ")
    assert said[1:] == [
        "version 1: learned {'a': 2, 'b': 2, 'c': 2}",
        "version 2: back to version 0",
        "version 3: forget 'b'",
    ]


def test_the_device_takes_what_the_workstation_takes(learner: Learner, tmp_path: Path) -> None:
    learner.fit(coloured("ab", 3)).export(tmp_path / "bundle")
    rgb = np.asarray(coloured("b", 1)[0][0])
    tensor = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
    batch = tensor[None].expand(3, -1, -1, -1)
    with EdgeLearner.open(tmp_path / "bundle") as edge:
        expected = edge.predict(rgb).scores
        floats = [tensor / 255, (tensor / 255).double()]
        for one in (tensor, *floats, [tensor], [tensor / 255]):
            assert (edge.predict(one).scores == expected).all()
        assert (edge.predict(batch).scores == edge.predict(np.stack([rgb] * 3)).scores).all()
        assert (edge.predict(tensor[0]).scores == edge.predict(rgb[:, :, 0]).scores).all()
        assert (edge.predict(tensor[:1]).scores == edge.predict(rgb[:, :, 0]).scores).all()
        assert (edge.predict(tensor.flip(0), channels="bgr").scores == expected).all()
        assert edge.predict([tensor, rgb, coloured("a", 1)[0][0]]).scores.shape == (3, 2)
        for bad, says in (
            (tensor.permute(1, 2, 0), "a tensor of shape .* as images.permute"),
            (tensor.long(), "the image is int64 of shape"),
            (tensor.float(), "the image is float32 of shape"),
            (tensor.to("meta"), "the tensor cannot be read"),
        ):
            with pytest.raises(ValueError, match=says):
                edge.predict(bad)
        edge.learn(batch, ["c"] * 3)
        assert edge.counts["c"] == 3


def test_score_and_probabilities(learner: Learner) -> None:
    images = coloured("abc", 4)
    with pytest.raises(ValueError, match="nothing has been learned yet"):
        learner.predict_proba(images)
    learner.fit(images)
    assert learner.score(images) == learner.evaluate(images)
    shares = learner.predict_proba(images)
    assert shares.shape == (12, 3)
    assert np.allclose(shares.sum(axis=1), 1)
    assert [learner.classes[column] for column in shares.argmax(axis=1)] == learner.predict(images)
    assert learner.predict_proba(np.asarray(images[0][0])).shape == (1, 3)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_says_what_it_knows_and_changes_nothing(name: str) -> None:
    head, quiet = HEADS[name](0), HEADS[name](0)
    rows = np.random.default_rng(0).normal(size=(9, 5))
    assert repr(head).endswith("): 0 classes, 0 samples, 0 features>")
    for row, label in zip(rows, "aabbcabca", strict=True):
        for own in (head, quiet):
            own.update(row[None], [label])
        told = repr(head)
    assert told.startswith(f"<{type(head).__name__}(")
    assert told.endswith("): 3 classes, 9 samples, 5 features>")
    left, right = head.state(), quiet.state()
    assert all((left.arrays[key] == right.arrays[key]).all() for key in right.arrays)
