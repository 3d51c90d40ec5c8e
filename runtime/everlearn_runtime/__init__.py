"""everlearn on the device: run a bundle and go on learning, without a training runtime."""

from everlearn_runtime.backends import Backend, OnnxRuntime
from everlearn_runtime.bundle import FORMAT, Bundle, Manifest, write_bundle
from everlearn_runtime.edge import EdgeLearner, Prediction
from everlearn_runtime.errors import BundleError, MissingExtra, StateError
from everlearn_runtime.heads import (
    LDA,
    Aggregate,
    EvidenceLDA,
    FeCAM,
    Head,
    HeadState,
    HeldOutRidge,
    Linear,
    Prototypes,
    Ridge,
    StreamingLDA,
    from_state,
)
from everlearn_runtime.images import InputSpec, open_image, prepare, prepare_batch
from everlearn_runtime.migration import Migrated
from everlearn_runtime.state import Version
from everlearn_runtime.train_step import TrainStep

__all__ = [
    "FORMAT",
    "LDA",
    "Aggregate",
    "Backend",
    "Bundle",
    "BundleError",
    "EdgeLearner",
    "EvidenceLDA",
    "FeCAM",
    "Head",
    "HeadState",
    "HeldOutRidge",
    "InputSpec",
    "Linear",
    "Manifest",
    "Migrated",
    "MissingExtra",
    "OnnxRuntime",
    "Prediction",
    "Prototypes",
    "Ridge",
    "StateError",
    "StreamingLDA",
    "TrainStep",
    "Version",
    "from_state",
    "open_image",
    "prepare",
    "prepare_batch",
    "write_bundle",
]
