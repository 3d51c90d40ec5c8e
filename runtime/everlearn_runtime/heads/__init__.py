"""Heads: what goes on learning on the device."""

from everlearn_runtime.heads.aggregate import PARTS, Aggregate
from everlearn_runtime.heads.base import Head, HeadState
from everlearn_runtime.heads.evidence_lda import EvidenceLDA
from everlearn_runtime.heads.fecam import FeCAM
from everlearn_runtime.heads.held_out_ridge import HeldOutRidge
from everlearn_runtime.heads.lda import LDA
from everlearn_runtime.heads.linear import Linear
from everlearn_runtime.heads.prototype import Prototypes
from everlearn_runtime.heads.ridge import Ridge
from everlearn_runtime.heads.streaming_lda import StreamingLDA

__all__ = [
    "LDA",
    "Aggregate",
    "EvidenceLDA",
    "FeCAM",
    "Head",
    "HeadState",
    "HeldOutRidge",
    "Linear",
    "Prototypes",
    "Ridge",
    "StreamingLDA",
    "from_state",
]


def from_state(state: HeadState) -> Head:
    """Rebuild a head of whatever kind the state is.

    Args:
        state: What ``Head.state()`` gave.

    Raises:
        ValueError: An unknown kind, or statistics that do not fit together.

    >>> from_state(LDA(shrinkage=0.1).state()).options
    {'shrinkage': 0.1}
    """
    kinds: dict[str, type[Head]] = {**PARTS, Aggregate.kind: Aggregate}
    if state.kind not in kinds:
        raise ValueError(f"unknown head {state.kind!r}; this version knows {', '.join(kinds)}")
    return kinds[state.kind].from_state(state)
