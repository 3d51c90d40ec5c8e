"""The neural tangent kernel as a tool: what the theory says of a method, on real images.

kernel = ntk(method, images, readouts=8)     # of the adapters, on images of all tasks
orthogonality(kernel, tasks)                 # how much the tasks share
regress(kernel, tasks, targets, 0.1)         # what each task leaves, and what later ones undo
estimate_spectrum(block, targets).error(1000, 0.1)  # the error to expect of 1000 samples
"""

from everlearn.analysis.ntk.curve import Spectrum, estimate_spectrum, learning_curve, leave_one_out
from everlearn.analysis.ntk.kernel import adapters, ntk
from everlearn.analysis.ntk.regression import Regression, block_norms, orthogonality, regress

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
