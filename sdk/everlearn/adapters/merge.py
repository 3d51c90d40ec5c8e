"""Adapters into weights, for export."""

from torch import nn


def merge(module: nn.Module) -> nn.Module:
    """Replace, in place, every adapter inside a module by the plain layers that compute the same.

    An adapter that can be merged says so by a method ``merged()``, which gives these layers.

    >>> from everlearn.adapters import LoRA
    >>> merge(nn.Sequential(LoRA(nn.Linear(2, 3))))
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
    )
    """
    for name, child in module.named_children():
        merged = getattr(child, "merged", None)
        setattr(module, name, merge(child) if merged is None else merged())
    return module
