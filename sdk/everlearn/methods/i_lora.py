"""I-LoRA: a LoRA that learns fast, its moving average that forgets slowly, and a small memory."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from everlearn.adapters.lora import LAYERS, LoRA, Shift
from everlearn.backbones import Backbone, Depths
from everlearn.methods.base import Batches, TaskInfo
from everlearn.methods.fine_tune import FineTune
from everlearn.methods.memory import Reservoir
from everlearn.tables import Table
from everlearn.training import Training
from everlearn_runtime.heads import LDA, Head

POINTS = 11


class ILoRA(FineTune):
    """Interpolate between what was and what is learned, by a moving average after every step.

    The fast LoRA follows the gradient of the cross-entropy on new and replayed images, and of the
    squared distance of its features of replayed images from the slow ones. The slow LoRA follows
    the fast one; inference uses it. It is the one method here that keeps images: ``memory`` of them,
    as uint8. Written for language models, carried over to Vision Transformers by us: the squared
    distance is that of CLS features, and the head is LDA on the slow ones.

    Args:
        layers, rank, depths: see `FineTune`.
        memory: images that are kept, a uniform sample of all.
        replay: of them in each step.
        consistency: weight gamma of the squared distance.
        decay: lambda of the average, ``slow <- lambda slow + (1 - lambda) fast``; below it,
            1 - 1/(k + 1), while k steps have been made in all. The paper takes 0.99 to 0.999. With
            141 steps a task the first follows each of them nearly to its end: after six tasks of
            Split Tiny-ImageNet-B, held-out training images, one seed, A_T was 47.9, the forgetting of a
            ridge on the same features 14.6, with 0.999 they were 48.3 and 10.3.
        average: "factors" averages down and up, "delta" their product.

    Attributes:
        slow: the backbone with the average in it.
        before: what was in ``slow`` when the task began, for `connectivity`.

    Source: Ren et al., "Analyzing and Reducing Catastrophic Forgetting in Parameter Efficient
    Tuning", arXiv 2402.18865, section 4.
    """

    defaults: ClassVar[Training] = replace(FineTune.defaults, carry=True)
    grows: ClassVar[dict[str, str]] = {
        "classifier": "classes",
        "classifier_before": "classes",
        "reservoir.came": "classes",
    }
    steps: Tensor

    def __init__(
        self,
        *,
        layers: Sequence[str] = tuple(LAYERS),
        rank: int = 8,
        memory: int = 500,
        replay: int = 16,
        consistency: float = 1.0,
        decay: float = 0.999,
        average: str = "factors",
        depths: Depths = (),
    ) -> None:
        super().__init__(layers=layers, rank=rank, depths=depths)
        if average not in ("factors", "delta"):
            raise ValueError(f"average must be 'factors' or 'delta', got {average!r}")
        for name, value in (("memory", memory), ("replay", replay)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}")
        self.memory = memory
        self.replay = replay
        self.consistency = consistency
        self.decay = decay
        self.average = average

    def attach(self, backbone: Backbone) -> None:
        """Put LoRA into a twin of the backbone, its average into another, and make an empty memory."""
        super().attach(backbone)
        self.slow = backbone.twin()
        self.averages: list[LoRA | Shift] = []
        for path, fast in self.twin.named_modules():
            if isinstance(fast, LoRA):
                average = Shift(fast.linear) if self.average == "delta" else self._copy(fast)
                self.slow.set_submodule(path, average)
                self.averages.append(average)
        self.before = nn.ModuleList(map(self._copy, self.averages))
        self.classifier_before = self._copy(self.classifier)
        self.reservoir = Reservoir(backbone.input.height, backbone.input.width, self.memory)
        self.register_buffer("steps", torch.tensor(0))

    def begin_task(self, task: TaskInfo) -> None:
        """Make room for the task's new classes; take down what is to be changed."""
        super().begin_task(task)
        self.reservoir.grow(len(self.classes))
        self.classifier_before = self._copy(self.classifier)
        for before, now in zip(self.before, self.averages, strict=True):
            before.load_state_dict(now.state_dict())

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of new and replayed images, and the distance from the slow features."""
        pixels, places = self.reservoir.draw(self.replay)
        old = self.backbone.normalise(pixels)
        fast = self.twin.features(torch.cat([images, old]), self.parts).float()
        rows = torch.cat([self.places(targets, self.task), places])
        terms = {"ce": F.cross_entropy(self.classifier(fast), rows)}
        if len(old):
            with torch.no_grad():
                slow = self.features(old).float()
            terms["consistency"] = self.consistency * F.mse_loss(fast[len(images) :], slow)
        return terms

    def after_step(self) -> None:
        """Let the average follow."""
        self.steps += 1
        share = max(1 - self.decay, 1 / (int(self.steps) + 1))
        for slow, fast in zip(self.averages, self.adapters, strict=True):
            slow.follow(fast, share)

    def end_task(self, batches: Batches) -> None:
        """Let the task's images come by the memory."""
        for images, targets in batches:
            self.reservoir.add(self.backbone.pixels(images), self.places(targets, self.task))

    def features(self, images: Tensor) -> Tensor:
        """Slow features (B, F) of normalised images (B, 3, H, W)."""
        return self.slow.features(images, self.parts)

    def head(self) -> Head:
        """LDA."""
        return LDA()

    def connectivity(
        self, tasks: Sequence[Batches], classes: Sequence[str], points: int = POINTS
    ) -> NDArray[np.float64]:
        """Probe the line between the last two tasks' parameters: the method's reason to average.

        Along ``theta(l) = l theta_before + (1 - l) theta_now``, classifier included, l from 0 to 1.

        Args:
            tasks, classes: see `report`.
            points: on the line, at least 2.

        Returns:
            Accuracy in [0, 1] of the classifier over all classes, float64 (tasks, points).
        """
        if points < 2:
            raise ValueError(f"points is {points}; a line needs at least 2")
        probe, classifier = self._copy(self.slow), self._copy(self.classifier)
        inside = [module for module in probe.modules() if isinstance(module, (LoRA, Shift))]
        found = np.zeros((len(tasks), points))
        with torch.no_grad():
            for column, share in enumerate(torch.linspace(0, 1, points).tolist()):
                _interpolate(classifier, self.classifier, self.classifier_before, share)
                for module, now, before in zip(inside, self.averages, self.before, strict=True):
                    _interpolate(module, now, before, share)
                for row, batches in enumerate(tasks):
                    hits = [
                        classifier(probe.features(images, self.parts)).argmax(1)
                        == self.places(targets, classes)
                        for images, targets in batches
                    ]
                    found[row, column] = float(torch.cat(hits).double().mean())
        return found

    def report(self, tasks: Sequence[Batches], classes: Sequence[str]) -> Table:
        """Give the table of `connectivity`: old and new tasks between the last two parameters."""
        return Table(
            "Mode connectivity: accuracy (%) of the classifier along l * before + (1 - l) * now",
            ["l", *(f"{share:.1f}" for share in np.linspace(0, 1, POINTS))],
            [
                [f"task {number}", *(f"{100 * value:.1f}" for value in row)]
                for number, row in enumerate(self.connectivity(tasks, classes), 1)
            ],
        )

    def _copy(self, module: Any) -> Any:
        """Copy a module, frozen, whose backbone weights are the backbone's own."""
        return copy.deepcopy(module, self.backbone.shared()).requires_grad_(False)


def _interpolate(into: nn.Module, now: nn.Module, before: nn.Module, share: float) -> None:
    start, end = now.state_dict(), before.state_dict()
    for name, value in into.state_dict().items():
        if not name.startswith("linear."):  # the backbone's own
            value.copy_(torch.lerp(start[name], end[name], share))
