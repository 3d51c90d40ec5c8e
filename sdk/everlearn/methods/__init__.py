"""Continual-learning methods: one file and one class each."""

from everlearn.methods.fine_tune import FineTune
from everlearn.methods.frozen import Frozen
from everlearn.methods.i_lora import ILoRA
from everlearn.methods.joint import Joint
from everlearn.methods.ntkcl import NTKCL

__all__ = ["NTKCL", "FineTune", "Frozen", "ILoRA", "Joint"]
