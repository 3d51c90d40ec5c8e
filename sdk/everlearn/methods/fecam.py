"""FeCAM: a covariance of its own for each class, on frozen features."""

from everlearn.backbones import Depths
from everlearn.methods.frozen import Frozen
from everlearn_runtime import heads


class FeCAM(Frozen):
    """Train nothing, and take the nearest class mean under the class's own correlations.

    Args:
        alpha1: shrinkage of the covariance's diagonal; see `everlearn_runtime.heads.FeCAM`, the head.
        alpha2: shrinkage of the rest.
        patches, depths: as in `Frozen`.

    Source: Goswami et al., "FeCAM: Exploiting the Heterogeneity of Class Distributions in
    Exemplar-Free Continual Learning", NeurIPS 2023, arXiv 2309.14062, section 3.
    """

    def __init__(
        self, *, alpha1: float = 1.0, alpha2: float = 0.0, patches: bool = False, depths: Depths = ()
    ) -> None:
        super().__init__(patches=patches, depths=depths)
        self.alpha1 = alpha1
        self.alpha2 = alpha2

    def head(self) -> heads.Head:
        """Give the head of the same name, as it was published: each class by itself."""
        return heads.FeCAM(self.alpha1, self.alpha2, pooling=0.0, correction=0.0)
