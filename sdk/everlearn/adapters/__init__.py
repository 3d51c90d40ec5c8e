"""Adapters: small trainable modules that are put between the frozen parts of a backbone."""

from everlearn.adapters.bottleneck import Bottleneck
from everlearn.adapters.gated import GatedLinear, GatedLoRA
from everlearn.adapters.hybrid import Hybrid
from everlearn.adapters.lora import LoRA, insert_lora
from everlearn.adapters.merge import merge
from everlearn.adapters.prompt import PromptGenerator

__all__ = [
    "Bottleneck",
    "GatedLinear",
    "GatedLoRA",
    "Hybrid",
    "LoRA",
    "PromptGenerator",
    "insert_lora",
    "merge",
]
