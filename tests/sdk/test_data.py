import pickle
import random
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from everlearn.data import Images, arrays, as_images, digits, folder, folder_splits, load, npz

TINY_IMAGENET = Path(__file__).parents[2] / "../shared/data/tiny_imagenet_b.npz"


def made(labels: list[str]) -> Images:
    """Images whose grey value is their position."""
    return Images(labels, load=lambda i: Image.new("RGB", (4, 4), (i, i, i)))


def values(images: Images) -> list[int]:
    """The grey values of images, as `made` and its like set them."""
    return [int(np.asarray(image)[0, 0, 0]) for image, _ in images]


class Pairs:
    """A torchvision-like data set that counts how many items were read."""

    def __init__(self, images: list[Any], labels: list[Any], **attributes: Any) -> None:
        self.images, self.items, self.read = images, labels, 0
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.read += 1
        return self.images[index], self.items[index]


class Tensor:
    """As much of a torch tensor as is looked at."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape = array, array.shape

    def numpy(self) -> NDArray[Any]:
        return self.array


# Images


def test_labels_are_known_and_nothing_is_decoded() -> None:
    def fail(index: int) -> Image.Image:
        raise AssertionError(f"image {index} was decoded")

    images = Images(["pen", "mug", "pen", "cup"], load=fail)
    assert images.labels == ("pen", "mug", "pen", "cup")
    assert images.classes == ("cup", "mug", "pen")
    assert images.subset([2, 1]).labels == ("pen", "mug")
    assert images.of_classes(["pen"]).classes == ("pen",)
    assert [len(side) for side in images.split(0.5, seed=0)] == [3, 1]


def test_items_are_pairs_by_index() -> None:
    images = made(["a", "b", "c"])
    image, label = images[-1]
    assert (label, image.mode, values(images)) == ("c", "RGB", [0, 1, 2])
    assert images[np.int64(1)][1] == "b"
    with pytest.raises(IndexError):
        images[3]
    with pytest.raises(TypeError):
        images[0:2]  # type: ignore[index]


def test_subsets_of_subsets_point_to_the_same_images() -> None:
    images = made(["a", "b", "a", "b", "a"])
    part = images.of_classes(["a"]).subset([2, 0, 2])
    assert values(part) == [4, 0, 4]
    assert part.labels == ("a", "a", "a")


@pytest.mark.parametrize("label", ["", 3, None])
def test_labels_that_are_no_names_are_refused(label: Any) -> None:
    with pytest.raises(ValueError, match=f"label 1 is {label!r}; expected a class name"):
        made(["a", label])


@pytest.mark.parametrize("index", [-1, 2])
def test_subset_refuses_a_position_that_is_not_there(index: int) -> None:
    with pytest.raises(ValueError, match=f"index {index} is out of range; expected 0 to 1"):
        made(["a", "b"]).subset([0, index])


def test_of_classes_refuses_an_unknown_class() -> None:
    with pytest.raises(ValueError, match="no images of class 'cup'; the classes are 'a', 'b'"):
        made(["a", "b"]).of_classes(["a", "cup"])


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_split_keeps_every_class_on_both_sides(labels: list[str], fraction: float, seed: int) -> None:
    images = made(labels)
    first, second = images.split(fraction, seed)
    assert sorted(values(first) + values(second)) == list(range(len(labels)))
    assert values(first) == sorted(values(first))
    for name, count in Counter(labels).items():
        here, there = first.labels.count(name), second.labels.count(name)
        assert here >= 1
        assert there >= 1 or count == 1
        assert abs(here - fraction * count) <= 1
    again, _ = images.split(fraction, seed)
    assert values(again) == values(first)


def test_split_depends_on_the_seed_alone() -> None:
    images = made(["a"] * 50)
    np.random.seed(0)
    one = values(images.split(0.5, seed=1)[0])
    np.random.seed(1)
    assert values(images.split(0.5, seed=1)[0]) == one
    assert values(images.split(0.5, seed=2)[0]) != one


@pytest.mark.parametrize("fraction", [0, 1, 80, -0.5, float("nan")])
def test_split_refuses_a_fraction_that_is_none(fraction: float) -> None:
    with pytest.raises(ValueError, match="expected a number between 0 and 1, such as"):
        made(["a", "b"]).split(fraction, seed=0)


# as_images and arrays


def test_every_form_of_an_image_gives_the_same_pixels() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    rgb = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    as_grey = [grey, grey[:, :, None], Image.fromarray(grey), Tensor(grey), Tensor(grey[None])]
    as_rgb = [rgb, Image.fromarray(rgb), Tensor(rgb.transpose(2, 0, 1))]
    images = as_images([(image, "a") for image in as_grey + as_rgb])
    for i, (image, _) in enumerate(images):
        assert image.mode == "RGB"
        expected = np.stack([grey] * 3, axis=-1) if i < len(as_grey) else rgb
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_real_torch_tensors_are_taken() -> None:
    torch = pytest.importorskip("torch")
    pixels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    data = Pairs([torch.from_numpy(pixels)] * 2, [0, 1], targets=torch.tensor([0, 1]), classes=["mug", "pen"])
    images = as_images(data)
    assert images.labels == ("mug", "pen")
    np.testing.assert_array_equal(np.asarray(images[0][0]), pixels.transpose(1, 2, 0))
    with pytest.raises(ValueError, match=r"image 0 is float32 \(3, 4, 5\)"):
        as_images([(torch.zeros(3, 4, 5), "a")])[0]


def test_a_palette_with_transparent_colours_gives_its_colours() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.info["transparency"] = b"\xff\x00"
    assert as_images([(image, "a")])[0][0].getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_labels_of_a_data_set_save_reading_its_items(attribute: str) -> None:
    data = Pairs([np.zeros((4, 4), np.uint8)] * 3, [1, 0, 1], classes=["mug", "pen"])
    setattr(data, attribute, np.array([1, 0, 1]))
    images = as_images(data)
    assert data.read == 0
    assert images.labels == ("pen", "mug", "pen")
    assert images[0][1] == "pen"
    assert data.read == 1


def test_without_them_every_item_is_read_once() -> None:
    data = Pairs([np.zeros((4, 4), np.uint8)] * 3, [7, np.int64(0), "mug"])
    assert as_images(data).labels == ("7", "0", "mug")
    assert data.read == 3


def test_images_are_handed_back_as_they_are() -> None:
    images = made(["a"])
    assert as_images(images) is images


@pytest.mark.parametrize(
    ("image", "came"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \(4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"uint8 \(4, 4, 2\)"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \(3, 8, 8\)"),
        (np.zeros((0, 4), np.uint8), r"uint8 \(0, 4\)"),
        (np.zeros(16, np.uint8), r"uint8 \(16,\)"),
        (Tensor(np.zeros((8, 8, 3), np.uint8)), r"uint8 \(8, 8, 3\)"),
        (Tensor(np.zeros((3, 8, 8), np.float32)), r"float32 \(3, 8, 8\)"),
        (Image.new("F", (4, 4)), "a PIL image of mode F"),
        (Image.new("I;16", (4, 4)), "a PIL image of mode I;16"),
        ("mug.jpg", "str"),
    ],
)
def test_images_in_no_known_form_are_refused_by_position(image: object, came: str) -> None:
    images = as_images([(np.zeros((4, 4), np.uint8), "a"), (image, "b")])
    with pytest.raises(ValueError, match=f"image 1 is {came}; expected a PIL image"):
        images.subset([1])[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([(np.zeros((4, 4), np.uint8), "a")]), r"has no length .* collect .* with list\(data\)"),
        ({1, 2}, "set has no length or no items by index"),
        ([], "the data set is empty"),
        (made([]), "the data set is empty"),
        ((np.zeros((2, 4, 4), np.uint8), ["a", "b"]), "item 0 is ndarray; expected .* pair .*data.arrays"),
        ([(np.zeros((4, 4), np.uint8), 0.5)], "label 0 is 0.5; expected a class name or an int"),
        ([(np.zeros((4, 4), np.uint8), "")], "label 0 is ''; expected a class name"),
        (Pairs([0, 0], [0, 2], classes=["a", "b"]), "label 1 is 2, but the data set has 2 `classes`"),
        (Pairs([0, 0], [0, -1], targets=[0, -1], classes=["a", "b"]), "label 1 is -1"),
        (Pairs([0, 0], [0, 1], classes=["crane", "crane"]), "a name occurs twice in .*`classes`"),
        (Pairs([0, 0], [0, 1], classes=[("a",), ("b",)]), r"label 0 is \('a',\); expected a class name"),
        (Pairs([0, 0], [0, 1], targets=[0]), "2 items but 1 labels in `targets` or `labels`"),
    ],
)
def test_data_that_is_no_data_set_is_refused(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_images(data)


def test_labels_that_contradict_the_items_are_refused() -> None:
    data = Pairs([np.zeros((4, 4), np.uint8)] * 2, [0, 0], targets=[0, 1])
    with pytest.raises(ValueError, match=r"item 1 has label '0' now and '1' before; .*target_transform"):
        as_images(data)[1]


def test_arrays_take_grey_and_colour() -> None:
    pixels = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    colour = arrays(pixels, np.array([2, 0, 2]))
    assert colour.labels == ("2", "0", "2")
    np.testing.assert_array_equal(np.asarray(colour[1][0]), pixels[1])
    for grey in (pixels[..., 0], pixels[..., :1]):
        np.testing.assert_array_equal(
            np.asarray(arrays(grey, "abc")[2][0]), np.repeat(pixels[2, ..., :1], 3, 2)
        )


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((2, 4, 4)), ["a", "b"], r"images are float64 \(2, 4, 4\); expected uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), ["a", "b"], r"images are uint8 \(2, 3, 8, 8\)"),
        (np.zeros((4, 4), np.uint8), ["a", "b"], r"images are uint8 \(4, 4\)"),
        (np.zeros((0, 4, 4), np.uint8), [], r"no size 0"),
        (np.zeros((2, 4, 4), np.uint8), ["a"], "2 images but 1 labels"),
        (np.zeros((2, 4, 4), np.uint8), ["a", ""], "label 1 is ''"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1.5], "label 1 is 1.5; expected a class name or an int"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(pixels: Any, labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arrays(pixels, labels)


# Folders


def write_folder(path: Path, classes: str = "ab", count: int = 2) -> None:
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (6, 5), (i, i, i)).save(path / name / f"{i}.png")


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    write_folder(tmp_path)
    Image.new("L", (6, 5), 9).save(tmp_path / "a" / "grey.JPG")
    Image.new("L", (6, 5), 9).save(tmp_path / "a" / ".hidden.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "README.md").write_text("no class")
    (tmp_path / ".cache").mkdir()
    images = folder(tmp_path)
    assert images.labels == ("a", "a", "a", "b", "b")
    assert values(images) == [0, 1, 9, 0, 1]
    assert images[2][0].mode == "RGB"
    assert images[2][0].size == (6, 5)


def test_folders_that_hold_no_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere' is not a folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"'{tmp_path}' has no class folders"):
        folder(tmp_path)
    write_folder(tmp_path)
    (tmp_path / "c" / "deeper").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"class folder '{tmp_path / 'c'}' has no image directly in it"):
        folder(tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "a" / "2.png").write_bytes(b"not a PNG")
    Image.new("I;16", (4, 4)).save(tmp_path / "a" / "3.png")
    images = folder(tmp_path)
    with pytest.raises(ValueError, match=r"2\.png"):
        images[2]
    with pytest.raises(ValueError, match=r"3\.png: the image has more than 8 bits a channel \(I;16\)"):
        images[3]


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_split_on_disk_is_used(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "train", count=3)
    write_folder(tmp_path / name, count=1)
    train, test = folder_splits(tmp_path)
    assert (len(train), len(test)) == (6, 2)
    assert train.classes == test.classes == ("a", "b")


def test_a_folder_without_a_split_is_split_by_class(tmp_path: Path) -> None:
    write_folder(tmp_path, count=10)
    train, test = folder_splits(tmp_path, seed=3)
    assert Counter(train.labels) == {"a": 8, "b": 8}
    assert Counter(test.labels) == {"a": 2, "b": 2}
    assert values(folder_splits(tmp_path, seed=3)[1]) == values(test)


# .npz files


def npz_parts() -> dict[str, NDArray[Any]]:
    encoded = []
    for i in range(6):
        buffer = BytesIO()
        Image.new("L" if i == 1 else "RGB", (8, 8), 40 * i if i == 1 else (40 * i,) * 3).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    return {
        "data": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        "labels": np.array([0, 0, 1, 1, 0, 1], np.int16),
        "is_test": np.array([False, False, False, False, True, True]),
        "classes": np.array(["n01 fire salamander", "n02 mug"]),
    }


def write_npz(path: Path, parts: dict[str, Any]) -> Path:
    np.savez(path, **parts)
    return path


def test_npz_gives_training_and_test_images(tmp_path: Path) -> None:
    train, test = npz(write_npz(tmp_path / "data.npz", npz_parts()))
    assert train.labels == ("n01 fire salamander",) * 2 + ("n02 mug",) * 2
    assert test.labels == ("n01 fire salamander", "n02 mug")
    assert all(image.mode == "RGB" for image, _ in train)
    np.testing.assert_allclose(values(train) + values(test), [0, 40, 80, 120, 160, 200], atol=2)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("data", np.zeros(9, np.int16), r"`data` is int16 \(9,\)"),
        ("data", np.zeros(9, np.uint8), "`offsets` must rise from 0 or more to 9"),
        ("offsets", np.zeros(7, np.int64), "`offsets` must rise"),
        ("offsets", np.arange(-1, 6), "`offsets` must rise"),
        ("offsets", np.arange(7)[::-1], "`offsets` must rise"),
        ("offsets", np.arange(7.0), r"`offsets` is float64 \(7,\)"),
        ("offsets", np.arange(6), "6 offsets, 6 labels and 6 in `is_test` do not fit together"),
        ("labels", np.zeros((6, 1), np.int16), r"`labels` is int16 \(6, 1\)"),
        ("labels", np.array([0, 0, 1, 1, 0, 2]), "`labels` run from 0 to 2 with 2 classes"),
        ("labels", np.array([0, 0, 1, 1, 0, -1]), "`labels` run from -1 to 1 with 2 classes"),
        ("is_test", np.zeros(6, np.int16), r"`is_test` is int16 \(6,\)"),
        ("is_test", np.zeros(5, np.bool_), "5 in `is_test` do not fit together"),
        ("is_test", np.zeros(6, np.bool_), "both training and test images"),
        ("is_test", np.ones(6, np.bool_), "both training and test images"),
        ("classes", np.array([1, 2]), r"`classes` is int64 \(2,\)"),
        ("classes", np.array(["a", "a"]), "a name occurs twice in `classes`"),
        ("classes", np.array(["a", "b"], dtype=object), "cannot read .*allow_pickle"),
    ],
)
def test_npz_parts_that_contradict_each_other_are_refused(
    tmp_path: Path, part: str, value: NDArray[Any], message: str
) -> None:
    path = write_npz(tmp_path / "data.npz", npz_parts() | {part: value})
    with pytest.raises(ValueError, match=message) as caught:
        npz(path)
    assert str(path) in str(caught.value)


def test_npz_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(ValueError, match=r"cannot read .*No such file"):
        npz(path)
    whole = write_npz(path, npz_parts()).read_bytes()
    for content in (
        b"",
        b"not a zip file",
        whole[: len(whole) // 2],
        whole[:-30],
        b"PK\x03\x04" + whole[90:],
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot read"):
            npz(path)
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(ValueError, match="npz file with data, offsets, labels, is_test, classes"):
        npz(tmp_path / "data.npy")
    parts = npz_parts()
    del parts["is_test"]
    with pytest.raises(ValueError, match="is_test is not a file in the archive"):
        npz(write_npz(path, parts))


def test_npz_bytes_changed_anywhere_are_a_value_error_or_harmless(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "data.npz", npz_parts())
    whole = path.read_bytes()
    chance, messages = random.Random(0), []
    for _ in range(200):
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            for images in npz(path):
                values(images)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(path) in message for message in messages)


def test_npz_images_are_upright_and_of_eight_bits_as_those_of_a_folder_are(tmp_path: Path) -> None:
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    exif, file, deep = Image.Exif(), BytesIO(), BytesIO()
    exif[0x0112] = 6  # held a quarter turn to the left
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    Image.new("I;16", (8, 6)).save(deep, "PNG")
    encoded = [file.getvalue(), deep.getvalue(), file.getvalue()]
    parts = {
        "data": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)]),
        "labels": np.array([0, 0, 0]),
        "is_test": np.array([False, False, True]),
        "classes": np.array(["mug"]),
    }
    train, test = npz(write_npz(tmp_path / "data.npz", parts))
    np.testing.assert_array_equal(np.array(test[0][0]), np.rot90(pixels, -1))
    np.testing.assert_array_equal(np.array(train[0][0]), np.rot90(pixels, -1))
    with pytest.raises(ValueError, match=r"image 1 of .*data\.npz' .*more than 8 bits a channel"):
        train[1]
    (tmp_path / "mug").mkdir()
    (tmp_path / "mug" / "a.png").write_bytes(encoded[0])
    np.testing.assert_array_equal(np.array(folder(tmp_path)[0][0]), np.rot90(pixels, -1))
    opened = Image.open(BytesIO(encoded[0]))
    np.testing.assert_array_equal(np.array(as_images([(opened, "mug")])[0][0]), np.rot90(pixels, -1))


def test_npz_decodes_an_image_only_when_it_is_asked_for(tmp_path: Path) -> None:
    parts = npz_parts()
    broken = parts["data"].copy()
    broken[parts["offsets"][2] : parts["offsets"][3]] = 0
    train, _ = npz(write_npz(tmp_path / "data.npz", parts | {"data": broken}))
    assert values(train.subset([1, 3])) == [40, 120]
    with pytest.raises(ValueError, match=r"image 2 of .*data\.npz' cannot be decoded"):
        train[2]


@pytest.mark.skipif(not TINY_IMAGENET.exists(), reason=f"{TINY_IMAGENET.name} is not here (see its licence)")
def test_real_tiny_imagenet() -> None:
    train, test = npz(TINY_IMAGENET)
    assert (len(train), len(test), len(train.classes)) == (20_000, 5_000, 100)
    assert set(Counter(train.labels).values()) == {200}
    assert set(Counter(test.labels).values()) == {50}
    assert train.classes == test.classes
    for image, label in test.subset(range(0, 5000, 50)):
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert label.startswith("n")


# digits and load


def test_real_digits() -> None:
    train, test = digits(seed=0)
    assert train.classes == test.classes == tuple("0123456789")
    assert len(train) + len(test) == 1797
    share = {
        name: train.labels.count(name) / (train.labels + test.labels).count(name) for name in "0123456789"
    }
    assert all(abs(value - 0.8) < 0.005 for value in share.values())
    pixels = np.stack([np.asarray(image) for image, _ in train])
    assert pixels.shape == (len(train), 8, 8, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert set(np.unique(pixels)) == {round(value * 255 / 16) for value in range(17)}


def test_load_takes_what_the_command_line_takes(tmp_path: Path) -> None:
    assert load("digits", seed=4)[1].labels == digits(seed=4)[1].labels
    write_folder(tmp_path / "pictures", count=5)
    assert [len(images) for images in load(str(tmp_path / "pictures"))] == [8, 2]
    file = write_npz(tmp_path / "data.npz", npz_parts())
    assert [len(images) for images in load(file)] == [4, 2]


@pytest.mark.parametrize("source", ["cifar100", "nowhere/", "picture.jpg"])
def test_load_lists_the_possibilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"expected 'digits', a \.npz file, or a folder"):
        load(source)


def test_images_from_files_can_go_to_another_process(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures")
    file = write_npz(tmp_path / "data.npz", npz_parts())
    for images in (
        folder(tmp_path / "pictures"),
        npz(file)[0],
        digits()[1],
        as_images([(Image.new("L", (2, 2)), 1)]),
    ):
        again = pickle.loads(pickle.dumps(images))
        assert again.labels == images.labels
        assert values(again) == values(images)
