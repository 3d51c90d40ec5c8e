"""From any picture to what a graph takes in; workstation and device share this code to the pixel."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.arrays import as_array
from everlearn_runtime.decoding import is_pil, open_image, pixels, to_rgb
from everlearn_runtime.tensors import is_tensor, pictures_of, pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["InputSpec", "open_image", "prepare", "prepare_batch", "to_rgb"]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CROPS = ("center", "squash", "border")
CHANNELS = ("rgb", "bgr")
LARGEST_SIDE = 1 << 14
# What one call takes at most: images, and their bytes at the graph's size.
MOST_IMAGES = 1 << 16
MOST_BYTES = 1 << 30
# A picture so many times longer than wide is resized only where the cut is.
STRIP = 16


@dataclass(frozen=True)
class InputSpec:
    """What a graph takes in: uint8 NHWC RGB of a fixed height and width, any batch size.

    Scaling and normalisation are inside the graph. A picture comes to this size by
    :func:`prepare`: it is resized, then the centre is cut out. How it is resized is ``crop``, with
    timm's names:

    ``center``
        Its shorter side becomes ``resize``; what lies outside of the cut is lost.
    ``squash``
        Both sides are drawn to the shape of the cut, whose longer side becomes ``resize``.
    ``border``
        The whole picture fits into that shape; the rest is filled.

    Args:
        height: Pixels from top to bottom.
        width: Pixels from left to right.
        resize: As above, at least ``height`` and ``width``.
        interpolation: One of ``nearest``, ``bilinear``, ``bicubic``, ``lanczos`` (antialiased).
        crop: ``center``, ``squash`` or ``border``.
        fill: The colour of the border, RGB from 0 to 255; black, where there is none.

    Raises:
        ValueError: A field is of the wrong type or out of range.

    >>> InputSpec(224, 224, resize=256)
    InputSpec(height=224, width=224, resize=256, interpolation='bicubic', crop='center', fill=(0, 0, 0))
    """

    height: int
    width: int
    resize: int
    interpolation: str = "bicubic"
    crop: str = "center"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        for name in ("height", "width", "resize"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= LARGEST_SIDE:
                raise ValueError(
                    f"{name} is {reprlib.repr(value)}; give whole pixels, from 1 to {LARGEST_SIDE}"
                )
        if self.resize < max(self.height, self.width):
            raise ValueError(
                f"resize is {self.resize}, smaller than the crop of {self.height} x {self.width}; "
                f"make it at least {max(self.height, self.width)}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation is {reprlib.repr(self.interpolation)}; use one of {', '.join(INTERPOLATIONS)}"
            )
        if self.crop not in CROPS:
            raise ValueError(f"crop is {reprlib.repr(self.crop)}; use one of {', '.join(CROPS)}")
        if (
            not isinstance(self.fill, (tuple, list))
            or len(self.fill) != 3
            or any(type(value) is not int or not 0 <= value <= 255 for value in self.fill)
        ):
            raise ValueError(f"fill is {reprlib.repr(self.fill)}; give three whole numbers from 0 to 255")
        object.__setattr__(self, "fill", tuple(self.fill))
        if any(self.fill) and self.crop != "border":
            raise ValueError(f"fill is {self.fill}, but crop={self.crop!r} fills nothing; leave it out")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image, (height, width, 3)."""
        return (self.height, self.width, 3)

    def check(self, images: object) -> NDArray[np.uint8]:
        """Hand back a batch as an array if the graph can take it in.

        Args:
            images: uint8 (B, height, width, 3), or a list of B arrays (height, width, 3).

        Returns:
            The same pixels as a C-ordered uint8 array (B, height, width, 3).

        Raises:
            ValueError: Wrong shape, wrong dtype, NaN pixels, or no image at all.
        """
        wanted = f"uint8 images of shape (batch, {self.height}, {self.width}, 3)"
        batch = _uint8(images, wanted)
        if batch.shape == self.shape:
            raise ValueError(
                f"one image without a batch axis, shape {batch.shape}; give images[None]: {wanted}"
            )
        if batch.ndim != 4 or batch.shape[1:] != self.shape:
            raise ValueError(f"the images have shape {batch.shape}; give {wanted}, see prepare()")
        self.check_number(len(batch))
        return np.ascontiguousarray(batch)

    def check_number(self, images: int) -> None:
        """Raise a ``ValueError`` if these are no images, or too many for one call."""
        most = min(MOST_IMAGES, max(MOST_BYTES // (self.height * self.width * 3), 1))
        if images == 0:
            raise ValueError("the batch is empty; give at least one image")
        if images > most:
            raise ValueError(f"{images:,} images at once; give at most {most:,} of this size in a call")

    def _resized(self, rows: int, columns: int) -> tuple[int, int]:
        """Height and width to which a whole picture is resized, before the cut."""
        if self.crop == "center":  # in whole numbers: 103 times 256 / 103 is less than 256
            shorter = min(rows, columns)
            return self.resize * rows // shorter, self.resize * columns // shorter
        longer = max(self.height, self.width)
        height, width = self.resize * self.height // longer, self.resize * self.width // longer
        if self.crop == "squash":
            return height, width
        ratio = max(rows / height, columns / width)
        return max(round(rows / ratio), 1), max(round(columns / ratio), 1)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON object, ``fill`` only where there is a border: as older versions read it."""
        data = asdict(self)
        if self.crop == "border":
            data["fill"] = list(self.fill)
        else:
            del data["fill"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        """The reverse of :meth:`to_dict`.

        Raises:
            ValueError: A field is missing, unknown or wrong.

        >>> spec = InputSpec(64, 64, resize=64)
        >>> InputSpec.from_dict(spec.to_dict()) == spec
        True
        """
        names = {field.name for field in fields(cls)}
        if set(data) | {"fill"} != names:
            raise ValueError(
                f"an input spec has the fields {sorted(names)}; these came: {reprlib.repr(sorted(data))}"
            )
        return cls(**data)


def prepare(image: Image | NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """One picture as one row of a batch: upright, RGB, resized, centre cut out.

    To the pixel what torchvision's ``Resize`` and ``CenterCrop`` make of a PIL image, and for the
    other crops what timm makes. (Of a picture more than 16 times longer than wide only the part
    that is kept is resampled, so that it cannot ask for gigabytes; a pixel may differ by rounding.)

    Args:
        image: A PIL image of 8 bits a channel, or a uint8 array (H, W), (H, W, 1) or (H, W, 3).
            Grey becomes RGB; an alpha channel is dropped.
        spec: What the graph takes in.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: Not such a picture.
        MissingExtra: Pillow is not installed, and the picture has another size.
    """
    if not is_pil(image):
        plain = pixels(image)
        if plain.shape[:2] == spec.shape[:2] == spec._resized(*plain.shape[:2]):
            return np.array(np.broadcast_to(plain if plain.ndim == 3 else plain[:, :, None], spec.shape))
    picture = to_rgb(image)
    import PIL.Image

    columns, rows = picture.size
    filter = PIL.Image.Resampling[spec.interpolation.upper()]
    down, across = spec._resized(rows, columns)
    top, left = _start(down, spec.height), _start(across, spec.width)
    if max(down, across) > STRIP * spec.resize:
        box = (
            left * columns / across,
            top * rows / down,
            (left + spec.width) * columns / across,
            (top + spec.height) * rows / down,
        )
        cut = picture.resize((spec.width, spec.height), filter, box=box)
    else:
        cut = PIL.Image.new("RGB", (spec.width, spec.height), spec.fill)
        cut.paste(picture.resize((across, down), filter), (-left, -top))
    return np.array(cut, dtype=np.uint8)


def prepare_batch(images: object, spec: InputSpec, *, channels: str = "rgb") -> NDArray[np.uint8]:
    """Whatever cameras and files give, one picture or many, as a batch that a graph takes in.

    Each picture becomes what :func:`prepare` makes of it. An array of exactly (height, width, 3)
    counts as prepared already and stays as it is, which needs no Pillow; to have a picture of that
    size resized and cut like any other, pass it through :func:`prepare`.

    Args:
        images: One of

            - one picture: a PIL image, the path of an image file, a uint8 array (H, W), (H, W, 1)
              or (H, W, 3) of any size, or a torch tensor (H, W), (1, H, W) or (3, H, W), uint8 or
              float from 0 to 1;
            - a list or tuple of such pictures, of mixed kinds and sizes;
            - a uint8 array (B, H, W, 3) or (B, H, W, 1), or a tensor (B, 3, H, W) or (B, 1, H, W).

            An array of three axes is one picture with its channels last, never a batch of grey
            ones: where the last axis is neither 1 nor 3 it is refused.
        spec: What the graph takes in.
        channels: The order in arrays, ``"rgb"`` or ``"bgr"`` (OpenCV). PIL images and files say
            their own, and are refused beside ``"bgr"``.

    Returns:
        uint8 (B, height, width, 3), RGB, C-ordered.

    Raises:
        ValueError: No such pictures, or more than 65,536 of them, or than fit into 1 GiB at the
            graph's size; nothing of that size is made before.
        MissingExtra: A picture has another size and Pillow is not installed.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels is {channels!r}; give 'rgb' or 'bgr'")
    pictures = _pictures(images)
    spec.check_number(len(pictures))
    if isinstance(pictures, np.ndarray) and pictures.shape[1:] == spec.shape:
        batch = pictures
    else:
        batch = np.empty((len(pictures), *spec.shape), np.uint8)
        for place, picture in enumerate(pictures):
            try:
                batch[place] = _row(picture, spec, channels)
            except ValueError as error:
                raise ValueError(f"image {place}: {error}" if len(pictures) > 1 else str(error)) from error
    return np.ascontiguousarray(batch if channels == "rgb" else batch[..., ::-1])


def _pictures(images: object) -> Any:
    """The single pictures in what :func:`prepare_batch` takes."""
    if isinstance(images, (list, tuple)):
        return images
    if isinstance(images, (str, Path)) or is_pil(images):
        return [images]
    if is_tensor(images):
        return pictures_of(images)
    array = _uint8(
        images,
        "PIL images, paths, uint8 arrays (H, W), (H, W, 3) or (batch, H, W, 3), or a list of such",
    )
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3)):
        return [array]
    if array.ndim == 3:
        raise ValueError(
            f"the images have shape {array.shape}, which may be one or many; give grey pictures as "
            "images[..., None], pictures with their channels first as images.transpose(1, 2, 0), "
            "and those with an alpha channel as images[..., :3]"
        )
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise ValueError(
            f"the images have shape {array.shape}; give (batch, H, W, 3) or (batch, H, W, 1): pictures "
            "with their channels first as images.transpose(0, 2, 3, 1), and those with an alpha channel "
            "as images[..., :3]"
        )
    return array


def _row(picture: object, spec: InputSpec, channels: str) -> NDArray[np.uint8]:
    """One picture as :func:`prepare` makes it, or as it is where it is prepared already."""
    if isinstance(picture, (str, Path)) or is_pil(picture):
        if channels != "rgb":
            raise ValueError(
                f"channels={channels!r} is for arrays; PIL images and files say their own order, leave it out"
            )
        return prepare(open_image(picture) if isinstance(picture, (str, Path)) else picture, spec)
    array = pixels_of(picture) if is_tensor(picture) else as_array(picture, "the pixels")
    if array.dtype == np.uint8 and array.shape == spec.shape:
        return array
    return prepare(array, spec)


def _uint8(images: object, wanted: str) -> NDArray[np.uint8]:
    """An array of uint8, whatever its shape, and no more memory than came."""
    try:
        array = as_array(images, "the images")
    except ValueError as error:
        raise ValueError(f"{error}; give {wanted}") from error
    if array.dtype == object:
        raise ValueError(f"the images are objects ({type(images).__name__}); give {wanted}")
    if array.dtype != np.uint8:
        if array.dtype.kind == "f" and array.nbytes <= MOST_BYTES and np.isnan(array).any():
            raise ValueError(f"the images are {array.dtype} and hold NaN pixels; give {wanted}")
        raise ValueError(f"the images are {array.dtype}; give {wanted}, with values from 0 to 255")
    return cast("NDArray[np.uint8]", array)


def _start(whole: int, cut: int) -> int:
    """Where a cut in the middle begins; negative, where it is the larger."""
    return round((whole - cut) / 2) if whole >= cut else -((cut - whole) // 2)
