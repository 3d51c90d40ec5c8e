"""From pictures to batches."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from everlearn_runtime import InputSpec, MissingExtra, open_image, prepare, prepare_batch
from everlearn_runtime.images import LARGEST_SIDE, MOST_BYTES, MOST_IMAGES, to_rgb

SPEC = InputSpec(8, 6, resize=10)


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(8, 6, 3), (40, 30, 3), (11, 97, 3), (97, 11, 3), (3, 3, 3), (10, 10, 3)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_prepare_is_resize_then_centre_crop(shape: tuple[int, ...], interpolation: str) -> None:
    spec = InputSpec(8, 6, resize=10, interpolation=interpolation)
    image = noise(*shape)
    found = prepare(image, spec)
    down, across = (
        (10, int(shape[1] * 10 / shape[0])) if shape[0] <= shape[1] else (int(shape[0] * 10 / shape[1]), 10)
    )
    whole = np.array(Image.fromarray(image).resize((across, down), Image.Resampling[interpolation.upper()]))
    top, left = round((down - 8) / 2), round((across - 6) / 2)
    wanted = whole[top : top + 8, left : left + 6]
    assert found.shape == (8, 6, 3)
    assert found.dtype == np.uint8
    if interpolation == "nearest":
        assert np.mean(found == wanted) > 0.8
    else:
        assert np.abs(found.astype(int) - wanted).max() <= 1


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    spec, image = InputSpec(8, 8, resize=8), noise(8, 8, 3)
    np.testing.assert_array_equal(prepare(image, spec), image)
    np.testing.assert_array_equal(prepare(Image.fromarray(image), spec), image)
    np.testing.assert_array_equal(prepare(image[::-1, ::-1], spec), image[::-1, ::-1])


def test_grey_and_transparent_become_rgb() -> None:
    spec, grey = InputSpec(8, 8, resize=8), noise(8, 8)
    for form in (grey, grey[:, :, None], Image.fromarray(grey), Image.fromarray(grey).convert("LA")):
        np.testing.assert_array_equal(prepare(form, spec), np.repeat(grey[:, :, None], 3, axis=2))
    palette = Image.fromarray(noise(8, 8, 3)).quantize(4)
    palette.info["transparency"] = b"\x00\xff\x00\xff"
    np.testing.assert_array_equal(prepare(palette, spec), np.array(palette.convert("RGBA"))[:, :, :3])


def test_a_thin_strip_does_not_ask_for_gigabytes() -> None:
    assert prepare(noise(1, 100_000, 3), InputSpec(224, 224, resize=224)).shape == (224, 224, 3)
    # The same part as of the whole, but for rounding.
    ramp = np.broadcast_to(np.linspace(0, 255, 1000).astype(np.uint8)[:, None, None], (1000, 20, 3))
    whole = np.array(Image.fromarray(ramp.copy()).resize((30, 1500), Image.Resampling.BILINEAR))
    found = prepare(ramp, InputSpec(24, 24, resize=30, interpolation="bilinear"))
    assert np.abs(found.astype(int) - whole[738:762, 3:27]).max() <= 1


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        "mug.png",
    ],
    ids=str,
)
def test_prepare_refuses_what_is_no_picture(image: Any) -> None:
    with pytest.raises(ValueError, match="give a PIL image or uint8"):
        prepare(image, SPEC)


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_prepare_refuses_more_than_eight_bits(mode: str) -> None:
    with pytest.raises(ValueError, match="8 bits"):
        prepare(Image.new(mode, (8, 8)), SPEC)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((2, 8, 6, 3)), "float64"),
        (np.full((2, 8, 6, 3), np.nan, np.float32), "NaN pixels"),
        (np.zeros((2, 8, 6, 3), np.int64), "int64"),
        (np.zeros((2, 6, 8, 3), np.uint8), r"shape \(2, 6, 8, 3\)"),
        (np.zeros((2, 3, 8, 6), np.uint8), r"shape \(2, 3, 8, 6\)"),
        (np.zeros((2, 8, 6), np.uint8), "shape"),
        (np.zeros((8, 6, 3), np.uint8), "batch axis"),
        (np.zeros((0, 8, 6, 3), np.uint8), "empty"),
        (np.array([None, "x"], dtype=object), "objects"),
        ([np.zeros((8, 6, 3)), np.zeros((7, 6, 3))], "not one array"),
        ([], "float64"),
        (None, "objects"),
        ("images", "<U6"),
    ],
)
def test_check_says_what_is_wrong_with_a_batch(images: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SPEC.check(images)


def test_check_takes_arrays_and_lists() -> None:
    batch = noise(2, 8, 6, 3)
    np.testing.assert_array_equal(SPEC.check(list(batch)), batch)
    turned = SPEC.check(batch[:, ::-1])
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, batch[:, ::-1])


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 0},
        {"height": 8.0},
        {"width": True},
        {"width": 10**9},
        {"resize": 7},
        {"interpolation": "cubic"},
        {"crop": "random"},
        {"fill": [1, 2]},
        {"fill": [1, 2, 256], "crop": "border"},
        {"fill": [1, 2, 3]},
        {"fill": None},
        {"depth": 3},
    ],
    ids=str,
)
def test_a_wrong_spec_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        InputSpec.from_dict({**SPEC.to_dict(), **changes})


def test_a_spec_without_a_border_is_written_as_it_always_was() -> None:
    old = {"height": 8, "width": 6, "resize": 10, "interpolation": "bicubic", "crop": "center"}
    assert SPEC.to_dict() == old
    assert InputSpec.from_dict(old) == SPEC
    framed = InputSpec(8, 6, resize=10, crop="border", fill=(1, 2, 3))
    assert framed.to_dict() == {**old, "crop": "border", "fill": [1, 2, 3]}
    assert InputSpec.from_dict(framed.to_dict()) == framed
    assert hash(InputSpec.from_dict(framed.to_dict())) == hash(framed)


def test_open_image_reads_upright(tmp_path: Path) -> None:
    image = Image.fromarray(noise(8, 6, 3))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.array(open_image(tmp_path / "a.png")), np.array(image))
    exif = Image.Exif()
    exif[0x0112] = 6  # held a quarter turn to the left
    image.save(tmp_path / "b.png", exif=exif)
    np.testing.assert_array_equal(np.array(open_image(tmp_path / "b.png")), np.rot90(np.array(image), -1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp", "bmp"])
def test_a_truncated_file_is_a_value_error_with_its_path(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mug.{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=rf"mug\.{suffix}: not a readable image"):
            open_image(path)


def test_other_files_are_value_errors(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("not an image")
    with pytest.raises(ValueError, match=r"a\.txt: not a readable image"):
        open_image(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="a folder, not a file; give the files in it"):
        open_image(tmp_path)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_a_value_error(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(ValueError, match=r"bomb\.png: too large"):
        open_image(path)


# Upright, from wherever it comes


def turned(orientation: int, form: str = "jpeg") -> tuple[bytes, NDArray[np.uint8]]:
    """A file whose EXIF says how it was held, and the same without that, as Pillow reads it."""
    exif, file, plain = Image.Exif(), io.BytesIO(), io.BytesIO()
    exif[0x0112] = orientation
    image = Image.fromarray(noise(8, 6, 3))
    image.save(file, form, exif=exif)
    image.save(plain, form)
    return file.getvalue(), np.array(Image.open(plain))


UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pil_image_is_turned_upright_once(orientation: int, form: str, tmp_path: Path) -> None:
    data, stored = turned(orientation, form)
    wanted = UPRIGHT[orientation](stored)
    height, width, _ = wanted.shape
    spec = InputSpec(height, width, resize=8, crop="squash")
    (tmp_path / "mug.jpg").write_bytes(data)
    opened = open_image(tmp_path / "mug.jpg")
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    before = loaded.tobytes()
    for picture in (
        opened,
        Image.open(io.BytesIO(data)),
        loaded,
        loaded,
        to_rgb(loaded),
        opened.convert("L"),
    ):
        found = prepare(picture, spec)
        if picture.mode == "L":
            assert found.shape == wanted.shape
        else:
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(prepare_batch(picture, spec)[0], found)
    assert loaded.tobytes() == before  # the caller's image stays as it is


@pytest.mark.parametrize(
    "note", [b"Exif\0\0", b"Exif\0\0XXXXXXXXXX", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"\xff"]
)
def test_a_damaged_exif_note_turns_nothing(note: bytes) -> None:
    image = Image.fromarray(noise(8, 6, 3))
    image.info["exif"] = note
    np.testing.assert_array_equal(prepare(image, InputSpec(8, 6, resize=8, crop="squash")), np.array(image))


# More than 8 bits


def png(bits: int, colour: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = b"".join(b"\0" + bytes(range(8 * channels * bits // 8)) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def tiff(channels: int, bits: int, kind: int) -> bytes:
    """An uncompressed TIFF of 4 x 4 pixels; kind 1 whole numbers, 3 floating point."""
    tags = [(256, 4), (257, 4), (259, 1), (262, 2 if channels == 3 else 1), (277, channels), (278, 4)]
    size, end = 16 * channels * bits // 8, 8 + 2 + 12 * 10 + 4
    entries = [struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags]
    for tag, value in ((258, bits), (339, kind)):
        where = end if tag == 258 else end + 6
        packed = (
            struct.pack("<HHIHH", tag, 3, 1, value, 0)
            if channels == 1
            else struct.pack("<HHII", tag, 3, 3, where)
        )
        entries.append(packed)
    entries += [struct.pack("<HHII", 273, 4, 1, end + 12), struct.pack("<HHII", 279, 4, 1, size)]
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", 10) + b"".join(entries) + struct.pack("<I", 0)
    return (
        b"II*\0\x08\0\0\0"
        + directory
        + struct.pack("<3H", *[bits] * 3)
        + struct.pack("<3H", *[kind] * 3)
        + bytes(size)
    )


def sgi() -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(file, "sgi", bpc=2)
    return file.getvalue()


def jpeg2000(bits: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(file, "jpeg2000")
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\x4f\xff\x51") + 42
    data[place] = data[place + 3] = data[place + 6] = bits - 1
    return bytes(data)


def avif(deep: bool) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(file, "avif")
    data = bytearray(file.getvalue())
    data[data.index(b"av1C") + 6] |= 0x40 * deep
    place = data.index(b"pixi") + 9  # which libavif wants to say the same
    data[place : place + 3] = bytes([10 if deep else 8] * 3)
    return bytes(data)


DEEP = {
    "grey.png": png(16, 0),
    "rgb.png": png(16, 2),
    "grey-alpha.png": png(16, 4),
    "rgba.png": png(16, 6),
    "rgb.tif": tiff(3, 16, 1),
    "grey.tif": tiff(1, 16, 1),
    "float.tif": tiff(1, 32, 3),
    "whole.tif": tiff(1, 32, 1),
    "rgb.ppm": b"P6 4 4 65535\n" + bytes(96),
    "ten.ppm": b"P6 4 4 1023\n" + bytes(96),
    "plain.ppm": b"P3 1 1 1023\n9 9 9\n",
    "grey.pgm": b"P5 4 4 65535\n" + bytes(32),
    "rgb.sgi": sgi(),
    "rgb.jp2": jpeg2000(12),
}
FLAT = {
    "grey.png": png(8, 0),
    "rgb.png": png(8, 2),
    "rgba.png": png(8, 6),
    "rgb.tif": tiff(3, 8, 1),
    "grey.tif": tiff(1, 8, 1),
    "rgb.ppm": b"P6 4 4 255\n" + bytes(48),
    "few.ppm": b"P6 4 4 7\n" + bytes(48),
    "plain.ppm": b"P3 1 1 255\n9 9 9\n",
    "bits.pbm": b"P1 2 1\n1 0\n",
    "rgb.jp2": jpeg2000(8),
}
if "avif" in features.get_supported():  # from Pillow 11.3 on
    DEEP["rgb.avif"], FLAT["rgb.avif"] = avif(True), avif(False)


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_refused_with_the_files_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DEEP[name])
    with pytest.raises(ValueError, match=rf"{name}: the image has more than 8 bits a channel"):
        open_image(tmp_path / name)
    with pytest.raises(ValueError, match=rf"image 1: .*{name}: the image has more than 8 bits"):
        prepare_batch([noise(8, 6, 3), tmp_path / name], SPEC)
    with Image.open(tmp_path / name) as opened, pytest.raises(ValueError, match="more than 8 bits a channel"):
        prepare(opened, SPEC)


@pytest.mark.parametrize("name", FLAT)
def test_eight_bits_and_fewer_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FLAT[name])
    wanted = prepare(open_image(tmp_path / name), SPEC)
    with Image.open(tmp_path / name) as opened:
        np.testing.assert_array_equal(prepare(opened, SPEC), wanted)
    np.testing.assert_array_equal(prepare_batch(str(tmp_path / name), SPEC)[0], wanted)


def test_a_bitmap_of_five_bits_a_channel_is_read(tmp_path: Path) -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 0, 4, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + header + b"\xff\x7f\0\0")
    np.testing.assert_array_equal(open_image(tmp_path / "a.bmp"), [[[255] * 3, [0] * 3]])


def test_an_opened_file_that_is_cut_short_is_a_value_error(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "mug.png")
    whole = (tmp_path / "mug.png").read_bytes()
    (tmp_path / "mug.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "mug.png") as opened, pytest.raises(ValueError, match="cannot become RGB"):
        prepare(opened, SPEC)


# Any picture


def test_one_picture_or_many_of_any_size(tmp_path: Path) -> None:
    rgb, grey, small = noise(40, 30, 3), noise(17, 90), noise(3, 4, 3)
    Image.fromarray(rgb).save(tmp_path / "mug.png")
    one = prepare(rgb, SPEC)
    for form in (
        rgb,
        rgb[None],
        [rgb],
        (rgb,),
        Image.fromarray(rgb),
        tmp_path / "mug.png",
        str(tmp_path / "mug.png"),
    ):
        found = prepare_batch(form, SPEC)
        np.testing.assert_array_equal(found, one[None])
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
    for form in (grey, grey[..., None], grey[None, ..., None], [grey], Image.fromarray(grey)):
        np.testing.assert_array_equal(prepare_batch(form, SPEC), prepare(grey, SPEC)[None])
    mixed = [rgb, grey, Image.fromarray(small), tmp_path / "mug.png", small]
    wanted = [one, prepare(grey, SPEC), prepare(small, SPEC), one, prepare(small, SPEC)]
    np.testing.assert_array_equal(prepare_batch(mixed, SPEC), wanted)
    np.testing.assert_array_equal(
        prepare_batch(np.stack([rgb, rgb[::-1]]), SPEC), [one, prepare(rgb[::-1], SPEC)]
    )


def test_what_has_the_graphs_size_counts_as_prepared() -> None:
    batch = noise(3, 8, 6, 3)
    np.testing.assert_array_equal(prepare_batch(batch, SPEC), batch)
    np.testing.assert_array_equal(prepare_batch(list(batch), SPEC), batch)
    np.testing.assert_array_equal(prepare_batch(batch[0], SPEC), batch[:1])
    np.testing.assert_array_equal(prepare_batch(batch[:, ::-1], SPEC), batch[:, ::-1])
    # A PIL image is a picture like any other, and so is a grey one.
    wanted = prepare(batch[0], SPEC)
    assert (wanted != batch[0]).any()
    np.testing.assert_array_equal(prepare_batch(Image.fromarray(batch[0]), SPEC)[0], wanted)
    np.testing.assert_array_equal(prepare_batch(batch[0, :, :, 0], SPEC)[0], prepare(batch[0, :, :, 0], SPEC))


def test_bgr_by_name() -> None:
    big, fitting, grey = noise(2, 40, 30, 3), noise(2, 8, 6, 3), noise(40, 30)
    for rgb in (big, fitting, [*big, *fitting], big[0]):
        bgr = [image[..., ::-1] for image in rgb] if isinstance(rgb, list) else rgb[..., ::-1]
        np.testing.assert_array_equal(prepare_batch(bgr, SPEC, channels="bgr"), prepare_batch(rgb, SPEC))
        assert prepare_batch(bgr, SPEC, channels="bgr").flags.c_contiguous
    np.testing.assert_array_equal(prepare_batch(grey, SPEC, channels="bgr"), prepare_batch(grey, SPEC))
    with pytest.raises(ValueError, match="channels is 'BGR'"):
        prepare_batch(big, SPEC, channels="BGR")
    with pytest.raises(ValueError, match="PIL images and files say their own order"):
        prepare_batch(Image.fromarray(big[0]), SPEC, channels="bgr")
    with pytest.raises(ValueError, match=r"image 1: .*PIL images and files say their own order"):
        prepare_batch([big[0], "mug.png"], SPEC, channels="bgr")


def test_what_fits_needs_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, fitting = InputSpec(8, 8, resize=8), noise(2, 8, 8, 3)
    wanted = [prepare(fitting[0, :, :, 0], spec)]
    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    np.testing.assert_array_equal(prepare_batch(fitting, spec), fitting)
    np.testing.assert_array_equal(prepare_batch(list(fitting), spec, channels="bgr"), fitting[..., ::-1])
    np.testing.assert_array_equal(prepare_batch(fitting[0, :, :, 0], spec), wanted)
    np.testing.assert_array_equal(prepare(fitting[0], spec), fitting[0])
    for picture in (noise(9, 8, 3), "mug.png"):
        with pytest.raises(MissingExtra, match=r'needs: pip install "everlearn\[images\]"$'):
            prepare_batch(picture, spec)


class Raising:
    """An object whose conversion raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self.error


PIXEL = np.uint8(1)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (noise(5, 40, 30), r"\(5, 40, 30\), which may.*\[\.\.\., None\].*transpose\(1, 2, 0\)"),
        (noise(3, 40, 30), "one or many"),
        (noise(40, 30, 4), r"\[\.\.\., :3\]"),
        (noise(2, 3, 40, 30), r"transpose\(0, 2, 3, 1\)"),
        (noise(2, 40, 30, 4), r"\[\.\.\., :3\]"),
        (noise(1, 2, 8, 6, 3), "shape"),
        (noise(8), "shape"),
        (PIXEL, "shape"),
        ([], "empty"),
        (np.zeros((0, 8, 6, 3), np.uint8), "empty"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        ([noise(8, 6, 3), np.zeros((8, 6, 3))], "image 1: the image is float64"),
        ([noise(8, 6, 3), noise(2, 8, 6, 3)], r"image 1: the image is uint8 of shape \(2, 8, 6, 3\)"),
        ([noise(8, 6, 3), None], "image 1: "),
        ([noise(8, 6, 3), "none.png"], "image 1: none.png: no such file"),
        ("none\0.png", "no such file"),
        (np.zeros((2, 8, 6, 3)), "float64"),
        (np.full((2, 8, 6, 3), np.nan), "NaN pixels"),
        (np.zeros((8, 6, 3), bool), "bool"),
        (np.zeros((8, 6, 3), np.uint16), "uint16"),
        (None, "objects"),
        ({1}, r"objects \(set\)"),
        ({"a": noise(8, 6, 3)}, r"objects \(dict\)"),
        (iter([noise(8, 6, 3)]), r"objects \(list_iterator\)"),
        (b"mug.png", "S7"),
        (Raising(RuntimeError("no")), r"not one array \(RuntimeError: no\); give"),
        ([Raising(MemoryError())], r"not one array \(MemoryError"),
        # None of these may be made in memory.
        (np.broadcast_to(PIXEL, (10**11, 8, 6, 3)), "images at once; give at most 65,536"),
        (np.broadcast_to(PIXEL, (10**11, 480, 640, 3)), "images at once"),
        (np.broadcast_to(PIXEL, (10**6, 10**6, 3)), "give at most 89,478,485"),
        (np.broadcast_to(PIXEL, (10**6, 10**6)), "give at most 89,478,485"),
        (np.broadcast_to(PIXEL, (2, 10**6, 10**6, 1)), "image 0: .*give at most 89,478,485"),
        (np.broadcast_to(np.float32(1), (10**11, 8, 6, 3)), "float32"),
        ([noise(8, 6, 3)] * (MOST_IMAGES + 1), "images at once"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_one_sentence(images: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        prepare_batch(images, SPEC)


def test_what_check_refuses_it_does_not_make() -> None:
    for images in (np.broadcast_to(PIXEL, (10**11, 8, 6, 3)), Raising(RuntimeError("no"))):
        with pytest.raises(ValueError, match=r"images at once|not one array"):
            SPEC.check(images)


def test_an_interrupt_is_no_mistake_of_the_caller() -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare_batch(Raising(KeyboardInterrupt()), SPEC)


def test_a_batch_is_limited_by_its_bytes() -> None:
    spec = InputSpec(1024, 1024, resize=1024)
    most = MOST_BYTES // (1024 * 1024 * 3)
    with pytest.raises(ValueError, match=rf"{most + 1} images at once; give at most {most} of this size"):
        prepare_batch(np.broadcast_to(PIXEL, (most + 1, 1024, 1024, 3)), spec)
    with pytest.raises(ValueError, match="at most 1 of this size"):
        prepare_batch([PIXEL] * 2, InputSpec(LARGEST_SIDE, LARGEST_SIDE, resize=LARGEST_SIDE))
