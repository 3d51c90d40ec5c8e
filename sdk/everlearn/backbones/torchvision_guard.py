"""Make torchvision importable beside a CPU-only torch; imported before timm, which needs it.

The wheels of torchvision carry operators that need CUDA libraries. Beside a torch without CUDA
they are not registered, and torchvision fails at import with ``operator torchvision::nms does
not exist``. timm uses none of them, so declaring the two that are looked up is enough.
"""

import importlib
import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # an operator lives as long as its library


def make_importable() -> None:
    """Import torchvision, declaring its missing operators where that is what stops it."""
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            _library.define(operator + _SCHEMA)  # type: ignore[no-untyped-call]
        importlib.import_module("torchvision")
