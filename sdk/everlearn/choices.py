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


def choose_head(given: object, seed: int = 0) -> Head | None:
    """A head, of an instance or a name among `HEADS`; None for None.

    Args:
        given: the one or the other.
        seed: of a head that is given by name.

    Raises:
        ValueError: neither, or no head has this name.
    """
    if isinstance(given, str):
        if given.casefold() not in HEADS:
            raise ValueError(f"no head is named {given!r}; take one of {', '.join(HEADS)}, or a head")
        return HEADS[given.casefold()](seed)
    if given is not None and not isinstance(given, Head):
        raise ValueError(
            f"head is {what(given, Head)}; give one of everlearn_runtime.heads, for example LDA() or, where "
            "a method has its name, everlearn_runtime.heads.FeCAM(), or its name"
        )
    return given


def what(given: object, wanted: type) -> str:
    """What somebody gave in place of an instance, for messages."""
    if isinstance(given, type) and issubclass(given, wanted):
        return f"the class {given.__name__}, and an instance is needed, {given.__name__}()"
    return f"a {type(given).__name__}, which is none"
