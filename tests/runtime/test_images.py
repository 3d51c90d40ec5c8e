"""From pictures to batches."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from everlearn_runtime import InputSpec, open_image, prepare

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
        {"depth": 3},
    ],
    ids=str,
)
def test_a_wrong_spec_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        InputSpec.from_dict({**SPEC.to_dict(), **changes})


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
    with pytest.raises(ValueError, match="no such file"):
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
