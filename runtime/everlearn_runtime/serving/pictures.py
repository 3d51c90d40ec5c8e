"""Pictures out of requests: formats that cameras and browsers write, and their size before their pixels."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.decoding import decoded, need_pillow
from everlearn_runtime.images import InputSpec, prepare
from everlearn_runtime.serving.limits import Limits, Refused

# By Pillow's names. Never all that Pillow knows: EPS starts Ghostscript, and what is rare is little tried.
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/bmp": "BMP"}


def unpack(data: Sequence[bytes], spec: InputSpec, limits: Limits) -> NDArray[np.uint8]:
    """Decode picture files, one at a time, to what the graph takes in.

    Args:
        data: The files' bytes.
        spec: What the graph takes in.
        limits: How large a picture may be, and how many there may be.

    Returns:
        uint8 (B, height, width, 3).

    Raises:
        Refused: 400 for what is no picture, 413 for too many or too large ones; nothing of their size has
            been allocated.
        MissingExtra: Pillow is not installed.
    """
    if not data:
        raise Refused(400, "no image; give at least one")
    if len(data) > limits.images:
        raise Refused(413, f"{len(data):,} images; give at most {limits.images} in a call")
    for number, one in enumerate(data):
        _check(one, number, limits)
    batch = np.empty((len(data), *spec.shape), np.uint8)
    for number, one in enumerate(data):
        try:
            batch[number] = prepare(decoded(io.BytesIO(one), formats=tuple(FORMATS.values())), spec)
        except ValueError as error:
            raise Refused(400, f"image {number}: {error}") from error
    return batch


def from_base64(texts: Sequence[object]) -> list[bytes]:
    """Bytes out of base64 (RFC 4648), as JSON carries them.

    Raises:
        Refused: 400, something else than such text.
    """
    found = []
    for number, text in enumerate(texts):
        try:
            if not isinstance(text, str):
                raise TypeError
            found.append(base64.b64decode(text, validate=True))
        except (TypeError, ValueError, binascii.Error):
            raise Refused(400, f"image {number} is no base64 text; give a picture file's bytes so") from None
    return found


def _check(data: bytes, number: int, limits: Limits) -> None:
    """Look at a picture's header."""
    need_pillow("reading pictures")
    import PIL.Image

    if not data:
        raise Refused(400, f"image {number} is empty")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=tuple(FORMATS.values())) as image:
            width, height = image.size
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise Refused(413, f"image {number} is too large ({error})") from None
    except Exception:  # whatever a damaged file makes a decoder raise
        raise Refused(400, f"image {number} is no readable {', '.join(FORMATS.values())} file") from None
    if width * height > limits.pixels:
        raise Refused(
            413, f"image {number} has {width} x {height} pixels; give at most {limits.pixels:,} in all"
        )
