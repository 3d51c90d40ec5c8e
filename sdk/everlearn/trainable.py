"""What of a method goes on learning on a device, for the exported training step."""

import copy

from torch import nn

from everlearn.adapters.adapted import Trunk
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
        return Trainable(blocks, nn.Identity(), settings, tasks, method.sections)
    backbone, seen = method.backbone, method.trained_parts
    adapted = method.adapted_blocks(seen)  # first: it says what to do where there are no blocks
    at = None if blocks == "all" else max(backbone.depth - LAST, 0)
    tail = Trunk(backbone, adapted, seen, start=at)
    # Of the same images, in one pass, the head sees more: the parts behind those that the loss looks at.
    whole = Trunk(backbone, method.adapted_blocks(method.parts), method.parts, also=at)
    return Trainable(
        blocks,
        copy.deepcopy(tail).cpu().eval(),
        settings,
        tasks,
        backbone.sections(seen),
        merge(copy.deepcopy(whole).cpu()).eval().requires_grad_(False),
    )
