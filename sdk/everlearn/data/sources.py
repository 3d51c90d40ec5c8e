"""Where images come from: arrays, `.npz` files, what is at hand with scikit-learn; by name, folders too."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everlearn.choices import CLASS_FOLDERS
from everlearn.data import looking
from everlearn.data.augmentation import Augmentation
from everlearn.data.folders import folder, folder_splits, split_folders
from everlearn.data.images import Images, rgb_of
from everlearn.data.labels import class_name, label_list
from everlearn.data.looking import Left, Say
from everlearn_runtime.decoding import decode, decoded, to_rgb
from everlearn_runtime.names import check_name

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
    other than N, or a label that is neither a class name nor an int.

    >>> images = arrays(np.zeros((2, 8, 8), np.uint8), [7, 3])
    >>> images.labels, images[0][0].size
    (('7', '3'), (8, 8))
    """
    if not isinstance(images, np.ndarray):
        raise ValueError(
            f"images are {type(images).__name__}; expected a uint8 array (N, H, W), (N, H, W, 1) or "
            "(N, H, W, 3), or for images one by one a list of (image, label) pairs in place of `arrays`"
        )
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not grey_or_rgb or images.size == 0:
        raise ValueError(
            f"images are {images.dtype} {images.shape}; expected uint8 (N, H, W), (N, H, W, 1) or "
            f"(N, H, W, 3), with values 0 to 255 and no size 0"
        )
    names = [class_name(label, None, i) for i, label in enumerate(label_list(labels))]
    if len(names) != len(images):
        raise ValueError(f"{len(images)} images but {len(names)} labels; give one label for each image")
    return Images(names, images.__getitem__, partial(_array_content, images))


def npz(path: str | Path, *, on_error: str = "raise", say: Say | None = None) -> tuple[Images, Images]:
    """Training and test images from a `.npz` file of encoded images.

    It holds `data` (uint8, all files' bytes joined, JPEG or another format PIL
    reads), `offsets` (int, (N + 1,); image i is `data[offsets[i]:offsets[i + 1]]`), `labels`
    (int, (N,), positions in `classes`), `is_test` (bool, (N,)) and `classes` (str).
    The bytes are kept, and an image is decoded when it is asked for; but first every image is read once,
    and `on_error` and `say` are as in `everlearn.data.folder`.

    Raises `ValueError` when the file cannot be read, a part is missing or contradicts
    another, there are no training or no test images, or images cannot be read.
    """
    looking.check_on_error(on_error)
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
    for name in names:
        try:
            check_name(name)
        except ValueError as error:
            require(False, f"in `classes`, {error}")
    images = Images(
        [names[label] for label in labels],
        partial(_load_encoded, str(path), data, offsets),
        partial(_encoded, data, offsets),
    )
    usable = np.ones(len(images), np.bool_)
    if on_error != "later":
        bad = looking.broken(partial(_look, data, offsets), len(images))
        left = [Left(f"image {index}", why, "broken", loss=True) for index, why in bad.items()]
        if on_error == "raise":
            looking.refuse(left, len(images), str(path))
        looking.tell(left, str(path), say)
        usable[list(bad)] = False
        require(usable[is_test].any() and usable[~is_test].any(), "no image of one part can be read")
    return tuple(images.subset(np.flatnonzero(part & usable)) for part in (~is_test, is_test))  # type: ignore[return-value]


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


def load(
    source: str | Path, seed: int = 0, *, on_error: str = "raise", say: Say | None = None
) -> tuple[Images, Images]:
    """Training and test images by name: "digits", a `.npz` file, or a folder.

    See `digits`, `npz` and `folder_splits`, and `folder` for `on_error` and `say`; `seed` draws the test
    images where the source has none of its own. Raises `ValueError` for anything else.
    """
    if source == "digits":
        return digits(seed)
    path = Path(source)
    if path.suffix.lower() == ".npz":
        return npz(path, on_error=on_error, say=say)
    if path.is_dir():
        return folder_splits(path, seed, on_error=on_error, say=say)
    raise ValueError(
        f"'{source}' is not a data set; expected 'digits', a .npz file, or a folder that exists "
        f"({CLASS_FOLDERS})"
    )


def load_part(source: str | Path, part: str) -> Images:
    """The training or the test images of a source by name, see `load`; all of what is not divided.

    Args:
        source: as `load` takes it; a folder without train/ and test/ is one data set.
        part: ``"train"`` or ``"test"``.
    """
    if source != "digits" and Path(source).is_dir():
        parts = split_folders(Path(source))
        return folder(source if parts is None else parts[part == "test"])
    return load(source)[part == "test"]


def _array_content(images: NDArray[np.uint8], index: int) -> bytes:
    """`pixel_content` of an image, without a detour through Pillow."""
    pixels = images[index].reshape(*images.shape[1:3], -1)
    rgb = pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)
    size = json.dumps([images.shape[2], images.shape[1]]).encode()
    return b"".join([size, rgb.tobytes()])


def _load_encoded(path: str, data: NDArray[np.uint8], offsets: NDArray[np.int64], index: int) -> Image.Image:
    encoded = _encoded(data, offsets, index)
    what = f"image {index} of '{path}'"
    try:
        image = decode(BytesIO(encoded))
    except ValueError as error:
        raise ValueError(f"{what} cannot be decoded: {error}") from error
    return rgb_of(image, what)


def _look(data: NDArray[np.uint8], offsets: NDArray[np.int64], index: int) -> None:
    to_rgb(decoded(BytesIO(_encoded(data, offsets, index)), small=True))


def _encoded(data: NDArray[np.uint8], offsets: NDArray[np.int64], index: int) -> bytes:
    return bytes(data[offsets[index] : offsets[index + 1]])
