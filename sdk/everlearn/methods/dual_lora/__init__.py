"""DualLoRA: its two branches, and the rules by which earlier tasks' inputs are kept clear of.

`method` has the branches, `subspaces` what is known of a layer's inputs, `energy` the rule that asks for
a share of their energy, `inflora` that of InfLoRA's released code, `evidence` what the branches tell of
an image's task.
"""

from everlearn.methods.dual_lora.method import DualLoRA

__all__ = ["DualLoRA"]
