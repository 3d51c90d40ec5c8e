"""Learner.predict and export: pictures without labels, one or many, of any kind and size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from everlearn import Frozen, Learner
from everlearn.data import any_images

from ..conftest import coloured, make_learner, pixels


@pytest.fixture(scope="module")
def learner() -> Learner:
    return make_learner(Frozen()).fit(coloured("abc"))


@pytest.fixture(scope="module")
def large() -> Any:
    """A picture of "a", of "b" and of "c", uint8 (3, 96, 96, 3), that are not of the model's size."""
    return pixels(coloured("abc", 1, seed=3)).repeat(3, axis=1).repeat(3, axis=2)


def test_one_picture_of_any_kind_is_one_name(learner: Learner, large: Any, tmp_path: Path) -> None:
    image = large[1]
    Image.fromarray(image).save(tmp_path / "b.png")
    first = torch.from_numpy(image).permute(2, 0, 1)
    for one in (
        image,
        image[None],
        Image.fromarray(image),
        tmp_path / "b.png",
        str(tmp_path / "b.png"),
        first,
        first / 255,
        first[None],
        [image],
        (first,),
    ):
        assert learner.predict(one) == ["b"]
    grey = image[:, :, 0]
    assert len(learner.predict(image[:50])) == len(learner.predict(image[:, :7])) == 1
    for one in (grey, grey[:, :, None], grey[None, :, :, None], torch.from_numpy(grey), [grey]):
        assert len(learner.predict(one)) == 1


def test_many_of_mixed_kinds_and_sizes(learner: Learner, large: Any, tmp_path: Path) -> None:
    Image.fromarray(large[0]).save(tmp_path / "a.png")
    mixed = [
        tmp_path / "a.png",
        large[1][:64],
        Image.fromarray(large[2]),
        torch.from_numpy(large[0]).permute(2, 0, 1),
    ]
    assert learner.predict(mixed) == ["a", "b", "c", "a"]
    Image.fromarray(large[2]).save(tmp_path / "c.jpg", quality=95)
    (tmp_path / "notes.txt").write_text("text")
    assert learner.predict(tmp_path) == learner.predict(str(tmp_path)) == ["a", "c"]
    assert learner.predict(large) == learner.predict(list(large)) == ["a", "b", "c"]
    assert learner.predict(torch.from_numpy(large).permute(0, 3, 1, 2)) == ["a", "b", "c"]
    data = coloured("abc", 2, seed=3)
    assert learner.predict(data) == learner.predict(list(data)) == list(data.labels)
    assert any_images(data) == (data, True)


def test_bgr_by_name(learner: Learner, large: Any) -> None:
    wanted = learner.features(large)
    flipped = large[..., ::-1]
    tensors = torch.from_numpy(flipped.copy()).permute(0, 3, 1, 2)
    for images in (flipped, list(flipped), tensors, list(tensors)):
        assert learner.predict(images, channels="bgr") == ["a", "b", "c"]
        found = [np.asarray(image) for image, _ in any_images(images, channels="bgr")[0]]
        np.testing.assert_array_equal(found, large)
    assert np.abs(learner.features(flipped) - wanted).max() > 0.01
    grey = large[0, :, :, 0]
    assert learner.predict(grey, channels="bgr") == learner.predict(grey)
    with pytest.raises(ValueError, match="channels is 'BGR'; give 'rgb' or 'bgr'"):
        learner.predict(large, channels="BGR")
    for own in (Image.fromarray(large[0]), [large[0], Image.fromarray(large[0])], coloured("a")):
        with pytest.raises(ValueError, match="leave it out"):
            learner.predict(own, channels="bgr")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((32, 32, 4), np.uint8), r"may be one or many; .*images\[\.\.\., :3\]"),
        (np.zeros((5, 32, 32), np.uint8), r"one or many; give grey pictures as images\[\.\.\., None\]"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"images\.transpose\(0, 2, 3, 1\)"),
        (np.zeros((32, 32, 3)), "float64"),
        (torch.zeros(32, 32, 3), r"a tensor of shape \(32, 32, 3\); .*images\.permute\(0, 3, 1, 2\)"),
        (torch.zeros(5, 32, 32), "a tensor of shape"),
        (torch.full((3, 32, 32), 2.0), "image 0 is float32"),
        ([np.zeros((8, 8), np.uint8), None], "image 1 is NoneType"),
        ([], "give at least one"),
        (np.zeros((0, 8, 8, 3), np.uint8), "give at least one"),
        ("none.png", r"image 0: none\.png: no such file"),
        (None, "objects"),
        (iter([1]), "objects"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_one_sentence(learner: Learner, images: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        learner.predict(images)


def test_a_bundle_is_verified_on_pictures_without_labels(
    learner: Learner, large: Any, tmp_path: Path
) -> None:
    Image.fromarray(large[0]).save(tmp_path / "a.png")
    for number, images in enumerate(
        (large, list(large), [tmp_path / "a.png"], tmp_path / "a.png", coloured("ab"))
    ):
        manifest = learner.export(tmp_path / str(number), images=images)
        assert manifest.classes == learner.classes
        assert manifest.parity["top1_agreement"] == 1
    with pytest.raises(ValueError, match="may be one or many"):
        learner.export(tmp_path / "none", images=large[..., 0])
    assert not (tmp_path / "none").exists()


def test_pictures_without_labels_are_no_class_of_that_name(tmp_path: Path) -> None:
    data = coloured("ab")
    learner = make_learner(Frozen()).fit([(image, "unlabelled") for image, _ in data])
    known, plain = (
        learner.export(tmp_path / str(number), images=images, precision="int8").parity["accuracy"]
        for number, images in enumerate(([(image, "unlabelled") for image, _ in data], pixels(data)))
    )
    assert known == [1.0, 1.0]
    assert plain is None
