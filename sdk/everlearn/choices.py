"""What settings can be chosen by name, without torch: the command line lists it at once."""

from collections.abc import Callable

from everlearn_runtime.heads import (
    LDA,
    BalancedRidge,
    FeCAM,
    Head,
    HeldOutRidge,
    Prototypes,
    Ridge,
    WhitenedCosine,
)

BUNDLED = "everlearn_vit_tiny_p8_64"
"""The backbone that comes with the package."""

CLASS_FOLDERS = "of class folders, or of train/ and test/ or val/ with class folders in each"
"""What a folder is, to be a data set."""

PRECISIONS = ("fp32", "bf16", "auto")
"""In which to train, see `everlearn.precision.resolve`."""

HEADS: dict[str, Callable[[int], Head]] = {
    "prototypes": lambda seed: Prototypes(),
    "lda": lambda seed: LDA(),
    "whitened-cosine": lambda seed: WhitenedCosine(),
    "ridge": lambda seed: Ridge(),
    "balanced-ridge": lambda seed: BalancedRidge(),
    "fecam": lambda seed: FeCAM(),
    "random-ridge": lambda seed: Ridge(projection=2000, seed=seed),
    "held-out-ridge": lambda seed: HeldOutRidge(True, projection=2000, seed=seed),
}
"""Heads by name, made with a seed; the last two are ridges on 2,000 random features: RanPAC's."""
