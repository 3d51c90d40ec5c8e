"""Adapters of the kind that goes with a backbone, beside its own weights."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from everlearn.adapters.bottleneck import Bottlenecks
from everlearn.adapters.ssf import insert_ssf
from everlearn.backbones import Backbone, Part


def adapters_for(
    backbone: Backbone, *, hidden: int = 64, dropout: float = 0.1, scale: float = 1.0
) -> Bottlenecks | Backbone:
    """Make adapters that compute nothing new at first.

    Args:
        backbone: stays as it is.
        hidden, dropout, scale: of the bottlenecks.

    Returns:
        Of a ViT `Bottlenecks` beside the MLPs; of any other model, a CNN or a hybrid, a `Backbone.twin` whose
        norms are scaled and shifted, see `insert_ssf`.

    Raises:
        ValueError: for a model without tokens and without norms.
    """
    if backbone.has_tokens:
        return Bottlenecks(backbone, hidden=hidden, dropout=dropout, scale=scale)
    twin = backbone.twin()
    insert_ssf(twin, spread=0.0)
    return twin


def seen_by(
    adapters: nn.Module, backbone: Backbone, images: Tensor, parts: Sequence[Part] = ()
) -> list[Tensor]:
    """The backbone's own features and each of the parts, see `Backbone.gather`, as adapters make them.

    Args:
        adapters: those that `adapters_for` makes, `DeepPrompts`, or another twin with adapters inside.
        backbone: that they are for.
        images: normalised, (B, 3, H, W).
        parts: see `Backbone.parts`.
    """
    if not isinstance(adapters, Backbone):
        return backbone.gather(cast(Any, adapters).run(backbone, images, parts), parts)
    return adapters.gather(adapters.run(images), parts) if parts else [adapters.features(images)]
