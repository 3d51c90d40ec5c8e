"""NTK-CL's averaged view, the default: one pass over the backbone, seen two ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from everlearn.adapters.adapted import Beside
from everlearn.adapters.bottleneck import Bottleneck
from everlearn.adapters.choice import seen_by
from everlearn.backbones import Depths, Part
from everlearn.methods.ntkcl.form import Form, Seen
from everlearn_runtime.heads import Head, WhitenedCosine

if TYPE_CHECKING:
    from everlearn.methods.ntkcl.method import NTKCL


class OnePass(Form):
    """Bottlenecks beside each MLP; CLS and the mean of the patch tokens are two views of one pass.

    It is ours. Each view has a classifier in training; L_dis and L_orth look at both together. The head
    sees both under the averaged adapters, and the depths behind them, which the loss does not look at.
    """

    hidden: ClassVar[int] = 64
    scale: ClassVar[float] = 1.0
    sharpness: ClassVar[float] = 12.0
    depths: ClassVar[Depths] = "auto"
    later: ClassVar[float] = 0.25

    def sections(self, method: NTKCL) -> tuple[int, ...]:
        """CLS, the mean patch, and the depths."""
        return method.backbone.sections(method.parts)

    def head(self, method: NTKCL) -> Head:
        """Whitened cosine."""
        return WhitenedCosine()

    def begin_task(self, method: NTKCL, classes: int) -> None:
        """Make a classifier for CLS, and one for the mean patch where there is one."""
        method.classifier = method.new_classifier(method.backbone.width, classes)
        if method.trained_parts:
            method.patch_classifier = method.new_classifier(method.backbone.width, classes)

    def remember(self, method: NTKCL, prototypes: Tensor, classes: int) -> None:
        """Take down what the loss needs of old prototypes (K, F), of which the depths are none."""
        width = sum(method.backbone.sections(method.trained_parts))
        super().remember(method, prototypes[:, :width], classes)

    def see(self, method: NTKCL, images: Tensor) -> Seen:
        """CLS and the mean patch of the trained adapters."""
        seen = seen_by(method.cur["channel"], method.backbone, images, method.trained_parts)
        views = dict(zip(("channel", "patch"), seen, strict=False))
        return Seen(views, {"both": torch.cat(seen, 1)}, apart="both", clear=("both",))

    def features(self, method: NTKCL, images: Tensor) -> Tensor:
        """CLS, the mean patch and the depths of the averaged adapters, (B, F)."""
        return torch.cat(seen_by(method.pre["channel"], method.backbone, images, method.parts), 1)

    def adapted_blocks(self, method: NTKCL, parts: Sequence[Part]) -> list[nn.Module]:
        """Each block with its averaged bottleneck; the last gives the tokens that these parts need."""
        backbone, bottlenecks = method.backbone, method.pre["channel"].children()
        first = backbone.wanted(parts)
        return [
            Beside(
                block,
                cast(Bottleneck, bottleneck).merged().requires_grad_(True),
                first if place == backbone.depth else None,
            )
            for place, (block, bottleneck) in enumerate(zip(backbone.blocks(), bottlenecks, strict=True), 1)
        ]
