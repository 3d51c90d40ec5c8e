"""From image files and PIL images to plain RGB, by one rule for every entrance.

A picture is turned upright as its camera noted (EXIF), grey is repeated, an alpha channel dropped; of
an animation or a file of several pages it is the first. More than 8 bits a channel are refused, never
cut: where white lies in 16 bits is not written in the file, and a picture of a 12-bit camera would come
out nearly black.
"""

from __future__ import annotations

import glob
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.arrays import as_array
from everlearn_runtime.errors import MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""What is taken for an image file in a folder, in lower or upper case."""

# Pillow's own limit for files, which holds for arrays too.
LARGEST_PICTURE = 89_478_485
ORIENTATION = 0x0112
# What follows "ftyp" in the files of iPhones and other cameras, which Pillow reads by pillow-heif only.
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
# Bits a channel stand behind the semicolon of Pillow's raw modes; BGR;15 and BGR;16 have 5 and 6.
_DEEP = re.compile(r"(?!BGR)[A-Za-z]+;(12|16|32|64)")


def open_image(path: str | Path) -> Image:
    """Read an image file, turned upright as its camera noted.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        A loaded PIL image.

    Raises:
        ValueError: No file there, not an image, cut short, of more than 8 bits a channel, or so
            large when unpacked that Pillow takes it for an attack; the message names the file.
        MissingExtra: Pillow is not installed.
    """
    need_pillow("reading image files")
    if (missing := no_file(path)) is not None:
        raise ValueError(f"{path}: {missing}")
    try:
        return decode(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def no_file(path: str | Path) -> str | None:
    """Why there is no file to be read at a path; None where there is one."""
    try:
        here = Path(path)
        if here.is_file():
            return None
        if here.is_dir():
            return "a folder, not a file; give the files in it"
        if here.exists():
            return "no ordinary file"
        return "a link to nowhere" if here.is_symlink() else _no_match(str(path))
    except (OSError, ValueError):  # no rights to look, or no name a file could have
        return "no such file"


def _no_match(path: str) -> str:
    """What to say of a path where nothing is: it may be a pattern that a shell has found nothing for."""
    if not glob.has_magic(path):
        return "no such file"
    found = next(glob.iglob(path), None)
    if found is None:
        return "no file matches this pattern"
    return f"a pattern, which {found} matches; give the files themselves, as a shell does without quotes"


def decode(file: str | Path | IO[bytes]) -> Image:
    """Read an image from a path or an open file, as :func:`open_image`; the messages name no file."""
    need_pillow("reading image files")
    with no_bombs():
        return decoded(file)


@contextmanager
def no_bombs() -> Iterator[None]:
    """Make Pillow's limit a limit: between once and twice as many pixels it only warns.

    Warnings belong to all threads of a process, so where several call :func:`decoded`, this goes around
    all of them.
    """
    import PIL.Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        yield


def decoded(
    file: str | Path | IO[bytes], *, small: bool = False, formats: tuple[str, ...] | None = None
) -> Image:
    """What :func:`decode` gives, to be called inside :func:`no_bombs`.

    Args:
        file: A path or an open file.
        small: Of a JPEG give an eighth of its size, in a third of the time; what is damaged is found
            all the same.
        formats: Those that are taken, by Pillow's names; None: all that it reads.
    """
    import PIL.Image

    try:
        with _opened(file) if formats is None else PIL.Image.open(file, formats=formats) as image:
            if (found := deep(image)) is None:
                if small:
                    image.draft("RGB", (1, 1))
                image.load()
                picture = upright(image)
                return picture.copy() if picture is image else picture  # without the closed file
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"too large an image ({error})") from error
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise ValueError(f"not a readable image{_because(error, file)}") from error
    raise ValueError(found)


def _because(error: Exception, file: str | Path | IO[bytes]) -> str:
    """Why a file cannot be read, without its name and numbers, so that the same is said in one way."""
    if isinstance(error, OSError) and error.errno is not None:
        return f" ({error.strerror})"
    text, head = " ".join(str(error).split()), _head(file)
    if not head:
        return ": empty"
    if head.startswith(b"\x93NUMPY"):
        return ": an array; give what numpy.load reads from it"
    if "cannot identify image file" in text:
        return ", whatever its name says"
    if "image file is truncated" in text or "unrecognized data stream" in text:
        return ": cut short"
    return f" ({text})"


def form_of(path: str | Path) -> str | None:
    """The format of an image file by its content, whatever its name says; None where it is none."""
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]) as image:
            return str(image.format)
    except Exception:  # whatever a file that is no image makes Pillow raise
        return None


def _opened(file: str | Path | IO[bytes]) -> Image:
    """What Pillow opens, with pillow-heif's help where that is needed and there."""
    import PIL.Image

    try:
        return PIL.Image.open(file)
    except PIL.UnidentifiedImageError:
        if not _is_heif(file):
            raise
    try:
        import pillow_heif
    except ImportError:
        raise ValueError("HEIC, which Pillow reads with pillow-heif only: pip install pillow-heif") from None
    pillow_heif.register_heif_opener()
    return PIL.Image.open(file)


def _is_heif(file: str | Path | IO[bytes]) -> bool:
    head = _head(file)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF


def _head(file: str | Path | IO[bytes]) -> bytes:
    """The first twelve bytes."""
    if isinstance(file, (str, Path)):
        with open(file, "rb") as opened:
            return opened.read(12)
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return head


def to_rgb(image: Image | NDArray[np.uint8]) -> Image:
    """The picture upright and in RGB, whatever it came as: grey is repeated, an alpha channel dropped.

    Args:
        image: A PIL image of 8 bits a channel, or a uint8 array (H, W), (H, W, 1) or (H, W, 3).

    Raises:
        ValueError: Not such a picture, or one whose file turns out to be damaged.
        MissingExtra: Pillow is not installed.
    """
    need_pillow("converting images")
    import PIL.Image

    if not is_pil(image):
        return PIL.Image.fromarray(pixels(image)).convert("RGB")
    if (found := deep(image)) is not None:
        raise ValueError(found)
    if image.width == 0 or image.height == 0:
        raise ValueError(f"the image has no pixels: {image.width} x {image.height}")
    try:
        image.load()  # opened, but not read yet
        picture = upright(image)
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return picture.convert("RGB")
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise ValueError(f"the image of mode {image.mode} cannot become RGB ({error})") from error


def upright(image: Image) -> Image:
    """A loaded picture turned as its camera noted, that note gone; itself, if there is nothing to turn."""
    from PIL import ImageOps

    if image.format == "TIFF":  # turned by Pillow as it loads, which in 10.0 leaves the note
        return image
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # a damaged note says nothing about the pixels
        return image
    return ImageOps.exif_transpose(image) if turned else image


def deep(image: Image) -> str | None:
    """What to say of a picture with more than 8 bits a channel; None where it has no more.

    Pillow itself cuts 16-bit colour to 8 bits in silence, so this must look before it loads.
    """
    found = image.mode if re.match("[IF](;|$)", image.mode) else None
    for tile in getattr(image, "tile", ()):
        codec, details = tile[0], tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if codec == "SGI16":
            found = found or codec
        for detail in details:
            if isinstance(detail, str) and _DEEP.match(detail):
                found = found or detail
            elif codec.startswith("ppm") and isinstance(detail, int) and detail > 255:
                found = found or f"values up to {detail}"
    if getattr(image, "tile", ()) and image.format in ("JPEG2000", "AVIF"):
        found = found or _compressed(image)
    if image.format == "HEIF" and (bits := image.info.get("bit_depth", 8)) > 8:
        found = found or f"{bits} bits"
    if found is None:
        return None
    return (
        f"the image has more than 8 bits a channel ({found}); bring it to 8 bits first, where you know which "
        "value is white"
    )


def _compressed(image: Any) -> str | None:
    """The depth of the two formats whose headers Pillow does not ask for it."""
    position = image.fp.tell()
    image.fp.seek(0)
    data: bytes = image.fp.read()
    image.fp.seek(position)
    if image.format == "AVIF":  # the third byte of the AV1 configuration has a bit for "high bit depth"
        flags = data[(place := data.find(b"av1C") + 4) + 2 : place + 3]
        return "10 or 12 bits" if place > 3 and flags and flags[0] & 0x40 else None
    place = data.find(b"\xff\x4f\xff\x51") + 40  # the number of components, then three bytes for each
    sizes = data[place + 2 : place + 2 + 3 * int.from_bytes(data[place : place + 2], "big") : 3]
    bits = max((size & 0x7F) + 1 for size in sizes) if place > 39 and sizes else 8
    return f"{bits} bits" if bits > 8 else None


def is_pil(image: object) -> TypeGuard[Image]:
    """Whether this is a PIL image; where Pillow has not been imported, nothing is."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def pixels(image: object) -> NDArray[np.uint8]:
    """A checked array (H, W) or (H, W, 3); raises like :func:`to_rgb`."""
    array = as_array(image, "the pixels")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not grey_or_rgb or array.size == 0:
        raise ValueError(
            f"the image is {array.dtype} of shape {array.shape}; "
            "give a PIL image or uint8 of shape (H, W), (H, W, 1) or (H, W, 3)"
        )
    rows, columns = array.shape[:2]
    if rows * columns > LARGEST_PICTURE:
        raise ValueError(f"the image has {rows} x {columns} pixels; give at most {LARGEST_PICTURE:,}")
    return array


def need_pillow(what: str) -> None:
    """Raise a :class:`MissingExtra` that says what was about to be done, where Pillow is missing."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtra(what, "images") from None
