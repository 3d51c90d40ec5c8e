"""Backbones: timm models by name, local weights, and the bundled ViT."""

from everlearn.backbones import torchvision_guard

torchvision_guard.make_importable()  # before timm, which therefore only modules here import

from timm.models.vision_transformer import Block  # noqa: E402
from timm.utils import reparameterize_model  # noqa: E402

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
    "Block",
    "Depths",
    "Part",
    "attend",
    "feed_forward",
    "fuse_qkv",
    "load_backbone",
    "load_weights",
    "reparameterize_model",
    "resolve",
]
