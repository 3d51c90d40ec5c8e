"""Adapters: small trainable modules that are put between the frozen parts of a backbone."""

from everlearn.adapters.bottleneck import Bottleneck
from everlearn.adapters.hybrid import Hybrid
from everlearn.adapters.prompt import PromptGenerator

__all__ = ["Bottleneck", "Hybrid", "PromptGenerator"]
