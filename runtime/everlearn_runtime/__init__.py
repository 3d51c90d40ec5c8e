"""everlearn on the device: run a bundle and go on learning, without a training runtime."""

from everlearn_runtime.adapt import Adapted
from everlearn_runtime.backends import Backend, OnnxRuntime
from everlearn_runtime.bundle import Bundle, sign_bundle, write_bundle
from everlearn_runtime.edge import EdgeLearner
from everlearn_runtime.errors import BundleError, DeltaError, GuardError, MissingExtra, StateError, TrustError
from everlearn_runtime.fleet import Delta, GaussianNoise, Merged, merge
from everlearn_runtime.guard import Canaries, DriftWatch, Suspect
from everlearn_runtime.heads import (
    LDA,
    Aggregate,
    BalancedRidge,
    Confidence,
    EvidenceLDA,
    FeCAM,
    Head,
    HeadState,
    HeldOutRidge,
    Linear,
    Prototypes,
    Ridge,
    StreamingLDA,
    WhitenedCosine,
    from_state,
)
from everlearn_runtime.images import InputSpec, open_image, prepare, prepare_batch
from everlearn_runtime.manifest import FORMAT, Manifest
from everlearn_runtime.migration import Migrated
from everlearn_runtime.prediction import Learned, Prediction
from everlearn_runtime.state import Version
from everlearn_runtime.train_step import TrainStep
from everlearn_runtime.version import __version__

__all__ = [
    "FORMAT",
    "LDA",
    "Adapted",
    "Aggregate",
    "Backend",
    "BalancedRidge",
    "Bundle",
    "BundleError",
    "Canaries",
    "Confidence",
    "Delta",
    "DeltaError",
    "DriftWatch",
    "EdgeLearner",
    "EvidenceLDA",
    "FeCAM",
    "GaussianNoise",
    "GuardError",
    "Head",
    "HeadState",
    "HeldOutRidge",
    "InputSpec",
    "Learned",
    "Linear",
    "Manifest",
    "Merged",
    "Migrated",
    "MissingExtra",
    "OnnxRuntime",
    "Prediction",
    "Prototypes",
    "Ridge",
    "StateError",
    "StreamingLDA",
    "Suspect",
    "TrainStep",
    "TrustError",
    "Version",
    "WhitenedCosine",
    "__version__",
    "from_state",
    "merge",
    "open_image",
    "prepare",
    "prepare_batch",
    "sign_bundle",
    "write_bundle",
]
