"""Frozen: a head on the pretrained backbone's own features."""

from everlearn.backbones import Depths
from everlearn.backbones.parts import given
from everlearn.methods.base import Method
from everlearn_runtime.heads import Head, WhitenedCosine


class Frozen(Method):
    """Train nothing: the head learns on the features of the backbone as it came.

    `SimpleCIL`, `SLDA` and `FeCAM` are this with a head of their own, and so is `RanPAC` without
    tuning. Without ``patches`` and ``depths`` it needs no tokens, so any timm model will do. It keeps
    nothing, so what is to be forgotten is in the head alone.

    Args:
        patches: put the mean of the patch tokens behind CLS, as `NTKCL` does; for ViTs.
        depths: put further pooled tokens behind them, by names: ``"std"``, the patches' standard
            deviation, ``"mean@9"``, the mean of the patches behind block 9 of 0 to 11, ``"cls@-4"``, CLS
            behind the last block but three, see `Backbone.parts`. ``"auto"`` takes those that did best,
            ``["mean", "std", "mean@9", "mean@7"]`` of twelve blocks. For ViTs.
    """

    def __init__(self, *, patches: bool = False, depths: Depths = ()) -> None:
        super().__init__()
        self.patches = patches
        self.depths = given(depths)

    def head(self) -> Head:
        """Whitened cosine, which is right from the first images of a class."""
        return WhitenedCosine()
