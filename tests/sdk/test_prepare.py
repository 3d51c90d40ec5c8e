"""Pictures come to the graph's size to the pixel as torchvision and timm bring them there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from everlearn import Backbone, load_backbone
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


SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 12, "num_heads": 3}


def overlaid(size: int | tuple[int, int] = 32, **settings: Any) -> Backbone:
    options = {**SMALL, "img_size": size, "pretrained_cfg_overlay": {"crop_pct": 1.0, **settings}}
    return load_backbone("vit_tiny_patch16_224", weights="random", **options)


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "center": lambda: overlaid(crop_mode="center", crop_pct=0.9),
    "squash": lambda: overlaid(crop_mode="squash"),
    "border": lambda: overlaid(crop_mode="border", mean=[0.48, 0.5, 0.1], crop_pct=0.8),
    "none named": lambda: overlaid(crop_mode=None),
    "not square, squash": lambda: overlaid(crop_mode="squash", size=(16, 32)),
    "not square, border": lambda: overlaid(crop_mode="border", size=(16, 32)),
    "CLIP, squash by itself": lambda: load_backbone("vit_base_patch16_clip_384", weights="random", **SMALL),
    "a CNN": lambda: load_backbone("resnet10t", weights="random"),
    "bundled": load_backbone,
}


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
def test_a_backbone_sees_an_image_as_timms_transform_for_evaluation_gives_it(
    make: Callable[[], Backbone],
) -> None:
    backbone = make()
    size = (3, backbone.input.height, backbone.input.width)
    settings = resolve_model_data_config(backbone.model) | {"input_size": size}
    reference = create_transform(**settings, is_training=False)
    rng = np.random.default_rng(0)
    for width, height in [(99, 50), (50, 99), (206, 103), (32, 32), (640, 480)]:
        image = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        seen = backbone.normalise(torch.from_numpy(prepare(image, backbone.input))[None])[0]
        torch.testing.assert_close(seen, reference(Image.fromarray(image)), rtol=0, atol=1e-6)


def test_clips_own_way_to_crop_is_read_from_its_model() -> None:
    assert BACKBONES["CLIP, squash by itself"]().input.crop == "squash"


def test_a_way_to_crop_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="crop is 'stretch'; use one of center, squash, border"):
        overlaid(crop_mode="stretch")
