"""What training images go through, so that one image is many."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Augmentation:
    """A random part of an image, resized to the model's size, and mirrored half of the time.

    The part covers a share of the image drawn from `scale`, with a ratio of width to height
    drawn log-uniformly from `ratio` (Szegedy et al., "Going Deeper with Convolutions" (2015),
    section 6); after ten draws that do not fit, the centre is taken. Where left and right
    matter, as in handwriting, turn `flip` off; where the whole object is needed, raise `scale`. Its
    lower end is for short training of small models: published settings mostly have 0.05 to 0.08.

    Raises `ValueError` when `scale` or `ratio` is not a range of positive numbers.
    """

    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {(low, high)}; expected (low, high) with 0 < low <= high")

    def __call__(self, image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
        """Draw one view of `size` (height, width); `rng` is the only source of randomness.

        Raises `ValueError` when `size` is not positive.
        """
        height, width = size
        if height < 1 or width < 1:
            raise ValueError(f"size is {size}; expected (height, width) of 1 or more")
        box = self._box(image.width, image.height, rng)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        narrow, wide = self.ratio
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(width - w + 1))
                top = int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        aspect = min(max(width / height, narrow), wide)
        w = max(min(width, round(height * aspect)), 1)
        h = max(min(height, round(width / aspect)), 1)
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
