"""One file of every kind that lies about in folders of pictures, each showing the same scene."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIC = Path(__file__).parent / "data" / "heic"


def make_kinds(folder: Path, scene: NDArray[np.uint8]) -> dict[str, Path]:
    """Write one file of every kind into a folder that is there.

    Args:
        folder: Where to.
        scene: What they show, uint8 (H, W, 3).

    Returns:
        The path of each, by what it is called in the table of the documents.
    """
    picture = Image.fromarray(scene)
    grey = picture.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise, which the pixels make good
    frames = [picture.quantize(64), Image.new("P", picture.size)]

    def saved(form: str, image: Image.Image = picture, **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    jpeg, png = saved("JPEG", quality=95), saved("PNG")
    contents: dict[str, tuple[str, bytes]] = {
        "JPEG": ("a.jpg", jpeg),
        "PNG": ("a.png", png),
        "GIF": ("a.gif", saved("GIF", picture.quantize(64))),
        "GIF, animated": ("moving.gif", saved("GIF", frames[0], save_all=True, append_images=frames[1:])),
        "WebP": ("a.webp", saved("WEBP", lossless=True)),
        "TIFF": ("a.tiff", saved("TIFF")),
        "TIFF, 16-bit grey": ("deep.tif", saved("TIFF", Image.fromarray(deep))),
        "TIFF, float": ("float.tif", saved("TIFF", Image.fromarray(np.asarray(grey, np.float32) / 255))),
        "BMP": ("a.bmp", saved("BMP")),
        "PPM": ("a.ppm", saved("PPM")),
        "HEIC": ("a.heic", (HEIC / "mug.heic").read_bytes()),
        "1-bit PNG": ("bits.png", saved("PNG", grey.convert("1"))),
        "palette PNG": ("palette.png", saved("PNG", picture.quantize(64))),
        "palette PNG, transparent": ("clear.png", saved("PNG", picture.quantize(64), transparency=0)),
        "grey JPEG": ("grey.jpg", saved("JPEG", grey)),
        "CMYK JPEG": ("cmyk.jpg", saved("JPEG", picture.convert("CMYK"), quality=95)),
        "RGBA PNG": ("rgba.png", saved("PNG", picture.convert("RGBA"))),
        "grey + alpha PNG": ("la.png", saved("PNG", picture.convert("LA"))),
        "JPEG turned by EXIF": (
            "turned.jpg",
            saved("JPEG", picture.transpose(Image.Transpose.ROTATE_90), quality=95, exif=turned.tobytes()),
        ),
        "PNG, 16-bit grey": ("deep.png", saved("PNG", Image.fromarray(deep))),
        "PNG, 16-bit RGB": ("deeper.png", _png(*picture.size[::-1], 16, bytes(scene.repeat(2, axis=2)))),
        "upper-case ending": ("B.JPG", jpeg),
        "PNG named .jpg": ("png.jpg", png),
        "no ending": ("picture", jpeg),
        "JPEG named .dat": ("picture.dat", jpeg),
        "cut short": ("short.jpg", jpeg[: len(jpeg) // 2]),
        "PNG cut short": ("short.png", png[: len(png) // 2]),
        "empty": ("empty.jpg", b""),
        "text named .jpg": ("text.jpg", b"not a picture\n"),
        "text": ("notes.txt", b"about the pictures\n"),
        "hidden": (".hidden.jpg", jpeg),
        "no pixels": ("none.png", _png(0, 0, 8, b"")),
        "too many pixels": ("bomb.png", _png(60_000, 60_000, 8, b"")),
    }
    paths = {}
    for kind, (name, data) in contents.items():
        (folder / name).write_bytes(data)
        paths[kind] = folder / name
    np.save(folder / "array.npy", scene)
    os.symlink(folder / "nowhere.jpg", folder / "link.jpg")
    (folder / "folder.jpg").mkdir()
    paths |= {".npy": folder / "array.npy", "link to nowhere": folder / "link.jpg"}
    paths |= {"folder named .jpg": folder / "folder.jpg", "no such file": folder / "gone.jpg"}
    return paths


def _png(height: int, width: int, bits: int, pixels: bytes) -> bytes:
    """A PNG of RGB, of any depth and any size in its header."""
    stride = len(pixels) // height if height else 0
    rows = b"".join(
        b"\0" + pixels[row * stride : (row + 1) * stride] for row in range(height if pixels else 0)
    )
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
