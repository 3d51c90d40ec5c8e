"""Continual-learning methods: one file and one class each."""

from everlearn.methods.dual_lora import DualLoRA
from everlearn.methods.frozen import Frozen
from everlearn.methods.ntkcl import NTKCL

__all__ = ["NTKCL", "DualLoRA", "Frozen"]
