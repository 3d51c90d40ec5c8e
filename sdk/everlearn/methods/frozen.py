"""Frozen: a head on the pretrained backbone's own features."""

from torch import Tensor

from everlearn.methods.base import Method


class Frozen(Method):
    """Train nothing: the head learns on the features of the backbone as it came.

    `SimpleCIL`, `SLDA` and `FeCAM` are this with a head of their own, and so is `RanPAC` without
    tuning. Without ``patches`` it needs no tokens, so any timm model will do. It keeps nothing, so what is
    to be forgotten is in the head alone.

    Args:
        patches: put the mean of the patch tokens behind CLS, as `NTKCL` does; for ViTs.
    """

    def __init__(self, *, patches: bool = False) -> None:
        super().__init__()
        self.patches = patches

    @property
    def sections(self) -> tuple[int, ...]:
        """Widths of CLS and of the mean patch, or of the one feature vector."""
        return self.backbone.sections(self.patches)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W)."""
        return self.backbone.features(images, patches=self.patches)
