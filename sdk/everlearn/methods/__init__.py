"""Continual-learning methods: one file and one class each."""

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
