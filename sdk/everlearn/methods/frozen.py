"""Frozen: a head on the pretrained backbone's own features."""

from everlearn.methods.base import Method


class Frozen(Method):
    """Train nothing: the head learns on the features of the backbone as it came.

    With prototypes it is SimpleCIL (Zhou et al., arXiv 2303.07338), with LDA it is SLDA (Hayes
    and Kanan, arXiv 1909.01520), with a projected ridge it is RanPAC without adapters (McDonnell
    et al., arXiv 2307.02251). It needs no tokens, so any timm model will do.
    """
