"""Data sets as other libraries wrap them: the same images and names, whatever stands around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from everlearn import ClassIncremental, Frozen
from everlearn.backbones import torchvision_guard
from everlearn.data import Images, arrays, as_images

from ..conftest import coloured, make_learner, pixels

torchvision_guard.make_importable()
from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

NAMES = ["mug", "pen"]
PIXELS = np.random.default_rng(0).integers(256, size=(6, 8, 10, 3)).astype(np.uint8)
LABELS = [0, 1, 0, 1, 1, 0]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for index, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (tmp_path / "data" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / NAMES[label] / f"{index}.png")
    return tmp_path / "data"


def check(images: Images, order: list[int], names: list[str] = NAMES) -> None:
    """These are the images at these places of `PIXELS`, with their names."""
    assert images.labels == tuple(names[LABELS[index]] for index in order)
    for place, index in enumerate(order):
        np.testing.assert_array_equal(np.asarray(images[place][0]), PIXELS[index])


BY_CLASS = [0, 2, 5, 1, 3, 4]  # as a folder has them


# torch and torchvision

TRANSFORMS: dict[str, Any] = {
    "none": None,
    "ToTensor": transforms.ToTensor(),
    "PILToTensor": transforms.Compose([transforms.PILToTensor()]),
    "v2": v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    "half": v2.Compose([v2.ToImage(), v2.ToDtype(torch.float64, scale=True)]),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_folder_of_torchvision_with_or_without_totensor(files: Path, transform: Any) -> None:
    data = ImageFolder(files, transform=transform)
    check(as_images(data), BY_CLASS)
    check(as_images(Subset(data, [4, 0])), [3, 0])
    check(as_images(ConcatDataset([data, Subset(data, [1])])), [*BY_CLASS, 2])
    check(as_images(DataLoader(data, batch_size=4, shuffle=True)), BY_CLASS)
    check(as_images(DataLoader(Subset(data, [5, 1]))), [4, 2])


def test_every_value_survives_totensor() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensor = transforms.ToTensor()(Image.fromarray(ramp)).to(dtype)
        found = np.asarray(as_images([(tensor, "a")])[0][0])[:, :, 0]
        assert np.abs(found.astype(int) - ramp).max() <= (1 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("around", [lambda data: data, lambda data: Subset(data, [0]), DataLoader])
def test_normalised_images_are_refused_at_the_door(files: Path, around: Callable[[Any], Any]) -> None:
    normalise = transforms.Normalize([0.5] * 3, [0.5] * 3)
    for transform in (
        transforms.Compose([transforms.ToTensor(), normalise]),
        transforms.Compose([transforms.Compose([transforms.ToTensor(), normalise])]),
    ):
        with pytest.raises(
            ValueError, match="the transforms of ImageFolder end in Normalize; leave that out"
        ):
            as_images(around(ImageFolder(files, transform=transform)))


def test_tensors_side_by_side() -> None:
    first = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    labels = torch.tensor(LABELS)
    for images in (first, first / 255):
        check(as_images(TensorDataset(images, labels)), list(range(6)), ["0", "1"])
        check(as_images(Subset(TensorDataset(images, labels), [3, 2])), [3, 2], ["0", "1"])
        check(as_images(images, labels), list(range(6)), ["0", "1"])


def test_a_loader_is_its_data_set_and_what_it_leaves_out_is_left_out() -> None:
    data: Any = TensorDataset(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS))
    numbers = ["0", "1"]
    check(as_images(DataLoader(data, sampler=SubsetRandomSampler([5, 2]))), [5, 2], numbers)
    check(as_images(DataLoader(data, batch_size=None)), list(range(6)), numbers)
    for sampler in (
        WeightedRandomSampler([1.0] * 6, 6),
        RandomSampler(data, num_samples=3),
        RandomSampler(data, replacement=True),
    ):
        with pytest.raises(
            ValueError, match=rf"draws its images by {type(sampler).__name__}.*Subset\(dataset"
        ):
            as_images(DataLoader(data, sampler=sampler))
    with pytest.raises(ValueError, match="draws its images by list"):
        as_images(DataLoader(data, batch_sampler=[[0, 1], [2]]))

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(data)

    with pytest.raises(ValueError, match=r"Endless has no length or no items .*collect .* with list\(data\)"):
        as_images(DataLoader(Endless()))


class Reader:
    def __init__(self) -> None:
        self.class_to_idx = {"pen": 1, "mug": 0}


class Timm:
    """As much of timm's `ImageDataset` as is looked at."""

    reader = Reader()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(PIXELS[index]), LABELS[index]


def test_names_by_class_to_idx() -> None:
    check(as_images(Timm()), list(range(6)))


class Wrapper:
    """A data set of somebody's own around another."""

    def __init__(self, inside: Any, change: Callable[[int], Any] = lambda label: label) -> None:
        self.inside, self.change, self.transform = inside, change, None

    def __len__(self) -> int:
        return len(self.inside)

    def __getitem__(self, index: int) -> Any:
        image, label = self.inside[index]
        return image, self.change(label)


def test_names_survive_a_wrapper_of_ones_own_where_its_labels_are_the_same(files: Path) -> None:
    data = ImageFolder(files)
    check(as_images(Wrapper(data)), BY_CLASS)
    check(as_images(Wrapper(Subset(data, [4, 0]))), [3, 0])
    check(as_images(Subset(Wrapper(Wrapper(data)), [4, 0])), [3, 0])  # type: ignore[arg-type]
    check(as_images(Wrapper(Timm())), list(range(6)))
    assert as_images(Wrapper(data, lambda label: 1 - label)).labels == ("1",) * 3 + ("0",) * 3
    assert as_images(Wrapper(data, lambda label: label + 5)).labels == ("5",) * 3 + ("6",) * 3
    assert as_images(Wrapper(data, lambda label: "ab"[label])).labels == ("a",) * 3 + ("b",) * 3


# Tables, as Hugging Face has them


class ClassLabel:
    def __init__(self, names: list[str]) -> None:
        self.names = names


class Table:
    """As much of `datasets.Dataset` as is looked at; counts the images that are decoded."""

    def __init__(self, features: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.features, self.rows, self.decoded = features, rows, 0

    @property
    def column_names(self) -> list[str]:
        return list(self.features)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return [row[key] for row in self.rows]
        self.decoded += 1
        return self.rows[key]


def rows(image: str = "image", label: str = "label") -> list[dict[str, Any]]:
    return [
        {"id": index, image: Image.fromarray(pixels), label: number}
        for index, (pixels, number) in enumerate(zip(PIXELS, LABELS, strict=True))
    ]


def an_image() -> Any:
    return type("Image", (), {})()


def test_a_table_has_the_names_of_its_class_label_and_nothing_is_decoded() -> None:
    data = Table({"id": None, "img": an_image(), "kind": ClassLabel(NAMES)}, rows("img", "kind"))
    images = as_images(data)
    part = as_images(Subset(data, [4, 1]))  # type: ignore[arg-type]
    several = as_images(ConcatDataset([data, data]))  # type: ignore[list-item]
    assert data.decoded == 0
    check(images, list(range(6)))
    check(part, [4, 1])
    check(several, [*range(6)] * 2)
    check(as_images(DataLoader(data)), list(range(6)))  # type: ignore[arg-type]


def test_columns_go_by_their_names_where_they_have_no_types() -> None:
    check(as_images(rows()), list(range(6)), ["0", "1"])
    check(as_images(rows("picture", "target")), list(range(6)), ["0", "1"])
    for one in (rows("pixel_values"), rows(label="fine")):
        with pytest.raises(
            ValueError, match=r"which of them is an? .* is not clear; name it '.*rename_column"
        ):
            as_images(one)
    two = {"image": an_image(), "fine": ClassLabel(NAMES), "coarse": ClassLabel(NAMES)}
    with pytest.raises(ValueError, match="which of them is a label is not clear; name it 'label'"):
        as_images(Table(two, [{"image": None, "fine": 0, "coarse": 1}]))


def test_a_table_that_is_not_decoded_yet(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "0.png")
    data = (tmp_path / "0.png").read_bytes()
    for image in ({"bytes": data, "path": None}, {"bytes": None, "path": str(tmp_path / "0.png")}):
        check(as_images([{"image": image, "label": "mug"}]), [0])
    with pytest.raises(ValueError, match="image 0: not a readable image"):
        as_images([{"image": {"bytes": b"no", "path": None}, "label": "mug"}])[0]


def test_of_a_dict_of_tables_the_right_part_is_taken() -> None:
    table = Table({"image": an_image(), "label": ClassLabel(NAMES)}, rows())
    data = {"train": table, "validation": Table(table.features, rows()[:1])}
    check(as_images(data), list(range(6)))
    check(as_images(data, part="test"), [0])
    with pytest.raises(
        ValueError, match=r"the dict has no 'train', but 'all'; give one of them, such as data\['all"
    ):
        as_images({"all": table})


def test_real_hugging_face_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    columns = {"image": [Image.fromarray(image) for image in PIXELS], "label": LABELS}
    data = datasets.Dataset.from_dict(columns, features=features)
    check(as_images(data), list(range(6)))
    check(as_images(data.select([4, 1])), [4, 1])
    check(as_images(Subset(data, [4, 1])), [4, 1])
    check(as_images(DataLoader(data)), list(range(6)))
    check(as_images(data.with_format("torch")), list(range(6)))
    check(as_images(data.with_format("numpy")), list(range(6)))
    check(as_images(data.cast_column("image", datasets.Image(decode=False))), list(range(6)))
    parts = datasets.DatasetDict({"train": data, "test": data.select([0])})
    check(as_images(parts), list(range(6)))
    check(as_images(parts, part="test"), [0])
    with pytest.raises(ValueError, match="IterableDataset has no length"):
        as_images(data.to_iterable_dataset())


# Images and labels apart, and paths


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        list(PIXELS),
        [Image.fromarray(image) for image in PIXELS],
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
    ],
    ids=["array", "list", "PIL", "tensor"],
)
def test_images_and_labels_apart(images: Any) -> None:
    names = [NAMES[label] for label in LABELS]
    check(as_images(images, names), list(range(6)))
    check(as_images(images, np.array(names)), list(range(6)))
    assert as_images(images, names).fingerprint() == arrays(PIXELS, names).fingerprint()
    with pytest.raises(ValueError, match="6 images but 5 labels"):
        as_images(images, names[:5])
    for labels, says in (
        ("mug", r"labels is 'mug', one text; give one label for each image, \['mug'\] \* len\(images\)"),
        (set(names), "labels is set; expected a list with one label for each image"),
        (dict(enumerate(names)), "labels is dict; expected a list"),
        (np.eye(6), r"labels have shape \(6, 6\)"),
        ([0.5] * 6, "label 0 is 0.5"),
    ):
        with pytest.raises(ValueError, match=says):
            as_images(images, labels)


def test_what_has_labels_of_its_own_takes_no_others(files: Path) -> None:
    for data in (as_images(files), str(files), {"a": 1}, iter([1])):
        with pytest.raises(ValueError, match="with labels beside them; expected an array"):
            as_images(data, LABELS)


def test_paths_are_images_and_folders_are_data_sets(files: Path) -> None:
    check(as_images(files), BY_CLASS)
    check(as_images(str(files)), BY_CLASS)
    pairs = [(path, path.parent.name) for path in sorted(files.rglob("*.png"))]
    check(as_images(pairs), BY_CLASS)
    check(as_images([str(path) for path, _ in pairs], [name for _, name in pairs]), BY_CLASS)
    with pytest.raises(ValueError, match=r"image 0: none\.png: no such file"):
        as_images([("none.png", "mug")])[0]
    divided = files.parent / "divided"
    for part in ("train", "val"):
        (divided / part / "mug").mkdir(parents=True)
    Image.fromarray(PIXELS[0]).save(divided / "train" / "mug" / "0.png")
    Image.fromarray(PIXELS[2]).save(divided / "val" / "mug" / "2.png")
    check(as_images(divided), [0])
    check(as_images(divided, part="test"), [2])
    stream = ClassIncremental(divided, divided, classes_per_task=1)
    check(stream[0].train, [0])
    check(stream[0].test, [2])


def test_a_learner_takes_them_all(files: Path) -> None:
    data = coloured("ab", seed=1)
    learner = make_learner(Frozen()).fit(pixels(data), list(data.labels))
    assert learner.evaluate(pixels(data), list(data.labels)) == 1
    tensors = torch.from_numpy(pixels(data)).permute(0, 3, 1, 2) / 255
    names = torch.tensor([int(label == "b") for label in data.labels])
    numbers = make_learner(Frozen()).fit(DataLoader(TensorDataset(tensors, names), shuffle=True))
    assert numbers.classes == ("0", "1")
    found = dict(zip("ab", numbers.head.prototypes, strict=True))
    for name, row in zip(learner.classes, learner.head.prototypes, strict=True):
        np.testing.assert_array_equal(found[name], row)
    assert make_learner(Frozen()).fit(files).classes == ("mug", "pen")
