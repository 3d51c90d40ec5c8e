"""Joint: all tasks at once."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from everlearn.backbones import Backbone
from everlearn.methods.base import Batches
from everlearn.methods.fine_tune import FineTune
from everlearn.methods.memory import Album
from everlearn.training import Training
from everlearn_runtime.heads import LDA, Head


class Joint(FineTune):
    """Train on all tasks at once: the ceiling, and no continual learner.

    It is what `FineTune` would be if nothing were ever thrown away: give it all tasks as one, as
    ``everlearn bench`` does. Fitted one task after another it keeps every image and replays as many
    old ones as there are new ones in each step. The head is LDA on its features.

    Args:
        layers, rank, depths: see `FineTune`.
    """

    defaults: ClassVar[Training] = replace(FineTune.defaults, carry=True)
    at_once: ClassVar[bool] = True
    grows: ClassVar[dict[str, str]] = {
        "classifier": "classes",
        "memory.images": "images",
        "memory.labels": "images",
    }

    def attach(self, backbone: Backbone) -> None:
        """Put LoRA into a twin of the backbone, and make an empty memory."""
        super().attach(backbone)
        self.memory = Album(backbone.input.height, backbone.input.width)

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over all classes seen so far, of new and of old images."""
        old, places = self.memory.draw(len(images))
        joined = torch.cat([images, self.backbone.normalise(old)])
        return {"ce": self.cross_entropy(joined, torch.cat([self.places(targets, self.task), places]))}

    def end_task(self, batches: Batches) -> None:
        """Keep the task's images."""
        for images, targets in batches:
            self.memory.add(self.backbone.pixels(images), self.places(targets, self.task))

    def shared(self) -> dict[int, Any]:
        """The backbone, and the images: further ones are put behind them, and none is changed."""
        return super().shared() | {id(self.memory.images): self.memory.images}

    def head(self) -> Head:
        """LDA."""
        return LDA()
