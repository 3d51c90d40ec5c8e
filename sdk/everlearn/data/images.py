"""Labelled images: any data set of pairs as a sequence of RGB pictures and class names."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from everlearn_runtime.images import to_rgb

_FORMS = (
    "a PIL image of 8 bits a channel, a uint8 array (H, W), (H, W, 1) or (H, W, 3), "
    "or a uint8 torch tensor (H, W), (1, H, W) or (3, H, W)"
)


class Images:
    """A sequence of `(image, label)` pairs: RGB PIL images, and class names.

    `load(i)` gives image i, in RGB, and is called only when that image is asked
    for; the labels are there from the start. Raises `ValueError` when a label is
    not a non-empty string.

    >>> images = Images(["pen", "mug", "pen"], load=lambda i: Image.new("RGB", (8, 8)))
    >>> len(images), images.labels, images.classes
    (3, ('pen', 'mug', 'pen'), ('mug', 'pen'))
    >>> images.of_classes(["pen"]).labels
    ('pen', 'pen')
    """

    def __init__(self, labels: Iterable[str], load: Callable[[int], Image.Image]) -> None:
        names = tuple(labels)
        for i, name in enumerate(names):
            if not isinstance(name, str) or not name:
                raise ValueError(f"label {i} is {name!r}; expected a class name, a non-empty string")
        self.labels: tuple[str, ...] = tuple(str(name) for name in names)
        """Class name of every image."""
        self.classes: tuple[str, ...] = tuple(sorted(set(self.labels)))
        """The class names that occur, sorted."""
        self._load = load
        self._positions: Sequence[int] = range(len(names))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        i = operator.index(index)
        return self._load(self._positions[i]), self.labels[i]

    def __iter__(self) -> Iterator[tuple[Image.Image, str]]:
        return (self[i] for i in range(len(self)))

    @property
    def origins(self) -> list[tuple[int, int]]:
        """Where each image comes from: equal for the same image of a data set and its subsets.

        Good while the data set exists, and in this process only.
        """
        return [(id(self._load), position) for position in self._positions]

    def digest(self, after_image: Callable[[], object] = lambda: None) -> str:
        """Sha256 of labels, sizes and pixels, in this order; reads every image."""
        whole = hashlib.sha256()
        for image, label in self:
            whole.update(json.dumps([label, *image.size]).encode())
            whole.update(image.tobytes())
            after_image()
        return whole.hexdigest()

    def subset(self, indices: Iterable[int]) -> Images:
        """The images at these positions, in this order; none is decoded.

        Raises `ValueError` for a position outside 0 to `len(self) - 1`.
        """
        chosen = [operator.index(i) for i in indices]
        for i in chosen:
            if not 0 <= i < len(self):
                raise ValueError(f"index {i} is out of range; expected 0 to {len(self) - 1}")
        part = Images([self.labels[i] for i in chosen], self._load)
        part._positions = [self._positions[i] for i in chosen]
        return part

    def of_classes(self, names: Iterable[str]) -> Images:
        """The images of these classes, in the order they have here.

        Raises `ValueError` for a class that does not occur.
        """
        wanted = set(names)
        unknown = sorted(wanted - set(self.classes))
        if unknown:
            raise ValueError(f"no images of class {unknown[0]!r}; the classes are {_some(self.classes)}")
        return self.subset(i for i, label in enumerate(self.labels) if label in wanted)

    def split(self, fraction: float, seed: int) -> tuple[Images, Images]:
        """A random `fraction` of every class, and the rest; both keep the order they have here.

        The same seed gives the same split. A class with at least two images has at
        least one on either side; a class with one image is on the first side only.
        Raises `ValueError` when `fraction` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}; expected a number between 0 and 1, such as 0.8")
        rng = np.random.default_rng(seed)
        labels = np.array(self.labels, dtype=object)
        is_first = np.zeros(len(self), dtype=np.bool_)
        for name in self.classes:
            members = rng.permutation(np.flatnonzero(labels == name))
            count = min(max(round(fraction * len(members)), 1), max(len(members) - 1, 1))
            is_first[members[:count]] = True
        return self.subset(np.flatnonzero(is_first)), self.subset(np.flatnonzero(~is_first))


def as_images(data: object) -> Images:
    """Any map-style data set of `(image, label)` pairs as `Images`.

    An image is a PIL image of 8 bits a channel, a uint8 array (H, W), (H, W, 1) or
    (H, W, 3), or a uint8 torch tensor (H, W), (1, H, W) or (3, H, W), before any
    normalisation. A label is a class name, or an int, which becomes
    `data.classes[label]` where the data set has `classes`, else `str(label)`. Labels
    come from `data.targets` or `data.labels` where there is one; otherwise every
    item is read once. `Images` are handed back as they are.

    Raises `ValueError` when there is no length or no item, or a label is none of
    these. An image that is none of these raises `ValueError` when it is asked for.
    """
    if isinstance(data, Images):
        if len(data) == 0:
            raise ValueError("the data set is empty; give at least one image")
        return data
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ValueError(
            f"{type(data).__name__} has no length or no items by index; expected a map-style data set "
            f"of (image, label) pairs: collect what an iterable gives with list(data)"
        )
    size = len(data)
    if size == 0:
        raise ValueError("the data set is empty; give at least one image")
    classes = getattr(data, "classes", None)
    if classes is not None and len(set(classes)) != len(classes):
        raise ValueError("a name occurs twice in the data set's `classes`; give every class its own name")
    labels = getattr(data, "targets", getattr(data, "labels", None))
    if labels is None:
        labels = [_pair(data, i)[1] for i in range(size)]
    elif len(labels) != size:
        raise ValueError(f"the data set has {size} items but {len(labels)} labels in `targets` or `labels`")
    names = [class_name(label, classes, i) for i, label in enumerate(labels)]
    return Images(names, partial(_load_item, data, classes, names))


def _pair(data: Any, index: int) -> tuple[Any, Any]:
    item = data[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(
            f"item {index} is {type(item).__name__}; expected an (image, label) pair "
            f"(for an array of images and one of labels, use `everlearn.data.arrays`)"
        )
    return item[0], item[1]


def class_name(label: Any, classes: Sequence[Any] | None, index: int) -> Any:
    """The name that a label stands for: itself, or for an int one of `classes`; see `as_images`."""
    if isinstance(label, str):
        return label
    try:
        number = operator.index(label)
    except TypeError:
        raise ValueError(f"label {index} is {label!r}; expected a class name or an int") from None
    if classes is None:
        return str(number)
    if not 0 <= number < len(classes):
        raise ValueError(
            f"label {index} is {number}, but the data set has {len(classes)} `classes`; "
            f"expected 0 to {len(classes) - 1}"
        )
    return classes[number]


def _load_item(data: Any, classes: Sequence[Any] | None, names: Sequence[str], index: int) -> Image.Image:
    image, label = _pair(data, index)
    name = class_name(label, classes, index)
    if name != names[index]:
        raise ValueError(
            f"item {index} has label {name!r} now and {names[index]!r} before; a data set must give the "
            f"same label every time, also in `targets` or `labels` (a `target_transform` may break that)"
        )
    return rgb_of(image, f"image {index}")


def rgb_of(image: Any, what: str) -> Image.Image:
    """An image as `as_images` takes them in RGB; ``what`` names it in the ``ValueError`` of any other."""
    pixels = image
    if hasattr(image, "numpy"):  # a torch tensor, channels first
        pixels = image.numpy()
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    came = type(image).__name__
    if isinstance(pixels, np.ndarray):
        came = f"{pixels.dtype} {tuple(image.shape)}"
    elif isinstance(pixels, Image.Image):
        came = f"a PIL image of mode {pixels.mode}"
    try:
        return to_rgb(pixels)
    except ValueError as error:
        raise ValueError(
            f"{what} is {came}; expected {_FORMS}, with values 0 to 255: "
            "leave scaling and normalisation to the learner"
        ) from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:10]) + (", ..." if len(names) > 10 else "")
