"""FineTune: a LoRA and a linear classifier, trained on one task after another."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from everlearn.adapters.lora import LAYERS, insert_lora
from everlearn.backbones import Backbone, Depths
from everlearn.backbones.parts import given
from everlearn.methods.base import LinearClassifier, Method, TaskInfo
from everlearn.training import Training
from everlearn_runtime.heads import Head, Linear
from everlearn_runtime.heads.classes import Classes


class FineTune(Method):
    """Fine-tune on each task as if there were no other: the floor.

    LoRA on some layers of every block and a linear classifier over all classes seen so far, with
    cross-entropy on the task's own images; nothing guards what was learned before. The classifier
    itself is the head, and the device trains it on in the same way.

    Args:
        layers: those that LoRA is put around, names in `everlearn.adapters.lora.LAYERS`; by default
            all of them.
        rank: of the LoRA.
        depths: as in `Frozen`; the classifier, which is the head, is trained on all of them.

    Attributes:
        twin: the backbone with LoRA in it.
        classifier: a row for each of `classes`.
    """

    defaults: ClassVar[Training] = Training(
        epochs=3, batch_size=32, lr=2e-3, optimizer="adam", weight_decay=0.0, carry=False
    )
    grows: ClassVar[dict[str, str]] = {"classifier": "classes"}

    def __init__(self, *, layers: Sequence[str] = tuple(LAYERS), rank: int = 8, depths: Depths = ()) -> None:
        super().__init__()
        self.layers = list(layers)
        self.rank = rank
        self.depths = given(depths)

    def attach(self, backbone: Backbone) -> None:
        """Put LoRA into a twin of the backbone."""
        super().attach(backbone)
        self.twin = backbone.twin()
        self.adapters = insert_lora(self.twin, layers=self.layers, rank=self.rank)
        self.classifier = LinearClassifier(sum(self.sections))

    def begin_task(self, task: TaskInfo) -> None:
        """Make room for the task's new classes."""
        self.task = task.classes
        self.classes.places(task.seen)
        self.classifier.grow(len(self.classes))

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over all classes seen so far."""
        return {"ce": self.cross_entropy(images, self.places(targets, self.task))}

    def cross_entropy(self, images: Tensor, places: Tensor) -> Tensor:
        """Mean over normalised images (B, 3, H, W) of the classes at these places, int64 (B,)."""
        return F.cross_entropy(self.classifier(self.twin.features(images, self.parts)).float(), places)

    def teach(self, head: Head, features: NDArray[np.float32], labels: Sequence[str]) -> None:
        """Hand the classifier to a linear head; let any other head learn."""
        if isinstance(head, Linear):
            weights, bias = (value.detach().cpu().numpy() for value in self.classifier.parameters())
            names = list(Classes((*head.classes, *labels)))
            rows = [self.classes.place(name) for name in names]
            head.learn_as(features, labels, classes=names, weights=weights[rows], bias=bias[rows])
        else:
            super().teach(head, features, labels)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W)."""
        return self.twin.features(images, self.parts)

    def head(self) -> Head:
        """Give the linear head that takes over the classifier."""
        return Linear()
