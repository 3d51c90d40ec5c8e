"""Settings of training: how long, in which batches, at which rate, by which optimizer."""

import math
from dataclasses import dataclass

import torch


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
    """

    epochs: int = 20
    batch_size: int = 16
    lr: float = 0.025
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    carry: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, upper in (("lr", float("inf")), ("momentum", 1.0), ("weight_decay", float("inf"))):
            value = getattr(self, name)
            if not 0 <= value < upper:
                raise ValueError(f"{name} must be at least 0 and below {upper}, got {value!r}")
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {self.optimizer!r}")
        if not isinstance(self.carry, bool):
            raise ValueError(f"carry must be True or False, got {self.carry!r}")

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
