"""`everlearn.analysis.ntk`, by its short name."""

from everlearn.analysis.ntk import (
    Regression,
    Spectrum,
    adapters,
    block_norms,
    estimate_spectrum,
    learning_curve,
    leave_one_out,
    ntk,
    orthogonality,
    regress,
)

__all__ = [
    "Regression",
    "Spectrum",
    "adapters",
    "block_norms",
    "estimate_spectrum",
    "learning_curve",
    "leave_one_out",
    "ntk",
    "orthogonality",
    "regress",
]
