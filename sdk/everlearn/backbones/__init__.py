"""Backbones: timm models by name, local weights, and the bundled ViT."""

from everlearn.backbones import torchvision_guard

torchvision_guard.make_importable()  # before timm, which every module here imports

from everlearn.backbones.backbone import Backbone, BackboneSpec  # noqa: E402
from everlearn.backbones.load import load_backbone, resolve  # noqa: E402
from everlearn.backbones.parts import Depths, Part  # noqa: E402
from everlearn.backbones.vit import attend, feed_forward, fuse_qkv  # noqa: E402
from everlearn.backbones.weights import load_weights  # noqa: E402
from everlearn.choices import BUNDLED  # noqa: E402

__all__ = [
    "BUNDLED",
    "Backbone",
    "BackboneSpec",
    "Depths",
    "Part",
    "attend",
    "feed_forward",
    "fuse_qkv",
    "load_backbone",
    "load_weights",
    "resolve",
]
