"""Where images come from: arrays, folders, `.npz` files, and what is at hand with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everlearn.data.augmentation import Augmentation
from everlearn.data.images import Images, class_name, rgb_of
from everlearn_runtime.decoding import decode
from everlearn_runtime.images import open_image

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What `folder` takes for an image file, in lower or upper case."""

_NPZ_PARTS = {
    "data": np.uint8,
    "offsets": np.integer,
    "labels": np.integer,
    "is_test": np.bool_,
    "classes": np.str_,
}


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
    names = [class_name(label, None, i) for i, label in enumerate(labels)]
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


def _load_array(images: NDArray[np.uint8], index: int) -> Image.Image:
    return rgb_of(images[index], f"image {index}")


def _load_file(files: Sequence[Path], index: int) -> Image.Image:
    return rgb_of(open_image(files[index]), f"'{files[index]}'")


def _load_encoded(path: str, data: NDArray[np.uint8], offsets: NDArray[np.int64], index: int) -> Image.Image:
    encoded = data[offsets[index] : offsets[index + 1]].tobytes()
    what = f"image {index} of '{path}'"
    try:
        image = decode(BytesIO(encoded))
    except ValueError as error:
        raise ValueError(f"{what} cannot be decoded: {error}") from error
    return rgb_of(image, what)


def _visible(directory: str | Path) -> list[Path]:
    return sorted(entry for entry in Path(directory).iterdir() if not entry.name.startswith("."))
