"""Continual-learning methods: one file and one class each."""

from typing import TYPE_CHECKING

from everlearn_runtime import lazy

if TYPE_CHECKING:
    from everlearn.methods.aper import APER
    from everlearn.methods.dual_lora import DualLoRA
    from everlearn.methods.fecam import FeCAM
    from everlearn.methods.fine_tune import FineTune
    from everlearn.methods.frozen import Frozen
    from everlearn.methods.i_lora import ILoRA
    from everlearn.methods.joint import Joint
    from everlearn.methods.ntkcl import NTKCL
    from everlearn.methods.ranpac import RanPAC
    from everlearn.methods.safe import SAFE
    from everlearn.methods.simple_cil import SimpleCIL
    from everlearn.methods.slda import SLDA
else:
    __getattr__, __dir__ = lazy.names(
        __name__,
        {
            "APER": "everlearn.methods.aper",
            "DualLoRA": "everlearn.methods.dual_lora",
            "FeCAM": "everlearn.methods.fecam",
            "FineTune": "everlearn.methods.fine_tune",
            "Frozen": "everlearn.methods.frozen",
            "ILoRA": "everlearn.methods.i_lora",
            "Joint": "everlearn.methods.joint",
            "NTKCL": "everlearn.methods.ntkcl",
            "RanPAC": "everlearn.methods.ranpac",
            "SAFE": "everlearn.methods.safe",
            "SimpleCIL": "everlearn.methods.simple_cil",
            "SLDA": "everlearn.methods.slda",
        },
    )

__all__ = [
    "APER",
    "NTKCL",
    "SAFE",
    "SLDA",
    "DualLoRA",
    "FeCAM",
    "FineTune",
    "Frozen",
    "ILoRA",
    "Joint",
    "RanPAC",
    "SimpleCIL",
]
