"""APER: the pretrained and the tuned backbone side by side."""

import torch
from torch import Tensor

from everlearn.backbones import Depths
from everlearn.methods.first_task import FirstTask
from everlearn_runtime.heads import Head, Prototypes


class APER(FirstTask):
    """Tune a copy of the backbone to the first task, then take the nearest class mean by cosine.

    The features are those of the backbone as it came, and behind them those of the tuned one: two
    passes. The cosine is over the whole vector.

    Args:
        hidden, scale, dropout, sharpness, depths: see `FirstTask`.

    Source: Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models:
    Generalizability and Adaptivity are All You Need", arXiv 2303.07338: "AdaPt and mERge",
    ADAM in its first version, in the form with adapters.
    """

    def __init__(
        self,
        *,
        hidden: int = 64,
        scale: float = 1.0,
        dropout: float = 0.1,
        sharpness: float = 10.0,
        depths: Depths = (),
    ) -> None:
        super().__init__(hidden=hidden, scale=scale, dropout=dropout, sharpness=sharpness, depths=depths)

    @property
    def sections(self) -> tuple[int, ...]:
        """Widths of the pretrained and of the tuned features."""
        return super().sections * 2

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W): [pretrained ; tuned]."""
        return torch.cat([self.backbone.features(images, self.parts), self.adapted(images, self.parts)], 1)

    def head(self) -> Head:
        """Prototypes in one section."""
        return Prototypes()
