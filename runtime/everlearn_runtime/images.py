"""From any picture to what a graph takes in; workstation and device share this code to the pixel."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
LARGEST_SIDE = 1 << 14


@dataclass(frozen=True)
class InputSpec:
    """What a graph takes in: uint8 NHWC RGB of a fixed height and width, any batch size.

    Scaling and normalisation are inside the graph. A picture comes to this size by
    :func:`prepare`: its shorter side is resized to ``resize``, then the centre is cut out.

    Args:
        height: Pixels from top to bottom.
        width: Pixels from left to right.
        resize: The shorter side before the crop, at least ``height`` and ``width``.
        interpolation: One of ``nearest``, ``bilinear``, ``bicubic``, ``lanczos`` (antialiased).
        crop: Where the cut is taken; only ``center``.

    Raises:
        ValueError: A field is of the wrong type or out of range.

    >>> InputSpec(224, 224, resize=256)
    InputSpec(height=224, width=224, resize=256, interpolation='bicubic', crop='center')
    """

    height: int
    width: int
    resize: int
    interpolation: str = "bicubic"
    crop: str = "center"

    def __post_init__(self) -> None:
        for name in ("height", "width", "resize"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= LARGEST_SIDE:
                raise ValueError(f"{name} is {value!r}; give whole pixels, from 1 to {LARGEST_SIDE}")
        if self.resize < max(self.height, self.width):
            raise ValueError(
                f"resize is {self.resize}, smaller than the crop of {self.height} x {self.width}; "
                f"make it at least {max(self.height, self.width)}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation is {self.interpolation!r}; use one of {', '.join(INTERPOLATIONS)}"
            )
        if self.crop != "center":
            raise ValueError(f"crop is {self.crop!r}; only 'center' is known")

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
        try:
            batch = np.asarray(images)
        except (ValueError, TypeError) as error:
            raise ValueError(f"the images are not one array ({error}); give {wanted}") from None
        if batch.dtype == object:
            raise ValueError(
                f"the images are objects ({type(images).__name__}); give {wanted}, see prepare()"
            )
        if batch.dtype != np.uint8:
            if batch.dtype.kind == "f" and np.isnan(batch).any():
                raise ValueError(f"the images are {batch.dtype} and hold NaN pixels; give {wanted}")
            raise ValueError(f"the images are {batch.dtype}; give {wanted}, with pixels from 0 to 255")
        if batch.shape == self.shape:
            raise ValueError(
                f"one image without a batch axis, shape {batch.shape}; give images[None]: {wanted}"
            )
        if batch.ndim != 4 or batch.shape[1:] != self.shape:
            raise ValueError(f"the images have shape {batch.shape}; give {wanted}, see prepare()")
        if len(batch) == 0:
            raise ValueError("the batch is empty; give at least one image")
        return np.ascontiguousarray(batch)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)

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
        if set(data) != names:
            raise ValueError(f"an input spec has the fields {sorted(names)}; these came: {sorted(data)}")
        return cls(**data)


def prepare(image: Image | NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """One picture as one row of a batch: RGB, shorter side resized, centre cut out.

    Args:
        image: A PIL image of 8 bits a channel, or a uint8 array (H, W), (H, W, 1) or (H, W, 3).
            Grey becomes RGB; an alpha channel is dropped.
        spec: What the graph takes in.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: Not such a picture.
        MissingExtra: Pillow is not installed.
    """
    picture = to_rgb(image)
    from PIL.Image import Resampling

    columns, rows = picture.size
    scale = spec.resize / min(columns, rows)
    across = spec.resize if columns <= rows else int(columns * scale)
    down = spec.resize if rows <= columns else int(rows * scale)
    left, top = round((across - spec.width) / 2), round((down - spec.height) / 2)
    # Only the part that is kept is resampled: the same pixels as resizing everything first,
    # but a picture of 1 x 10,000 cannot ask for gigabytes.
    box = (
        left * columns / across,
        top * rows / down,
        (left + spec.width) * columns / across,
        (top + spec.height) * rows / down,
    )
    cut = picture.resize((spec.width, spec.height), Resampling[spec.interpolation.upper()], box=box)
    return np.array(cut, dtype=np.uint8)


def open_image(path: str | Path) -> Image:
    """Read an image file, turned upright as its camera noted.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        A loaded PIL image.

    Raises:
        ValueError: No file there, not an image, cut short, or so large when unpacked that
            Pillow takes it for an attack.
        MissingExtra: Pillow is not installed.
    """
    _need_pillow("reading image files")
    import PIL.Image
    from PIL import ImageOps

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            # Pillow only warns between once and twice its limit; here the limit is the limit.
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as image:
                picture = ImageOps.exif_transpose(image)
                picture.load()
                return picture
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: too large an image ({error})") from error
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise ValueError(f"{path}: not a readable image ({error})") from error


def to_rgb(image: Image | NDArray[np.uint8]) -> Image:
    """The picture in RGB, whatever it came as: grey is repeated, an alpha channel dropped.

    Args:
        image: A PIL image of 8 bits a channel, or a uint8 array (H, W), (H, W, 1) or (H, W, 3).

    Raises:
        ValueError: Not such a picture.
        MissingExtra: Pillow is not installed.
    """
    _need_pillow("converting images")
    import PIL.Image

    picture = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(_pixels(image))
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        raise ValueError(
            f"the image has mode {picture.mode}, more than 8 bits a channel; bring it to 8 bits first"
        )
    if picture.width == 0 or picture.height == 0:
        raise ValueError(f"the image has no pixels: {picture.width} x {picture.height}")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _need_pillow(what: str) -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtra(what, "images") from None


def _pixels(image: object) -> NDArray[np.uint8]:
    """A checked array (H, W) or (H, W, 3)."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not grey_or_rgb or array.size == 0:
        raise ValueError(
            f"the image is {array.dtype} of shape {array.shape}; "
            "give a PIL image or uint8 of shape (H, W), (H, W, 1) or (H, W, 3)"
        )
    return np.ascontiguousarray(array)
