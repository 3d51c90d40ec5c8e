"""What methods share that tune the backbone to the first task only."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everlearn.adapters.choice import adapters_for, seen_by
from everlearn.backbones import Backbone, Depths, Part
from everlearn.backbones.parts import given
from everlearn.methods.base import Batches, CosineClassifier, Method, TaskInfo
from everlearn.training import Training


class FirstTask(Method):
    """Base of `RanPAC` and `APER`: small adapters that learn the first task, then rest.

    They are bottlenecks beside the MLPs of a ViT; of any other model, such as a CNN, its norms are scaled and
    shifted (`everlearn.adapters.adapters_for`).

    They are trained with the cross-entropy of a cosine classifier over the first task's classes,
    which is then dropped. From the second task on nothing trains, so the features stay as they
    are, and a head with exact statistics forgets nothing. Nothing is kept for each class, so a class
    that is to be forgotten is in the head alone.

    Args:
        pet: tune at all; False leaves the backbone as it came.
        hidden, scale, dropout: of the bottlenecks. For a ViT-B the papers' scale is 0.1, which hardly
            moves a small ViT: on three tasks of Split Tiny-ImageNet-B, held-out training images, RanPAC
            with a scale of 1 had A_T 61.6, and 59.7 without adapters.
        depths: as in `Frozen`; the first task trains on CLS alone, the head is given all.
        sharpness: start of the cosine classifier's learnable scale.

    Attributes:
        adapters: one `Bottleneck` a block, a twin with `ScaleShift` layers, or none.
        classifier: the first task's, None before and after it.
        tuned: whether the first task is over.
    """

    defaults: ClassVar[Training] = Training(epochs=20, batch_size=48, lr=0.01, weight_decay=5e-4)
    tuned: Tensor

    def __init__(
        self,
        *,
        pet: bool = True,
        hidden: int = 64,
        scale: float = 1.0,
        dropout: float = 0.1,
        sharpness: float = 10.0,
        depths: Depths = (),
    ) -> None:
        super().__init__()
        self.pet = pet
        self.hidden = hidden
        self.scale = scale
        self.dropout = dropout
        self.sharpness = sharpness
        self.depths = given(depths)

    def attach(self, backbone: Backbone) -> None:
        """Make the adapters."""
        super().attach(backbone)
        self.adapters: nn.Module = nn.ModuleList()
        if self.pet:
            self.adapters = adapters_for(backbone, hidden=self.hidden, dropout=self.dropout, scale=self.scale)
        self.classifier: CosineClassifier | None = None
        # Without adapters there is nothing to keep, and features can be reused (`FeatureStore`).
        self.register_buffer("tuned", torch.tensor(False), persistent=self.pet)

    def begin_task(self, task: TaskInfo) -> None:
        """Make the first task's classifier."""
        if self.pet and task.index == 0:
            classifier = CosineClassifier(self.backbone.width, len(task.classes), scale=self.sharpness)
            self.classifier = classifier.to(self.backbone.mean)

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over the first task's classes."""
        assert self.classifier is not None
        return {"ce": F.cross_entropy(self.classifier(self.adapted(images)).float(), targets)}

    def end_task(self, batches: Batches) -> None:
        """Let the adapters rest, after the first task for good."""
        self.classifier = None
        self.tuned.fill_(True)
        self.adapters.requires_grad_(False)

    def restore(self, learned: dict[str, Tensor], classes: Iterable[str] = ()) -> None:
        """Put back what `learned` gave; ``ValueError`` when it is another configuration's."""
        super().restore(learned, classes)
        for parameter in self.own_parameters(self.adapters):
            parameter.requires_grad_(not self.tuned)

    def adapted(self, images: Tensor, parts: Sequence[Part] = ()) -> Tensor:
        """Features of the tuned backbone, as by `Backbone.features`."""
        if not self.pet:
            return self.backbone.features(images, parts)
        return torch.cat(seen_by(self.adapters, self.backbone, images, parts), 1)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W)."""
        return self.adapted(images, self.parts)
