"""Pictures come to the graph's size to the pixel as torchvision and timm bring them there."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from everlearn import load_backbone
from everlearn_runtime import InputSpec, prepare

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def sizes(count: int, seed: int, largest: int = 300) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    drawn = [(int(a), int(b)) for a, b in rng.integers(1, largest, size=(count, 2))]
    return [(w, h) for w, h in drawn if max(w, h) <= 16 * min(w, h)]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("resize", "crop"), [(256, 256), (256, 224), (73, 64), (8, 8)])
def test_prepare_is_torchvisions_resize_and_centre_crop(interpolation: str, resize: int, crop: int) -> None:
    reference = Compose([Resize(resize, InterpolationMode(interpolation)), CenterCrop(crop)])
    spec = InputSpec(crop, crop, resize=resize, interpolation=interpolation)
    rng = np.random.default_rng(resize)
    for width, height in [(206, 103), (103, 206), (640, 480), (crop, crop), *sizes(30, resize)]:
        image = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        wanted = np.array(reference(Image.fromarray(image)))
        np.testing.assert_array_equal(prepare(image, spec), wanted, err_msg=f"{width} x {height}")


@pytest.mark.parametrize(("mode", "interpolation"), [("squash", "bicubic"), ("border", "bilinear")])
@pytest.mark.parametrize(
    ("side", "ratio"), [((64, 64), 1.0), ((64, 64), 0.9), ((60, 40), 1.0), ((30, 60), 0.8)]
)
def test_prepare_is_timms_squash_and_border(
    mode: str, interpolation: str, side: tuple[int, int], ratio: float
) -> None:
    given: dict[str, Any] = {"crop_pct": ratio, "crop_mode": mode, "mean": (0.48, 0.5, 0.1)}
    reference = transforms_imagenet_eval(side, interpolation=interpolation, use_prefetcher=True, **given)
    spec = InputSpec(
        *side,
        resize=int(max(side) / ratio),
        interpolation=interpolation,
        crop=mode,
        fill=(122, 128, 26) if mode == "border" else (0, 0, 0),
    )
    rng = np.random.default_rng(side)
    for width, height in [(206, 103), (103, 206), (65, 64), (63, 64), side[::-1], *sizes(60, side[0])]:
        image = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        wanted = reference(Image.fromarray(image)).numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(prepare(image, spec), wanted, err_msg=f"{width} x {height}")


@pytest.mark.parametrize("mode", ["squash", "border", "center", None])
def test_a_backbone_says_how_timm_crops_for_it(mode: str | None) -> None:
    size: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 12, "num_heads": 3}
    settings = {"crop_mode": mode, "crop_pct": 1.0, "mean": [0.48, 0.5, 0.1]}
    backbone = load_backbone(
        "vit_tiny_patch16_224", weights="random", **size, pretrained_cfg_overlay=settings
    )
    given: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": mode, "mean": settings["mean"]}
    reference = transforms_imagenet_eval(32, interpolation="bicubic", use_prefetcher=True, **given)
    image = np.random.default_rng(0).integers(256, size=(50, 99, 3), dtype=np.uint8)
    wanted = reference(Image.fromarray(image)).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(prepare(image, backbone.input), wanted)
