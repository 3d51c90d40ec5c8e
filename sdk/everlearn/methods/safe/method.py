"""SAFE: a slow learner that keeps what pretraining knows, and a fast one that follows the tasks."""

import copy
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from everlearn.adapters.bottleneck import Bottlenecks
from everlearn.adapters.choice import seen_by
from everlearn.adapters.ssf import insert_ssf
from everlearn.adapters.vpt import DeepPrompts
from everlearn.backbones import Backbone, Depths, Part
from everlearn.backbones.parts import given
from everlearn.methods.base import Batches, CosineClassifier, Method, TaskInfo
from everlearn.methods.losses import transfer
from everlearn.methods.safe.released import Released
from everlearn.methods.safe.rules import Mended
from everlearn.training import Training
from everlearn_runtime.heads import Head

ADAPTERS = ("bottleneck", "ssf", "vpt")


class SAFE(Method):
    """Two learners of one kind: slow stops after the first task, fast goes on from there.

    The first task trains the learner that becomes slow, by cross-entropy and a transfer loss that
    ties its features S to the pretrained ones P, both with rows of unit length: with C = S' P / B,
    ``diagonal sum_i (C_ii - 1)^2 + redundancy sum_{i != j} C_ij^2``. Nothing is standardised, so C_ii
    is near 1 / d, not near 1, and both weights depend on that: the first term pulls each image's
    features towards its pretrained ones, the second makes the features less redundant.

    Every later task trains fast by cross-entropy over all classes seen, by ``alignment sum_b (1 -
    cos(f_fast, f_slow))`` over the batch, and by two cross-classifications: fast's classifier
    names slow's features and slow's rows of the old classes, slow's classifier names fast's. Rows of
    new classes are imprinted in both classifiers: the unit mean of the class's features before
    training.

    Alignment is a sum over the batch and C a mean over it; of several processes each takes its part
    of the batch for the whole.

    Features are [slow ; fast]; until the second task both are the same. The head, `Aggregate`, is
    a ridge regression on random features for each, with statistics of its own, and weights the
    two for each image by the entropy of their scores.

    ``variant="released"`` is what the authors' code does: new rows start at zero, and both learners share
    their statistics, see `everlearn.methods.safe.released`.

    Args:
        variant: ``"paper"``, or ``"released"`` for the authors' code.
        adapter: ``"bottleneck"`` beside each MLP, ``"ssf"`` (scale and shift of the layers' outputs;
            it merges into the weights, and moves features much further at the same rate of
            learning; the one that goes with CNNs and hybrids, too, around their norms), or ``"vpt"`` (prompts
            of its own for every block).
        hidden, scale, dropout: of the bottlenecks; 64, 0.1 and 0.1 in the paper. With few epochs and
            enough images a scale of 1 does better: on three tasks of Split Tiny-ImageNet-B, held-out
            training images, A_T was 60.7 and with 0.1 59.8. With a handful of images it strays too far.
        prompts: prompts of a block.
        diagonal, redundancy: weights of the transfer loss; in the paper 5e-10 and 5e-9 on CIFAR-100,
            0.01 and 10 on ImageNet-A. 0.1 and 0.1 are ours, and have not been tuned; with a
            redundancy of 10 a task of one class alone drives the features away from the pretrained.
        alignment: weight of 1 - cos, summed over the batch; 0.5 on CIFAR-100, 1 on ImageNet-A.
        cross: weight of the two cross-classifications; the paper leaves them out on ImageNet-A.
        sharpness: start of the cosine classifiers' learnable scale, and factor of the ridge scores
            in the aggregation.
        gamma: how much surer counts in the aggregation; 1 on CIFAR-100, 100 on ImageNet-A.
        projection: random features M of the head; 10,000 in the paper. The head keeps M (M + 1) / 2
            numbers for each learner, twice 16 MB with 2,000. Where a device asks after every sample, a
            ridge of fixed strength saves it an eigendecomposition each time:
            ``Learner(..., head=Aggregate([192, 192], [Ridge(0.01, projection=2000)] * 2))`` for a
            backbone of width 192.
        depths: as in `Frozen`, of both learners; they train on CLS alone, the head is given all.

    Attributes:
        slow, fast: the learners: `Bottlenecks`, `DeepPrompts`, or for ``"ssf"`` a `Backbone.twin` with
            `ScaleShift` layers. The first task trains fast, and slow becomes its copy at the end.
        slow_classifier, fast_classifier: cosine classifiers with a row for each of `classes`.
        task: the current task's classes.
        new: those of all that have no row from before the task.
        known: how many classes were known before the task; they stand first.
        first: whether it is the first.

    Source: Zhao et al., "SAFE: Slow And Fast Parameter-Efficient Tuning for Continual Learning with
    Pre-Trained Models", arXiv 2411.02175, section 4.
    """

    # For small backbones; the paper has 20, then 15 epochs of batches of 48 at a rate of 0.01.
    defaults: ClassVar[Training] = Training(epochs=3, batch_size=32, lr=0.02, weight_decay=5e-4)
    grows: ClassVar[dict[str, str]] = {
        "slow_classifier.weight": "classes",
        "fast_classifier.weight": "classes",
    }

    def __init__(
        self,
        *,
        variant: str = "paper",
        adapter: str = "bottleneck",
        hidden: int = 64,
        scale: float = 0.1,
        dropout: float = 0.1,
        prompts: int = 5,
        diagonal: float = 0.1,
        redundancy: float = 0.1,
        alignment: float = 0.5,
        cross: float = 1.0,
        sharpness: float = 10.0,
        gamma: float = 1.0,
        projection: int = 2000,
        depths: Depths = (),
    ) -> None:
        super().__init__()
        if variant not in ("paper", "released"):
            raise ValueError(f"variant must be 'paper' or 'released', got {variant!r}")
        if adapter not in ADAPTERS:
            raise ValueError(f"adapter must be one of {', '.join(ADAPTERS)}, got {adapter!r}")
        self.variant = variant
        self.rules = Released() if variant == "released" else Mended()
        self.adapter = adapter
        self.hidden = hidden
        self.scale = scale
        self.dropout = dropout
        self.prompts = prompts
        self.diagonal = diagonal
        self.redundancy = redundancy
        self.alignment = alignment
        self.cross = cross
        self.sharpness = sharpness
        self.gamma = gamma
        self.projection = projection
        self.depths = given(depths)

    def attach(self, backbone: Backbone) -> None:
        """Make the fast learner, and slow as its copy; ``ValueError`` where the adapter cannot go on it."""
        super().attach(backbone)
        self.fast = self._learner()
        self.slow = copy.deepcopy(self.fast, backbone.shared()).requires_grad_(False)
        self.fast_classifier = CosineClassifier(backbone.width, 0, scale=self.sharpness)
        self.slow_classifier = copy.deepcopy(self.fast_classifier).requires_grad_(False)

    @property
    def sections(self) -> tuple[int, ...]:
        """Slow and fast, each as wide as the backbone's features with their parts."""
        return (sum(super().sections),) * 2

    def head(self) -> Head:
        """Two ridge regressions on random features, aggregated by entropy."""
        return self.rules.head(self)

    def train(self, mode: bool = True) -> "SAFE":
        """Switch to training; slow stays in evaluation mode."""
        super().train(mode)
        if hasattr(self, "slow"):
            self.slow.eval()
        return self

    def begin_task(self, task: TaskInfo) -> None:
        """Make room in both classifiers for the task's new classes."""
        self.first = task.index == 0
        self.known = len(task.known)
        self.task = task.classes
        self.new = frozenset(name for name in task.seen if name not in self.classes)
        self.classes.places(task.seen)
        for classifier in self.classifiers:
            classifier.grow(len(self.classes))
        self.rules.begin_task(self, task)

    def survey(self, batches: Batches) -> None:
        """Imprint the rows of new classes with the unit means of their features."""
        self.rules.survey(self, batches)

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, and in the first task the transfer loss, later alignment and cross terms."""
        rows = self.places(targets, self.task)
        with torch.no_grad():
            beside = self.backbone.features(images) if self.first else self._see(images, self.slow)
        fast = self._see(images, self.fast)
        with torch.autocast(images.device.type, enabled=False):  # small differences want all bits
            fast, beside = (
                view.to(torch.promote_types(view.dtype, torch.float32)) for view in (fast, beside)
            )
            terms = {"ce": F.cross_entropy(self.fast_classifier(fast), rows)}
            if self.first:
                diagonal, redundancy = transfer(fast, beside)
                return terms | {
                    "diagonal": self.diagonal * diagonal,
                    "redundancy": self.redundancy * redundancy,
                }
            terms["alignment"] = self.alignment * (1 - F.cosine_similarity(fast, beside, dim=1)).sum()
            slow_rows, fast_rows = self.slow_classifier.weight, self.fast_classifier.weight
            labels = torch.cat([torch.arange(self.known, device=rows.device), rows])
            by_fast = self.fast_classifier(torch.cat([slow_rows[: self.known], beside]))
            by_slow = self.slow_classifier(torch.cat([fast_rows[: self.known], fast]))
            terms["cross_fast"] = self.cross * F.cross_entropy(by_fast, labels)
            terms["cross_slow"] = self.cross * F.cross_entropy(by_slow, labels)
        return terms

    def end_task(self, batches: Batches) -> None:
        """After the first task make slow a copy of fast; from then on it never changes."""
        if not self.first:
            return
        with torch.no_grad():
            for slow, fast in ((self.slow, self.fast), self.classifiers):
                pairs = zip(self.own_parameters(slow), self.own_parameters(fast), strict=True)
                for kept, value in pairs:
                    kept.copy_(value)
            self.rules.end_first_task(self)

    def features(self, images: Tensor) -> Tensor:
        """[slow ; fast], (B, F), of normalised images (B, 3, H, W)."""
        return torch.cat([self._see(images, one, self.parts) for one in (self.slow, self.fast)], 1)

    def teach(self, head: Head, features: NDArray[np.float32], labels: Sequence[str]) -> None:
        """Let the head learn; the release also hands it the classifiers' scales as its sharpness."""
        super().teach(head, features, labels)
        self.rules.teach(self, head)

    @property
    def classifiers(self) -> tuple[CosineClassifier, CosineClassifier]:
        """Slow's and fast's."""
        return self.slow_classifier, self.fast_classifier

    def _learner(self) -> nn.Module:
        backbone = self.backbone
        if self.adapter == "ssf":
            twin = backbone.twin()
            insert_ssf(twin)
            return twin
        if self.adapter == "vpt":
            return DeepPrompts(backbone, prompts=self.prompts, zero_start=self.rules.zero_start)
        return Bottlenecks(backbone, hidden=self.hidden, dropout=self.dropout, scale=self.scale)

    def _see(self, images: Tensor, learner: nn.Module, parts: Sequence[Part] = ()) -> Tensor:
        """Features of one learner, as by `Backbone.features`."""
        return torch.cat(seen_by(learner, self.backbone, images, parts), 1)
