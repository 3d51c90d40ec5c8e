"""Adapters: small trainable modules that are put between the frozen parts of a backbone."""

from everlearn.adapters.bottleneck import Bottleneck, Bottlenecks
from everlearn.adapters.choice import adapters_for, seen_by
from everlearn.adapters.gated import GatedLinear, GatedLoRA
from everlearn.adapters.hybrid import Hybrid
from everlearn.adapters.lora import LoRA, insert_lora
from everlearn.adapters.merge import merge
from everlearn.adapters.peft import load_peft, save_peft
from everlearn.adapters.prompt import PromptGenerator
from everlearn.adapters.ssf import ScaleShift, insert_ssf
from everlearn.adapters.vpt import DeepPrompts

__all__ = [
    "Bottleneck",
    "Bottlenecks",
    "DeepPrompts",
    "GatedLinear",
    "GatedLoRA",
    "Hybrid",
    "LoRA",
    "PromptGenerator",
    "ScaleShift",
    "adapters_for",
    "insert_lora",
    "insert_ssf",
    "load_peft",
    "merge",
    "save_peft",
    "seen_by",
]
