import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from everlearn.data.augmentation import Augmentation


def gradient(width: int, height: int) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_gives_the_size_and_depends_on_its_generator_alone(
    width: int, height: int, to_height: int, to_width: int, seed: int
) -> None:
    image = gradient(width, height)
    one = Augmentation()(image, (to_height, to_width), np.random.default_rng(seed))
    assert (one.mode, one.size) == ("RGB", (to_width, to_height))
    np.random.seed(seed % 7)
    random.seed(seed % 7)
    again = Augmentation()(image, (to_height, to_width), np.random.default_rng(seed))
    assert one.tobytes() == again.tobytes()
    assert image.tobytes() == gradient(width, height).tobytes()


def test_takes_parts_of_the_size_and_ratio_asked_for() -> None:
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(500):
        # Red and green rise by 255 over the whole image, so their rise gives the part's size.
        view = Augmentation(scale=(0.05, 1.0), flip=False)(gradient(256, 256), (64, 64), rng)
        pixels = np.asarray(view, dtype=np.float64)
        width = (pixels[32, -1, 0] - pixels[32, 0, 0]) / 255 * 64 / 63
        height = (pixels[-1, 32, 1] - pixels[0, 32, 1]) / 255 * 64 / 63
        shares.append(width * height)
        ratios.append(width / height)
    assert 0.04 < min(shares) < 0.1
    assert 0.9 < max(shares) < 1.03
    assert 0.70 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.43


def test_mirrors_half_of_the_time_or_never() -> None:
    rng = np.random.default_rng(0)

    def rises(flip: bool) -> float:
        images = [Augmentation(flip=flip)(gradient(32, 32), (8, 8), rng) for _ in range(400)]
        return float(np.mean([image.getpixel((0, 4)) < image.getpixel((7, 4)) for image in images]))  # type: ignore[operator]

    assert rises(flip=False) == 1
    assert 0.4 < rises(flip=True) < 0.6


def test_falls_back_to_the_centre_when_nothing_fits() -> None:
    # Every draw is far larger than the image, so the middle square is what is left.
    image = gradient(90, 30)
    part = Augmentation(scale=(5, 5), ratio=(1, 1), flip=False)(image, (30, 30), np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(part), np.asarray(image)[:, 30:60])


def test_leaves_the_whole_image_as_it_is() -> None:
    image = gradient(20, 20)
    same = Augmentation(scale=(1, 1), ratio=(1, 1), flip=False)(image, (20, 20), np.random.default_rng(0))
    assert same.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": (0.5, 0.1)}, r"scale is \(0.5, 0.1\); expected \(low, high\) with 0 < low <= high"),
        ({"ratio": (0, 1)}, r"ratio is \(0, 1\)"),
    ],
)
def test_refuses_ranges_that_are_none(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)


def test_refuses_a_size_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"size is \(0, 8\); expected \(height, width\) of 1 or more"):
        Augmentation()(gradient(8, 8), (0, 8), np.random.default_rng(0))
