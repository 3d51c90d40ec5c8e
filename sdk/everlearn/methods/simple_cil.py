"""SimpleCIL: class means of frozen features, compared by cosine."""

from everlearn.methods.frozen import Frozen
from everlearn_runtime.heads import Head, Prototypes


class SimpleCIL(Frozen):
    """Train nothing, and take the nearest class mean by cosine.

    Args:
        patches, depths: as in `Frozen`; the cosine is over the whole vector.

    Source: Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models:
    Generalizability and Adaptivity are All You Need", arXiv 2303.07338: its baseline of the same name.
    """

    def head(self) -> Head:
        """Prototypes in one section."""
        return Prototypes()
