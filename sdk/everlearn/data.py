"""Labelled images, and where they come from: arrays, folders, `.npz` files, any data set of pairs."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everlearn.augmentation import Augmentation
from everlearn_runtime.decoding import decode
from everlearn_runtime.images import open_image, to_rgb

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What `folder` takes for an image file, in lower or upper case."""

_FORMS = (
    "a PIL image of 8 bits a channel, a uint8 array (H, W), (H, W, 1) or (H, W, 3), "
    "or a uint8 torch tensor (H, W), (1, H, W) or (3, H, W)"
)
_NPZ_PARTS = {
    "data": np.uint8,
    "offsets": np.integer,
    "labels": np.integer,
    "is_test": np.bool_,
    "classes": np.str_,
}


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
    names = [_name(label, classes, i) for i, label in enumerate(labels)]
    return Images(names, partial(_load_item, data, classes, names))


def arrays(images: NDArray[np.uint8], labels: Iterable[str | int]) -> Images:
    """Images from one array, (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8, and their N labels.

    Raises `ValueError` for another shape or dtype, no images, a number of labels
    other than N, or a label that is neither a non-empty string nor an int.

    >>> images = arrays(np.zeros((2, 8, 8), np.uint8), [7, 3])
    >>> images.labels, images[0][0].size
    (('7', '3'), (8, 8))
    """
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not grey_or_rgb or images.size == 0:
        raise ValueError(
            f"images are {images.dtype} {images.shape}; expected uint8 (N, H, W), (N, H, W, 1) or "
            f"(N, H, W, 3), with values 0 to 255 and no size 0"
        )
    names = [_name(label, None, i) for i, label in enumerate(labels)]
    if len(names) != len(images):
        raise ValueError(f"{len(images)} images but {len(names)} labels; give one label for each image")
    return Images(names, partial(_load_array, images))


def folder(path: str | Path) -> Images:
    """Images from a folder of class folders: `path/mug/1.jpg` is an image of class `mug`.

    Classes and files are in sorted order. Hidden files and folders, and files without
    one of `IMAGE_SUFFIXES`, are left out; folders inside a class folder are not
    searched. Raises `ValueError` when there is no class folder, or one has no
    image, and, when that image is asked for, for a file that is not an image.
    """
    if not Path(path).is_dir():
        raise ValueError(f"'{path}' is not a folder; expected one with a folder of images for each class")
    files: list[Path] = []
    for directory in _visible(path):
        if directory.is_dir():
            found = [f for f in _visible(directory) if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()]
            if not found:
                raise ValueError(
                    f"class folder '{directory}' has no image directly in it; put images there "
                    f"({', '.join(IMAGE_SUFFIXES)}) or remove it"
                )
            files += found
    if not files:
        raise ValueError(f"'{path}' has no class folders; expected one folder of images for each class")
    return Images([file.parent.name for file in files], partial(_load_file, files))


def folder_splits(path: str | Path, seed: int = 0) -> tuple[Images, Images]:
    """Training and test images from a folder.

    From `path/train` and `path/test`, or else `path/train` and `path/val`, where it has
    them, each a folder as `folder` reads it; otherwise four fifths and one fifth
    of every class of `folder(path)`, drawn with `seed`. Raises `ValueError` as `folder` does.
    """
    train = Path(path, "train")
    for test in (Path(path, "test"), Path(path, "val")):
        if train.is_dir() and test.is_dir():
            return folder(train), folder(test)
    return folder(path).split(0.8, seed)


def npz(path: str | Path) -> tuple[Images, Images]:
    """Training and test images from a `.npz` file of encoded images.

    It holds `data` (uint8, all files' bytes joined, JPEG or another format PIL
    reads), `offsets` (int, (N + 1,); image i is `data[offsets[i]:offsets[i + 1]]`), `labels`
    (int, (N,), positions in `classes`), `is_test` (bool, (N,)) and `classes` (str).
    The bytes are read at once, an image is decoded when it is asked for.

    Raises `ValueError` when the file cannot be read, a part is missing or contradicts
    another, or there are no training or no test images; and, when that image is
    asked for, for bytes that are not an image.
    """
    try:
        # np.load leaves a file open that it cannot read, unless it is given one.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            data, offsets, labels, is_test, classes = (archive[name] for name in _NPZ_PARTS)
    except Exception as error:  # for a damaged file, zipfile, zlib and numpy have a dozen kinds
        raise ValueError(
            f"cannot read '{path}': {error}; expected a .npz file with {', '.join(_NPZ_PARTS)}"
        ) from error

    def require(valid: bool | np.bool_, problem: str) -> None:
        if not valid:
            raise ValueError(f"'{path}' is not a valid data set: {problem}; see `everlearn.data.npz`")

    for (name, kind), part in zip(_NPZ_PARTS.items(), (data, offsets, labels, is_test, classes), strict=True):
        require(part.ndim == 1 and np.issubdtype(part.dtype, kind), f"`{name}` is {part.dtype} {part.shape}")
    require(
        len(labels) == len(is_test) == len(offsets) - 1,
        f"{len(offsets)} offsets, {len(labels)} labels and {len(is_test)} in `is_test` do not fit together",
    )
    offsets = offsets.astype(np.int64)
    require(
        offsets[0] >= 0 and offsets[-1] <= len(data) and (np.diff(offsets) > 0).all(),
        f"`offsets` must rise from 0 or more to {len(data)}, the length of `data`, or less",
    )
    require(is_test.any() and not is_test.all(), "it needs both training and test images")
    require(
        labels.min() >= 0 and labels.max() < len(classes),
        f"`labels` run from {labels.min()} to {labels.max()} with {len(classes)} classes",
    )
    names = classes.tolist()
    require(len(set(names)) == len(names), "a name occurs twice in `classes`")
    images = Images([names[label] for label in labels], partial(_load_encoded, str(path), data, offsets))
    return images.subset(np.flatnonzero(~is_test)), images.subset(np.flatnonzero(is_test))


def digits(seed: int = 0) -> tuple[Images, Images]:
    """scikit-learn's handwritten digits: 1,797 grey images of 8 by 8 pixels, classes "0" to "9".

    Four fifths of every class to train on and one fifth to test on, drawn with `seed`.

    >>> train, test = digits()
    >>> len(train), len(test), train[0][0].size
    (1438, 359, (8, 8))
    """
    from sklearn.datasets import load_digits  # not at the top: it takes seconds on a small machine

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return arrays(pixels, bunch.target).split(0.8, seed)


def photographs(count: int, seed: int = 0) -> Images:
    """Square crops, at random places and scales, of the two photographs that come with scikit-learn.

    Real pictures that are always at hand, to verify an exported graph on.

    >>> len(photographs(5))
    5
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    originals = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    crop = Augmentation()
    crops = [crop(originals[i % len(originals)], (256, 256), rng) for i in range(count)]
    return Images(["photograph"] * count, crops.__getitem__)


def load(source: str | Path, seed: int = 0) -> tuple[Images, Images]:
    """Training and test images by name: "digits", a `.npz` file, or a folder.

    See `digits`, `npz` and `folder_splits`; `seed` draws the test images where the source
    has none of its own. Raises `ValueError` for anything else.
    """
    if source == "digits":
        return digits(seed)
    path = Path(source)
    if path.suffix.lower() == ".npz":
        return npz(path)
    if path.is_dir():
        return folder_splits(path, seed)
    raise ValueError(
        f"'{source}' is not a data set; expected 'digits', a .npz file, or a folder that exists "
        f"(of class folders, or of train/ and test/ or val/ with class folders in each)"
    )


def _pair(data: Any, index: int) -> tuple[Any, Any]:
    item = data[index]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(
            f"item {index} is {type(item).__name__}; expected an (image, label) pair "
            f"(for an array of images and one of labels, use `everlearn.data.arrays`)"
        )
    return item[0], item[1]


def _name(label: Any, classes: Sequence[Any] | None, index: int) -> Any:
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
    name = _name(label, classes, index)
    if name != names[index]:
        raise ValueError(
            f"item {index} has label {name!r} now and {names[index]!r} before; a data set must give the "
            f"same label every time, also in `targets` or `labels` (a `target_transform` may break that)"
        )
    return _to_rgb(image, f"image {index}")


def _load_array(images: NDArray[np.uint8], index: int) -> Image.Image:
    return _to_rgb(images[index], f"image {index}")


def _load_file(files: Sequence[Path], index: int) -> Image.Image:
    return _to_rgb(open_image(files[index]), f"'{files[index]}'")


def _load_encoded(path: str, data: NDArray[np.uint8], offsets: NDArray[np.int64], index: int) -> Image.Image:
    encoded = data[offsets[index] : offsets[index + 1]].tobytes()
    what = f"image {index} of '{path}'"
    try:
        image = decode(BytesIO(encoded))
    except ValueError as error:
        raise ValueError(f"{what} cannot be decoded: {error}") from error
    return _to_rgb(image, what)


def _to_rgb(image: Any, what: str) -> Image.Image:
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


def _visible(directory: str | Path) -> list[Path]:
    return sorted(entry for entry in Path(directory).iterdir() if not entry.name.startswith("."))


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:10]) + (", ..." if len(names) > 10 else "")
