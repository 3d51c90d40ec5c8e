"""Pictures without labels, one or many, as a camera, OpenCV, Pillow, torch or a disk gives them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from everlearn.data.finding import visible
from everlearn.data.folders import loose_images
from everlearn.data.images import Images, is_tensor
from everlearn.data.pairs import as_images
from everlearn_runtime.images import CHANNELS, _pictures
from everlearn_runtime.tensors import pictures_of


def any_images(images: Any, *, channels: str = "rgb") -> tuple[Images, bool]:
    """Pictures with or without labels as `Images`, and whether they have labels of their own.

    Args:
        images: One of

            - one picture: a PIL image, the path of an image file, a uint8 array (H, W), (H, W, 1) or
              (H, W, 3), or a torch tensor (H, W), (1, H, W) or (3, H, W), uint8 or float from 0 to 1;
            - a list or tuple of such pictures, of mixed kinds and sizes, or the path of a folder with image
              files and no folders in it, in the order of their names;
            - a uint8 array (B, H, W, 1) or (B, H, W, 3), or a tensor (B, 1, H, W) or (B, 3, H, W);
            - anything that `as_images` takes: a data set with labels, which has its test images in a
              folder with train/ and test/.

            An array of three axes is one picture with its channels last, never a batch of grey ones:
            where the last axis is neither 1 nor 3 it is refused.
        channels: the order in arrays and tensors, `"rgb"` or `"bgr"` (OpenCV). PIL images, files and
            data sets say their own, and are refused beside `"bgr"`.

    Raises `ValueError` for anything else.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels is {channels!r}; give 'rgb' or 'bgr'")
    if isinstance(images, (str, Path)) and Path(images).is_dir():
        if not visible(Path(images)):
            raise ValueError(f"'{images}' is an empty folder; give one with images, or with class folders")
        images = loose_images(Path(images)) or images
    if _is_labelled(images):
        if channels != "rgb":
            raise ValueError(
                f"channels={channels!r} is for arrays; a data set says its own order, leave it out"
            )
        return as_images(images, part="test"), True
    pictures = pictures_of(images) if is_tensor(images) else _pictures(images)
    if len(pictures) == 0:
        raise ValueError("there is no image; give at least one")
    return Images(["unlabelled"] * len(pictures), partial(_picture, pictures, channels)), False


def _is_labelled(images: Any) -> bool:
    if isinstance(images, (np.ndarray, Image.Image)) or is_tensor(images):
        return False
    if isinstance(images, (str, Path)):
        return str(images) == "digits" or Path(images).suffix.lower() == ".npz" or Path(images).is_dir()
    if isinstance(images, (list, tuple)):
        return bool(images) and (isinstance(images[0], Mapping) or _is_pair(images[0]))
    return hasattr(images, "__len__") and hasattr(images, "__getitem__") and not isinstance(images, bytes)


def _is_pair(item: Any) -> bool:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        return False
    label = item[1]
    if isinstance(label, str):
        return True
    try:
        operator.index(label)
    except TypeError:
        return False
    return True


def _picture(pictures: Any, channels: str, index: int) -> Any:
    picture = pictures[index]
    if channels == "rgb":
        return picture
    if is_tensor(picture):
        return picture.flip(0) if picture.ndim == 3 and picture.shape[0] == 3 else picture
    if isinstance(picture, np.ndarray):
        return picture[..., ::-1] if picture.ndim == 3 and picture.shape[2] == 3 else picture
    raise ValueError(
        f"image {index}: channels={channels!r} is for arrays; PIL images and files say their own order, "
        "leave it out"
    )
