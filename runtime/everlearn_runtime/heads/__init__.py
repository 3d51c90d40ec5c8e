"""Heads: what goes on learning on the device.

A head is known by its ``kind`` once its class is defined. Those of this package register by being
imported here; another package's does by being imported before its states are read.
"""

from everlearn_runtime.heads.aggregate import Aggregate
from everlearn_runtime.heads.balanced_ridge import BalancedRidge
from everlearn_runtime.heads.base import Head
from everlearn_runtime.heads.classes import Classes
from everlearn_runtime.heads.evidence_lda import EvidenceLDA
from everlearn_runtime.heads.fecam import FeCAM
from everlearn_runtime.heads.held_out_ridge import HeldOutRidge
from everlearn_runtime.heads.lda import LDA
from everlearn_runtime.heads.linear import Linear
from everlearn_runtime.heads.prototype import Prototypes
from everlearn_runtime.heads.registry import HeadState, from_state
from everlearn_runtime.heads.ridge import Ridge
from everlearn_runtime.heads.shared_aggregate import SharedAggregate
from everlearn_runtime.heads.streaming_lda import StreamingLDA
from everlearn_runtime.heads.whitened_cosine import WhitenedCosine

__all__ = [
    "LDA",
    "Aggregate",
    "BalancedRidge",
    "Classes",
    "EvidenceLDA",
    "FeCAM",
    "Head",
    "HeadState",
    "HeldOutRidge",
    "Linear",
    "Prototypes",
    "Ridge",
    "SharedAggregate",
    "StreamingLDA",
    "WhitenedCosine",
    "from_state",
]
