"""What can be done about the factors that limit a run: only what its method and training can follow."""

from collections.abc import Mapping

from everlearn import methods
from everlearn.learner import Learner

HOLDS: dict[type, tuple[str, ...]] = {
    methods.NTKCL: ("regularisation",),
    methods.ILoRA: ("consistency",),
    methods.SAFE: ("alignment",),
}
"""Arguments of methods that hold what is trained near to what it was, the more the larger they are."""

PARTS: dict[type, tuple[str, ...]] = {
    methods.NTKCL: ("orthogonality",),
    methods.ILoRA: ("replay", "memory"),
    methods.DualLoRA: ("energy",),
}
"""Arguments of methods that keep later tasks out of earlier ones' way, the more the larger they are."""

FOLLOWS: dict[type, tuple[str, ...]] = {methods.NTKCL: ("later",)}
"""Arguments of methods that let later tasks change the features, the more the larger they are."""


def steps(learner: Learner, images: int) -> dict[str, tuple[str, ...]]:
    """What this learner's user can change, for each case; names of arguments with their values.

    A learner that trains nothing from task to task is given no rate and no epochs, a method only what
    is an argument of its own, one that learns all tasks at once nothing about tasks.

    Args:
        learner: after at least one task.
        images: of a task, on average.
    """
    own, training = learner.method.config(), learner.training
    trains = bool(learner.method.trainable()) and training.lr > 0

    def now(direction: str, names: Mapping[type, tuple[str, ...]]) -> list[str]:
        held = [name for kind, some in names.items() if isinstance(learner.method, kind) for name in some]
        values = {name: own[name] for name in held if name in own}
        return [
            f"{direction} {name}, now {_text(value)}"
            for name, value in values.items()
            if trains and (direction == "raise" or not isinstance(value, int | float) or value > 0)
        ]

    samples = [f"more images of each task, now {images}"]
    if trains and learner.augmentation is None:
        samples.append("augmentation, which is off")
    more, less = now("raise", HOLDS), now("lower", HOLDS)
    tasks = now("raise", PARTS) + now("lower", FOLLOWS) + more
    if trains:
        rate = f"lr, now {_text(training.lr)}"
        epochs = f"epochs, now {training.epochs}"
        more += [f"lower {rate}", *([f"fewer {epochs}"] if training.epochs > 1 else [])]
        less += [f"raise {rate}", f"more {epochs}"]
        if training.weight_decay > 0:
            less.append(f"lower weight_decay, now {_text(training.weight_decay)}")
        if not training.carry:
            tasks.append("carry=True, so that the head follows the features")
        tasks.append("fewer and larger tasks")
    else:  # no later task changes the features: what they confuse, they have confused from the start
        if not own.get("depths", True) and _has_blocks(learner):
            tasks.append('depths="auto", features of inner blocks that tell more classes apart')
        tasks.append("a larger backbone, as no task changes the features of this one")
    if learner.method.at_once:
        tasks = []
    found = {"samples": samples, "tasks": tasks, "more": more, "less": less}
    return {case: tuple(some) for case, some in found.items()}


def _has_blocks(learner: Learner) -> bool:
    try:
        return learner.backbone.depth > 0
    except ValueError:  # a convolutional model, say
        return False


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return " to ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
