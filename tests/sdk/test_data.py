import os
import pickle
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import ConcatDataset, Subset

from everlearn import Augmentation
from everlearn.backbones import torchvision_guard
from everlearn.data import Images, arrays, as_images, digits, folder, folder_splits, load, npz, sort_classes
from everlearn.data.loader import Loader
from everlearn_runtime import prepare

from ..conftest import vit

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


class Part:
    """A part of a data set, by no more than its two attributes."""

    def __init__(self, dataset: Any, indices: Any) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


class Through(Part):
    """A part that hands everything else through, of the whole data set."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)


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


NO_NAMES: list[Any] = [
    "",
    " ",
    "\t\n",
    "\u3000",
    "mug\udcff",
    float("nan"),
    None,
    1.0,
    True,
    b"mug",
    ("mug",),
]
"""What is a class name nowhere."""


@pytest.mark.parametrize("label", [*NO_NAMES, 3])
def test_labels_that_are_no_names_are_refused(label: Any) -> None:
    with pytest.raises(ValueError, match=f"label 1 is {re.escape(repr(label))}; expected a class name"):
        made(["a", label])


def test_names_come_out_as_plain_text() -> None:
    images = made(["a", np.str_("b")])
    assert images.labels == ("a", "b")
    assert {type(name) for name in images.labels + images.classes} == {str}


def test_whole_numbers_are_in_numeric_order_and_other_names_in_that_of_text() -> None:
    names = [str(number) for number in range(100)]
    assert made(sorted(names)).classes == tuple(names)
    assert sort_classes(["+2", "10", "-3", "02", "2"]) == ("-3", "+2", "02", "2", "10")
    assert sort_classes(["10", "9", "1.5"]) == ("1.5", "10", "9")
    assert sort_classes(["10", "9", "-"]) == ("-", "10", "9")
    assert sort_classes(["1" * 5000, "9"]) == ("1" * 5000, "9")
    mixed = made(["10", "9", "mug"])
    assert mixed.classes == ("10", "9", "mug")
    assert mixed.of_classes(["10", "9"]).classes == made(["10", "9"]).classes == ("9", "10")


@given(st.lists(st.integers(-50, 50).map(str) | st.text("ab1", min_size=1, max_size=2), min_size=1))
def test_the_order_of_classes_depends_on_nothing_but_their_names(names: list[str]) -> None:
    ordered = sort_classes(set(names))
    assert ordered == sort_classes(reversed(ordered)) == made(names).classes == made(names[::-1]).classes
    assert set(ordered) == set(names)


@pytest.mark.parametrize("index", [-1, 2])
def test_subset_refuses_a_position_that_is_not_there(index: int) -> None:
    with pytest.raises(ValueError, match=f"index {index} is out of range; expected 0 to 1"):
        made(["a", "b"]).subset([0, index])


@pytest.mark.parametrize(
    "indices",
    [[2, 0], (2, 0), iter([2, 0]), np.array([2, 0], np.uint8), torch.tensor([2, 0]), range(2, -1, -2)],
)
def test_a_subset_takes_positions_in_any_sequence(indices: Any) -> None:
    assert values(made(["a", "b", "c"]).subset(indices)) == [2, 0]


@pytest.mark.parametrize(
    "mask", [np.array([True, False]), torch.tensor([True, False]), np.zeros(1), np.eye(2, dtype=int)]
)
def test_a_subset_refuses_what_is_no_positions(mask: Any) -> None:
    with pytest.raises(ValueError, match=r"indices are .*; expected positions, .*np.flatnonzero\(mask\)"):
        made(["a", "b"]).subset(mask)
    assert len(made(["a", "b"]).subset(np.array([]))) == 0


def test_of_classes_refuses_an_unknown_class() -> None:
    with pytest.raises(ValueError, match="no images of class 'cup'; the classes are 'a', 'b'"):
        made(["a", "b"]).of_classes(["a", "cup"])


LABELS = st.lists(st.sampled_from(["a", "b", "2", "10", "-1"]), min_size=1, max_size=40)


@given(LABELS, st.data())
def test_a_subset_is_the_data_set_of_its_own_images(labels: list[str], data: st.DataObject) -> None:
    whole = made(labels)
    for _ in range(2):
        chosen = data.draw(st.lists(st.integers(0, len(labels) - 1)))
        part = data.draw(st.sampled_from([whole, whole.subset(range(len(labels)))])).subset(chosen)
        fresh = made([labels[i] for i in chosen])
        assert (part.labels, part.classes) == (fresh.labels, fresh.classes)
        assert values(part) == chosen
        assert part.targets.tolist() == [fresh.classes.index(label) for label in fresh.labels]
        assert part.positions_in(whole).tolist() == chosen
        for name in part.classes:
            assert values(part.of_classes([name])) == [i for i in chosen if labels[i] == name]
            assert part.targets_in([name]).tolist() == [0 if labels[i] == name else -1 for i in chosen]


def test_images_of_another_data_set_have_no_position_here() -> None:
    one, other = made(["a", "b", "a"]), made(["a", "b", "a"])
    assert other.positions_in(one).tolist() == [-1, -1, -1]
    assert one.positions_in(one.subset([2, 0])).tolist() == [1, -1, 0]
    assert one.subset([]).positions_in(one).tolist() == []
    assert one.positions_in(one.subset([])).tolist() == [-1, -1, -1]


def test_it_tells_which_classes_are_not_known() -> None:
    images = made(["mug", "10", "9", "pen"])
    assert images.unknown_to(["pen"]) == ("10", "9", "mug")
    assert images.unknown_to(images.classes) == ()
    assert images.targets_in(["pen", "mug"]).tolist() == [1, -1, -1, 0]


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
    pixels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    data = Pairs([torch.from_numpy(pixels)] * 2, [0, 1], targets=torch.tensor([0, 1]), classes=["mug", "pen"])
    images = as_images(data)
    assert images.labels == ("mug", "pen")
    np.testing.assert_array_equal(np.asarray(images[0][0]), pixels.transpose(1, 2, 0))
    with pytest.raises(ValueError, match=r"image 0 is float32 \(3, 4, 5\)"):
        as_images([(torch.full((3, 4, 5), 1.5), "a")])[0]


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
        (Tensor(np.full((3, 8, 8), -0.1, np.float32)), r"float32 \(3, 8, 8\)"),
        (Tensor(np.full((3, 8, 8), np.nan, np.float32)), r"float32 \(3, 8, 8\)"),
        (Image.new("F", (4, 4)), "a PIL image of mode F"),
        (Image.new("I;16", (4, 4)), "a PIL image of mode I;16"),
        (3, "int"),
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
        ({"mug": []}, r"dict is not a data set; .*for name, images in data.items\(\)"),
        ("mugs/", r"'mugs/' is not a data set; .* a folder that exists"),
        (Path("mugs"), r"'mugs' is not a data set; .* a folder that exists"),
        (Pairs([0, 0, 0], [0, 1], targets=None), "Pairs has no item 2 of 3 .*by position from 0"),
        (Pairs([0], [np.zeros(2)]), r"label 0 is array\(\[0., 0.\]\)"),
        (Pairs([0], [0], targets={0}), "labels is set; expected a list with one label for each image"),
        (Pairs([0, 0], [0, 1], targets=np.eye(2)), r"labels have shape \(2, 2\).*labels.argmax\(1\)"),
        (Pairs([0, 0], [0, 1], classes=2), "`classes` is int; expected a list of class names"),
        (Pairs([0, 0], [0, 1], classes={"a": 0, "b": 3}), r"positions \[0, 3\]; expected 0 to 1, each once"),
        (Part(Pairs([0], [0]), [0, 1]), "Part has `indices` outside its `dataset`, which has 1 items"),
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


def dots(labels: list[Any], **attributes: Any) -> Pairs:
    """Pairs whose grey value is their position."""
    return Pairs([np.full((2, 2), i, np.uint8) for i in range(len(labels))], labels, **attributes)


PARTS: list[Callable[[Any, list[int]], Any]] = [
    Subset,
    Part,
    Through,
    lambda data, chosen: Part(data, np.array(chosen)),
    lambda data, chosen: Part(data, torch.tensor(chosen)),
    lambda data, chosen: Subset(Subset(data, chosen[::-1]), range(len(chosen))[::-1]),
    lambda data, chosen: ConcatDataset([Subset(data, [i]) for i in chosen]),
    lambda data, chosen: Subset(ConcatDataset([data, data]), [i + len(data) for i in chosen]),
]


@pytest.mark.parametrize("part_of", PARTS)
@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_a_part_of_a_data_set_keeps_its_names_and_reads_no_image(
    part_of: Callable[[Any, list[int]], Any], attribute: str
) -> None:
    data = dots([2, 0, 1, 2, 0], classes=["cup", "mug", "pen"])
    setattr(data, attribute, torch.tensor(data.items))
    images = as_images(part_of(data, [4, 3, 1]))
    assert data.read == 0
    assert images.labels == ("cup", "pen", "cup")
    assert values(images) == [4, 3, 1]


@pytest.mark.parametrize("part_of", PARTS)
def test_without_labels_a_part_reads_its_own_items_only(part_of: Callable[[Any, list[int]], Any]) -> None:
    data = dots([2, 0, 1, 2, 0], classes=["cup", "mug", "pen"])
    assert as_images(part_of(data, [4, 3])).labels == ("cup", "pen")
    assert data.read == 2


def test_a_part_of_images_keeps_their_names() -> None:
    images = as_images(Subset(made(["10", "9", "mug"]), [2, 0]))  # type: ignore[arg-type]
    assert images.labels == ("mug", "10")
    assert values(images) == [2, 0]


def test_what_a_part_says_itself_goes_before_what_is_in_it() -> None:
    part: Any = Part(dots([0, 1, 1], classes=["mug", "pen"], targets=[0, 1, 1]), [1, 0])
    part.classes = {"one": 0, "two": 1}
    assert as_images(part).labels == ("two", "one")
    part.targets = ["pen", "mug"]
    assert as_images(part).labels == ("pen", "mug")
    with pytest.raises(ValueError, match="item 0 has label 'two' now and 'pen' before"):
        as_images(part)[0]


def test_several_data_sets_in_one_have_the_names_of_each() -> None:
    one, other = dots([0, 1], classes=["mug", "pen"]), dots([0, 1], classes=["pen", "cup"], targets=[0, 1])
    assert as_images(ConcatDataset([one, other])).labels == ("mug", "pen", "pen", "cup")  # type: ignore[list-item]
    assert as_images(ConcatDataset([one, dots(["cup"])])).labels == ("mug", "pen", "cup")  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"label 2 is 0 in a part of the data set that has no `classes`"):
        as_images(ConcatDataset([one, dots([0])]))  # type: ignore[list-item]


def test_torchvisions_folders_and_their_parts_keep_the_names_of_the_folders(tmp_path: Path) -> None:
    torchvision_guard.make_importable()
    from torchvision.datasets import ImageFolder

    write_folder(tmp_path, ["mug", "pen"], count=3)
    data = ImageFolder(tmp_path)
    assert as_images(data).labels == ("mug",) * 3 + ("pen",) * 3
    assert as_images(Subset(data, [5, 0])).labels == ("pen", "mug")
    assert values(as_images(Subset(data, [5, 0]))) == [2, 0]


@pytest.mark.parametrize(
    "classes",
    [
        ("mug", "pen"),
        np.array(["mug", "pen"]),
        {0: "mug", 1: "pen"},
        {1: "pen", 0: "mug"},
        {"pen": 1, "mug": 0},
    ],
)
def test_names_may_be_in_any_sequence_or_dict(classes: Any) -> None:
    assert as_images(dots([1, 0, 1], classes=classes)).labels == ("pen", "mug", "pen")


@pytest.mark.parametrize(
    "label",
    [
        *(1, "1", np.int64(1), np.uint8(1), np.array(1), np.array([1]), np.str_("1"), np.array("1")),
        *(torch.tensor(1), torch.tensor([1])),
    ],
)
def test_a_label_is_the_same_in_any_wrapping(label: Any) -> None:
    item = (np.zeros((4, 4), np.uint8), label)
    for images in (as_images([item]), as_images(Pairs([item[0]], [label], targets=[label]))):
        assert images.labels == ("1",)
        assert type(images[0][1]) is str
    assert arrays(item[0][None], [label]).labels == ("1",)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([3, 4]),
        np.array([[3], [4]]),
        np.array(["3", "4"]),
        torch.tensor([[3], [4]]),
        ("3", 4),
        iter([3, 4]),
    ],
)
def test_labels_come_in_any_sequence(labels: Any) -> None:
    assert arrays(np.zeros((2, 4, 4), np.uint8), labels).labels == ("3", "4")


@pytest.mark.parametrize(
    "label", [*NO_NAMES, np.bool_(True), np.float32(2), torch.tensor(True), torch.tensor(2.0)]
)
def test_a_label_that_is_no_name_is_refused_at_every_door(label: Any) -> None:
    pixels = np.zeros((2, 4, 4), np.uint8)
    doors: list[Callable[[], Images]] = [
        lambda: as_images([(pixels[0], "a"), (pixels[1], label)]),
        lambda: as_images(Pairs(list(pixels), ["a", label], targets=["a", label])),
        lambda: as_images(Part(Pairs(list(pixels), ["a", label], targets=["a", label]), [0, 1])),
        lambda: arrays(pixels, ["a", label]),
    ]
    for give in doors:
        with pytest.raises(ValueError, match=r"label 1 is .*; expected a class name"):
            give()
    if isinstance(label, str):
        with pytest.raises(ValueError, match=r"label 1 is .*; expected a class name"):
            as_images(Pairs(list(pixels), [0, 1], classes=["a", label]))


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
            np.asarray(arrays(grey, list("abc"))[2][0]), np.repeat(pixels[2, ..., :1], 3, 2)
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
        (np.zeros((2, 4, 4), np.uint8), {"a", "b"}, "labels is set; expected a list"),
        (np.zeros((2, 4, 4), np.uint8), "ab", r"labels is 'ab', one text; .*\['ab'\] \* len\(images\)"),
        (np.zeros((2, 4, 4), np.uint8), {0: "a", 1: "b"}, "labels is dict; expected a list"),
        (np.zeros((2, 4, 4), np.uint8), b"ab", "labels is bytes; expected a list"),
        (np.zeros((2, 4, 4), np.uint8), 3, "labels is int; expected a list"),
        (np.zeros((2, 4, 4), np.uint8), np.eye(2), r"labels have shape \(2, 2\); .*labels.argmax\(1\)"),
        ([np.zeros((4, 4), np.uint8)], ["a"], r"images are list; .*a list of \(image, label\) pairs"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(pixels: Any, labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arrays(pixels, labels)


# One rule of what is upright


def entrances(files: list[Path]) -> dict[str, Images]:
    """The same image files through every entrance there is."""
    encoded = [file.read_bytes() for file in files]
    parts = {
        "data": np.frombuffer(b"".join(encoded * 2), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded * 2)]),
        "labels": np.zeros(2 * len(files), np.int64),
        "is_test": np.repeat([False, True], len(files)),
        "classes": np.array(["mug"]),
    }
    opened = [(Image.open(BytesIO(data)), "mug") for data in encoded]
    loaded = [(image.copy(), label) for image, label in opened]
    return {
        "folder": folder(files[0].parents[1]),
        "npz": npz(write_npz(files[0].parents[1] / "data.npz", parts))[1],
        "opened": as_images([(Image.open(BytesIO(data)), "mug") for data in encoded]),
        "loaded": as_images(loaded),
        "part": as_images(Subset(loaded, range(len(files)))),  # type: ignore[arg-type]
        "load": Images(["mug"] * len(files), lambda i: Image.open(BytesIO(encoded[i]))),
        "arrays": as_images([(np.asarray(ImageOps.exif_transpose(image)), label) for image, label in opened]),
    }


def test_every_entrance_turns_a_picture_upright_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "mug").mkdir(parents=True)
    files, wanted = [], []
    for orientation in range(1, 9):
        image, exif = Image.fromarray(rng.integers(256, size=(9, 9, 3)).astype(np.uint8)), Image.Exif()
        exif[0x0112] = orientation
        files.append(tmp_path / "pictures" / "mug" / f"{orientation}.png")
        image.save(files[-1], exif=exif)
        turned = ImageOps.exif_transpose(Image.open(files[-1]))
        assert (turned.tobytes() == image.tobytes()) == (orientation == 1)
        wanted.append(np.asarray(turned))
    backbone = vit()
    whole = Augmentation(scale=(1, 1), ratio=(1, 1), flip=False)
    prepared = np.stack([prepare(pixels, backbone.input) for pixels in wanted])
    large = [
        np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)) for pixels in wanted
    ]
    for entrance, images in entrances(files).items():
        for _ in range(2):
            found = np.stack([np.asarray(image) for image, _ in images])
            np.testing.assert_array_equal(found, np.stack(wanted), err_msg=entrance)
        loader = Loader(images, backbone, torch.device("cpu"))
        np.testing.assert_array_equal(loader.pixels(range(8)), prepared, err_msg=entrance)
        ((batch, targets),) = loader.shuffled(range(8), whole, batch_size=8, key=[0])
        expected = backbone.normalise(torch.from_numpy(np.stack(large)[targets.numpy()]))
        assert torch.equal(batch, expected), entrance


def test_what_a_load_function_gives_becomes_rgb_or_is_refused() -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    images = Images("ab", lambda i: [grey, grey.astype(float)][i])
    np.testing.assert_array_equal(np.asarray(images[0][0]), np.stack([grey] * 3, axis=-1))
    with pytest.raises(ValueError, match=r"image 1 is float64 \(4, 5\); expected a PIL image"):
        images.subset([1])[0]


# Fingerprints


class Random:
    """Pixels that differ at every look, as random transforms make them."""

    targets = (0, 1, 0, 1)

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.rng.integers(256, size=(8, 8)).astype(np.uint8), self.targets[index]


def test_a_fingerprint_is_that_of_the_pixels_in_any_wrapping() -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(256, size=(300, 4, 5, 3)).astype(np.uint8), ["a", "b", "c"] * 100
    expected = arrays(pixels, labels).fingerprint()
    pairs = list(zip(pixels, labels, strict=True))
    for again in (pairs, tuple(pairs), [(Image.fromarray(image), label) for image, label in pairs]):
        assert as_images(again).fingerprint() == expected
    assert arrays(pixels, labels).subset(range(300)).fingerprint() == expected
    few = arrays(pixels, labels).subset(range(0, 300, 2)).fingerprint()
    assert as_images(Subset(pairs, range(0, 300, 2))).fingerprint() == few  # type: ignore[arg-type]
    assert as_images(Subset(arrays(pixels, labels), range(0, 300, 2))).fingerprint() == few  # type: ignore[arg-type]
    grey = pixels[..., 0]
    assert arrays(grey, labels).fingerprint() == arrays(np.stack([grey] * 3, -1), labels).fingerprint()
    assert arrays(grey, labels).fingerprint() == arrays(grey[..., None], labels).fingerprint()


def test_a_fingerprint_tells_other_data_of_the_same_labels_apart(tmp_path: Path) -> None:
    pixels = np.zeros((300, 4, 5), np.uint8)
    changed = pixels.copy()
    changed[299, 3, 4] = 1
    labels = ["a", "b", "c"] * 100
    found = [
        arrays(pixels, labels),
        arrays(changed, labels),
        arrays(pixels.reshape(300, 5, 4), labels),
        arrays(pixels, labels[::-1]),
        arrays(pixels[:299], labels[:299]),
        arrays(changed, labels).subset([*range(298), 299, 298]),
        Images(labels, lambda i: np.full((4, 5), i % 256, np.uint8)),
        Images(labels, lambda i: np.full((4, 5), 255 - i % 256, np.uint8)),
    ]
    prints = [images.fingerprint() for images in found]
    assert len(set(prints)) == len(found)
    pairs = [as_images(list(zip(images, labels, strict=True))) for images in (pixels, changed)]
    assert [images.fingerprint() for images in pairs] == prints[:2]


def test_a_fingerprint_of_files_needs_no_decoding_and_survives_a_copy(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", count=3)
    shutil.copytree(tmp_path / "one", tmp_path / "copy", copy_function=shutil.copyfile)
    (tmp_path / "copy" / "a" / "0.png").rename(tmp_path / "copy" / "a" / "00.png")
    assert folder(tmp_path / "copy").fingerprint() == folder(tmp_path / "one").fingerprint()
    for path in (tmp_path / "one", tmp_path / "copy"):
        (path / "b" / "2.png").write_bytes(b"not a picture")
    expected = folder(tmp_path / "one", on_error="later").fingerprint()
    assert folder(tmp_path / "copy", on_error="later").fingerprint() == expected
    (tmp_path / "copy" / "b" / "2.png").write_bytes(b"nor is this 1")
    images = folder(tmp_path / "copy", on_error="later")
    assert images.fingerprint() != expected
    (tmp_path / "copy" / "b" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*2\.png"):
        images.fingerprint()


def test_a_fingerprint_of_an_npz_is_that_of_its_bytes(tmp_path: Path) -> None:
    parts = npz_parts()
    train, test = npz(write_npz(tmp_path / "data.npz", parts))
    again, _ = npz(write_npz(tmp_path / "copy.npz", parts))
    assert again.fingerprint() == train.fingerprint() != test.fingerprint()
    parts["data"] = parts["data"].copy()
    parts["data"][parts["offsets"][3]] ^= 1
    other, same = npz(write_npz(tmp_path / "copy.npz", parts), on_error="later")
    assert other.fingerprint() != train.fingerprint()
    assert same.fingerprint() == test.fingerprint()


def test_a_fingerprint_of_random_pixels_is_that_of_their_labels() -> None:
    assert as_images(Random(0)).fingerprint() == as_images(Random(1)).fingerprint()
    other = Random(0)
    other.targets = (1, 1, 0, 1)
    assert as_images(other).fingerprint() != as_images(Random(0)).fingerprint()


def test_a_fingerprint_of_any_data_set_looks_at_a_bounded_number_of_images() -> None:
    data = Pairs([np.zeros((2, 2), np.uint8)] * 5000, [0] * 5000, targets=[0] * 5000)
    as_images(data).fingerprint()
    assert data.read == 512


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    images = arrays(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), ["pen", "mug"])
    assert images.fingerprint()[:16] == "4f6ee794497458b8"  # by a process that has ended


# Folders


def write_folder(path: Path, classes: Iterable[str] = "ab", count: int = 2) -> None:
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


def test_folders_named_by_numbers_are_in_numeric_order(tmp_path: Path) -> None:
    write_folder(tmp_path, ["10", "9", "-1"], count=1)
    images = folder(tmp_path)
    assert images.labels == images.classes == ("-1", "9", "10")


@pytest.mark.parametrize("name", [b" ", b"m\xfcg"])
def test_a_folder_that_is_no_class_is_refused_at_the_door(tmp_path: Path, name: bytes) -> None:
    write_folder(tmp_path)
    path = tmp_path / os.fsdecode(name)
    path.mkdir()
    Image.new("RGB", (4, 4)).save(path / "0.png")
    for read in (folder, folder_splits, load):
        with pytest.raises(
            ValueError, match=r"a class folder in .* cannot be a class: label .*; rename it"
        ) as caught:
            read(tmp_path)
        str(caught.value).encode()  # can be printed


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_half_of_a_split_is_named(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / name, count=5)
    with pytest.raises(
        ValueError, match=f"has {name}/ with folders in it, but not both train/ and test/ or val/"
    ):
        folder_splits(tmp_path)
    assert [len(images) for images in folder_splits(tmp_path / name)] == [8, 2]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_folder(tmp_path, ["train", "car"], count=5)
    assert folder_splits(tmp_path)[0].classes == ("car", "train")


def test_one_class_is_a_data_set(tmp_path: Path) -> None:
    write_folder(tmp_path, ["mug"], count=5)
    assert [images.classes for images in folder_splits(tmp_path)] == [("mug",), ("mug",)]


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
        ("classes", np.array(["a", " "]), "in `classes`, label ' ' is not a non-empty str"),
        (
            "classes",
            np.array(["a", "b\nc"]),
            r"label 'b\\nc' has a character that cannot be seen",
        ),
        ("classes", np.array(["a", "b\udcff"]), r"in `classes`, label 'b\\udcff' is not valid Unicode"),
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
    train, test = npz(write_npz(tmp_path / "data.npz", parts), on_error="later")
    np.testing.assert_array_equal(np.array(test[0][0]), np.rot90(pixels, -1))
    np.testing.assert_array_equal(np.array(train[0][0]), np.rot90(pixels, -1))
    with pytest.raises(ValueError, match=r"image 1 of .*data\.npz' .*more than 8 bits a channel"):
        train[1]
    (tmp_path / "mug").mkdir()
    (tmp_path / "mug" / "a.png").write_bytes(encoded[0])
    np.testing.assert_array_equal(np.array(folder(tmp_path)[0][0]), np.rot90(pixels, -1))
    opened = Image.open(BytesIO(encoded[0]))
    np.testing.assert_array_equal(np.array(as_images([(opened, "mug")])[0][0]), np.rot90(pixels, -1))


def test_npz_looks_at_every_image_unless_it_is_told_to_do_so_later(tmp_path: Path) -> None:
    parts = npz_parts()
    broken = parts["data"].copy()
    broken[parts["offsets"][2] : parts["offsets"][3]] = 0
    path = write_npz(tmp_path / "data.npz", parts | {"data": broken})
    with pytest.raises(
        ValueError, match=r"1 of 6 images in .*data\.npz' cannot be read: image 2 \(not a read"
    ):
        npz(path)
    with pytest.warns(UserWarning, match="broken  1  not a readable image.*  image 2"):
        train, test = npz(path, on_error="skip")
    assert (values(train), len(test)) == ([0, 40, 120], 2)
    train, _ = npz(path, on_error="later")
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
