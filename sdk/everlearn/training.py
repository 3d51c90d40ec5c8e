"""Settings of training: how long, in which batches, at which rate, by which optimizer."""

import math
from dataclasses import dataclass

import torch

from everlearn.checks import flag, real, whole


@dataclass(frozen=True)
class Training:
    """How the loop trains: SGD with momentum or Adam, the rate on a cosine per epoch to zero.

    Training moves the features, and what the head knows of earlier tasks was learned on those
    before. `carry` moves that along (`Head.carry`), by how the features of the task's own images
    have changed: no image is kept, and it costs one more pass over the task.

    Attributes:
        epochs: passes over a task's images.
        batch_size: images a step, of all processes together.
        lr: rate of the first epoch.
        optimizer: "sgd" or "adam".
        momentum: SGD's momentum; Adam does not look at it.
        weight_decay: L2 on every trainable parameter.
        carry: carry the head's statistics of earlier tasks along; False leaves them as they were.

    Numbers of numpy are taken, and kept as Python's.

    Raises:
        ValueError: for a setting of another type or out of range.
    """

    epochs: int = 20
    batch_size: int = 16
    lr: float = 0.025
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    carry: bool = True

    def __post_init__(self) -> None:
        checked = {
            "epochs": whole("epochs", self.epochs),
            "batch_size": whole("batch_size", self.batch_size),
            "lr": real("lr", self.lr),
            "momentum": real("momentum", self.momentum, below=1.0),
            "weight_decay": real("weight_decay", self.weight_decay),
            "carry": flag("carry", self.carry),
        }
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {self.optimizer!r}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def rate(self, epoch: int) -> float:
        """Give the rate of an epoch, counted from 0.

        >>> [round(Training(epochs=4, lr=0.1).rate(epoch), 4) for epoch in range(4)]
        [0.1, 0.0854, 0.05, 0.0146]
        """
        return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer for these parameters, at the rate of the first epoch."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
