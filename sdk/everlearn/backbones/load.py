"""Backbones by name: the bundled one, any timm model, and weights from a file."""

import copy
import difflib
import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from everlearn.backbones.backbone import Backbone, BackboneSpec
from everlearn.backbones.weights import load_weights
from everlearn.choices import BUNDLED

_BUNDLED_ARCHITECTURE: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 192,
    "depth": 12,
    "num_heads": 3,
}
_BUNDLED_INPUT: dict[str, Any] = {
    "input_size": (3, 64, 64),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
}


def load_backbone(name: str = BUNDLED, *, weights: str | Path = "pretrained", **options: Any) -> Backbone:
    """Make a frozen backbone by name.

    Args:
        name: ``"everlearn_vit_tiny_p8_64"``, which comes with the package, or any timm model.
        weights: ``"pretrained"``, ``"random"``, or the path of a file: ``.safetensors``, or what
            ``torch.save`` wrote (``.pth``, ``.pt``, ``.bin``), see `everlearn.backbones.load_weights`.
        options: keyword arguments for the timm model, e.g. ``img_size=64``; plain values, so that
            a saved learner can write them down. ``pretrained_cfg_overlay`` replaces timm's input
            settings: ``mean`` and ``std`` of the pixels, ``crop_pct``, ``interpolation``.

    Raises:
        ValueError: for a name that timm does not know, for options that are no plain values, and
            for weights that are missing, unreadable, or of another model.
    """
    try:
        json.dumps(options)
    except TypeError as error:
        raise ValueError(
            f"options must be plain values ({error}); for others make the model with timm, and pass "
            "Backbone(model)"
        ) from error
    spec = BackboneSpec(name, str(weights), dict(options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same ones at every load
        if name == BUNDLED:
            overlay = options.pop("pretrained_cfg_overlay", {})
            model = VisionTransformer(num_classes=0, **_BUNDLED_ARCHITECTURE | options)
            model.pretrained_cfg = _BUNDLED_INPUT | overlay
        elif timm.is_model(name):
            from_hub = spec.weights == "pretrained"
            try:
                model = timm.create_model(name, pretrained=from_hub, num_classes=0, **options)
            except (RuntimeError, OSError) as error:
                raise ValueError(
                    f"backbone {name!r} cannot be made with weights={spec.weights!r}: {error}; check the "
                    "name, or pass weights='random' or the path of a file"
                ) from error
        else:
            close = _close(name)
            hint = f"; did you mean one of {close}?" if close else ""
            raise ValueError(
                f"no backbone is named {name!r}; take {BUNDLED!r} or a name from timm.list_models(){hint}"
            )
    if name == BUNDLED and spec.weights == "pretrained":
        with as_file(files("everlearn.backbones") / "weights" / f"{BUNDLED}.safetensors") as path:
            load_weights(model, path)
    elif spec.weights not in ("pretrained", "random"):
        load_weights(model, Path(weights))
    return Backbone(model, spec)


def resolve(
    backbone: str | nn.Module = BUNDLED, weights: str | Path | None = None, **options: Any
) -> Backbone:
    """Give the backbone that somebody asks for, by name or as an object.

    Args:
        backbone: a name, see `load_backbone`; a `Backbone`, which is given back as it is; or a timm model,
            of which a copy is taken, see `of_model`.
        weights: of the backbone with that name; None takes the pretrained ones.
        options: of the backbone with that name.

    Raises:
        ValueError: as `load_backbone`, for something that is none of these, and for weights or options
            beside an object, which has its own already.
    """
    if isinstance(backbone, str):
        return load_backbone(backbone, weights="pretrained" if weights is None else weights, **options)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"backbone is a {type(backbone).__name__}; give a name such as {BUNDLED!r}, a timm model or a "
            "Backbone"
        )
    if not isinstance(backbone, Backbone):
        backbone = of_model(backbone)
    given = options if weights is None else {"weights": str(weights), **options}
    if given:
        names = " and ".join(f"{name}={value!r}" for name, value in given.items())
        raise ValueError(
            f"the backbone {backbone.name!r} is made already, so {names} would change nothing; leave that "
            "out, or give the backbone's name instead of the object"
        )
    return backbone


def of_model(model: nn.Module) -> Backbone:
    """Make a backbone of a timm model that is at hand: of a copy, without the classifier.

    Raises:
        ValueError: for a model that is none of timm's, as nothing says how its images are to be prepared.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    if not hasattr(model, "pretrained_cfg") or not hasattr(model, "reset_classifier"):
        raise ValueError(
            f"backbone is a {type(model).__name__}, which is no timm model; give a name such as {BUNDLED!r}, "
            "a model of timm.create_model, or for a module of your own that gives features (B, F) "
            "Backbone(model)"
        )
    own: Any = copy.deepcopy(model).to("cpu", torch.float32)
    if own.num_classes:
        own.reset_classifier(0)
    return Backbone(own)


def _close(name: str) -> list[str]:
    """Names that an incomplete or a mistyped one may have been meant for."""
    wanted = name.split(".")[0]
    known = [BUNDLED, *timm.list_models()]
    longer = [other for other in known if other.startswith(wanted)]
    return longer[:5] or difflib.get_close_matches(wanted, known, 5)
