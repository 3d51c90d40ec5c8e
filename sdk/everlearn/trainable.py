"""What of a method goes on learning on a device, for the exported training step."""

import copy

from torch import nn

from everlearn.adapters.adapted import Both, cut, uncut
from everlearn.adapters.merge import merge
from everlearn.methods.base import Method
from everlearn_export.train_step import Trainable
from everlearn_runtime.train_step import BLOCKS, Settings

LAST = 2


def trainable(method: Method, blocks: str, *, weight_decay: float, tasks: int) -> Trainable:
    """Cut a method's deployed form for training on a device.

    Args:
        method: whose adapters go on learning, on any device; it stays as it is.
        blocks: ``"head"``: no adapter, a classifier only; ``"last2"``: the adapters of the last two blocks;
            ``"all"``: all.
        weight_decay: AdamW's.
        tasks: learned so far.

    Raises:
        ValueError: no such blocks, or the method has no adapters of this kind.
    """
    if blocks not in BLOCKS:
        raise ValueError(f"train_step is {blocks!r}; give None or one of {', '.join(map(repr, BLOCKS))}")
    sharpness = vars(method).get("sharpness", Settings.sharpness)  # of the classifier it was trained with
    settings = Settings(sharpness=float(sharpness), weight_decay=weight_decay)
    if blocks == "head":
        return Trainable(blocks, nn.Identity(), settings, tasks)
    adapted, patches = method.adapted_blocks(), len(method.sections) > 1
    if method.parts != method.trained_parts:
        raise ValueError(
            f"train_step={blocks!r} knows features of the last block alone, and this head looks at "
            f"{', '.join(map(str, method.parts))}; train with NTKCL(depths=()), or take train_step='head'"
        )
    if blocks == "all":
        tail = copy.deepcopy(uncut(method.backbone, adapted, patches=patches)).cpu()
        deployed = merge(copy.deepcopy(tail)).eval().requires_grad_(False)
        return Trainable(blocks, tail, settings, tasks, deployed)
    trunk, tail = copy.deepcopy(cut(method.backbone, adapted, last=LAST, patches=patches))
    deployed = merge(Both(trunk.cpu(), copy.deepcopy(tail).cpu())).eval().requires_grad_(False)
    return Trainable(blocks, tail.cpu(), settings, tasks, deployed, inside="tail.")
