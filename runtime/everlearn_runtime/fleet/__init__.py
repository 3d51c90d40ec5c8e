"""Many devices: what each has learned, handed in as sums and added up.

`Delta` is what one device has learned between two versions; `merge` adds deltas to a bundle, and the
`Ledger` of that bundle says what is in it, so that nothing counts twice.
"""

from everlearn_runtime.fleet.composition import Privacy
from everlearn_runtime.fleet.delta import Delta
from everlearn_runtime.fleet.making import make_delta
from everlearn_runtime.fleet.merging import Merged, merge
from everlearn_runtime.fleet.noise import GaussianNoise, with_noise
from everlearn_runtime.fleet.taking import take_in
from everlearn_runtime.ledger import Ledger, Mark, Span

__all__ = [
    "Delta",
    "GaussianNoise",
    "Ledger",
    "Mark",
    "Merged",
    "Privacy",
    "Span",
    "make_delta",
    "merge",
    "take_in",
    "with_noise",
]
