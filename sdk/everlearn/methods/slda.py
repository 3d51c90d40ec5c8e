"""SLDA: linear discriminant analysis on frozen features, as they stream by."""

from everlearn.backbones import Depths
from everlearn.methods.frozen import Frozen
from everlearn_runtime.heads import LDA, Head, StreamingLDA


class SLDA(Frozen):
    """Train nothing; class means, and one covariance within classes that all of them share.

    Args:
        variant: ``"exact"``: the covariance is the pooled scatter within classes, whatever the
            order (`everlearn_runtime.LDA`); or ``"released"``: that of the authors' code, which
            depends on the order and starts from the first task at once
            (`everlearn_runtime.StreamingLDA`).
        shrinkage: of the covariance, towards the identity; times its mean eigenvalue in the
            exact variant, as it is in the released one.
        patches, depths: as in `Frozen`.

    Source: Hayes and Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant
    Analysis", arXiv 1909.01520, section 3.
    """

    def __init__(
        self,
        *,
        variant: str = "exact",
        shrinkage: float = 1e-4,
        patches: bool = False,
        depths: Depths = (),
    ) -> None:
        super().__init__(patches=patches, depths=depths)
        if variant not in ("exact", "released"):
            raise ValueError(f"variant must be 'exact' or 'released', got {variant!r}")
        self.variant = variant
        self.shrinkage = shrinkage

    def head(self) -> Head:
        """LDA, or the released form of it."""
        if self.variant == "released":
            return StreamingLDA(self.shrinkage, covariance="base")
        return LDA(self.shrinkage)
