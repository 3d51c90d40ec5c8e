"""What every method is: adapters on a frozen backbone, a loss, and features for the head."""

import copy
import inspect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everlearn.adapters.merge import merge
from everlearn.backbones import Backbone, Depths, Part, reparameterize_model
from everlearn.tables import Table
from everlearn.training import Training
from everlearn_runtime.heads import Head, Prototypes
from everlearn_runtime.heads.classes import Classes


@dataclass(frozen=True)
class TaskInfo:
    """What a method is told when a task begins.

    Attributes:
        index: tasks before this one.
        classes: the classes of this task's images; targets are positions in it.
        known: the classes known before this task, in the order of their arrival.
        prototypes: float32 (C, F), mean features of the known classes that are not in this
            task, as they were when they were learned.
        seen: all classes known with this task's, in the order of arrival: the known ones, then the
            new ones, by default in the order they have here.
    """

    index: int
    classes: tuple[str, ...]
    known: tuple[str, ...]
    prototypes: Tensor
    seen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.seen:
            object.__setattr__(self, "seen", Classes((*self.known, *self.classes)).names)


LATER: dict[str, Any] = {"depths": [], "later": 1.0}
"""Arguments of methods that came later than saved learners, and what these did without them."""

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised images float32 (B, 3, H, W) and targets int64 (B,), positions in the task's classes."""


class Method(nn.Module):
    """Base of all methods: what differs from learning on frozen features goes into a subclass.

    Constructor arguments are the configuration: keyword-only, kept as attributes of the same
    name. ``Learner`` owns the loop and calls, in this order: `attach` once; for every task
    `begin_task` and `survey`, then `loss` and `after_step` for every batch, then `end_task`;
    `features` whenever the head looks, and `teach` when it learns.

    A method that keeps rows or images of each class keeps their names in `classes`, and asks it where
    they stand; it never counts classes by itself, so that its rows and the head's columns cannot come
    apart. `forget` takes a class out of all of it.

    What the features consist of is chosen by two arguments, which a method has or leaves out: ``patches``
    and ``depths``, see `Backbone.parts`. A method gives its tokens, and `Backbone.gather` pools them.

    Attributes:
        patches: the argument of this name: the mean of the patches, for training and head.
        depths: the argument of this name: further parts, for the head.
        parts: what stands behind the backbone's own features, of both; empty at `attach` without them.
        trained_parts: those of ``patches`` alone.
        classes: the classes for which this method keeps something, by place; empty at `attach`, and
            for ever where nothing is kept for each class.
        defaults: how this method is trained when the user says nothing else.
        at_once: a benchmark gives it all tasks as one: a ceiling, and no continual learner.
        grows: what of `learned` grows from task to task, by the start of its name, and with what:
            "classes" or "images".
    """

    defaults: ClassVar[Training] = Training()
    at_once: ClassVar[bool] = False
    grows: ClassVar[dict[str, str]] = {}
    patches: bool = False
    depths: Depths = ()
    backbone: Backbone
    parts: tuple[Part, ...]
    trained_parts: tuple[Part, ...]
    classes: Classes

    def attach(self, backbone: Backbone) -> None:
        """Make the adapters for a backbone; ``ValueError`` when it lacks what they need."""
        self.parts = backbone.parts(self.depths, patches=self.patches)
        self.trained_parts = backbone.parts(patches=self.patches)
        self.backbone = backbone
        self.classes = Classes()

    def begin_task(self, task: TaskInfo) -> None:
        """Grow, freeze, take snapshots."""

    def survey(self, batches: Batches) -> None:
        """Look at the task's images once before they train; ``batches`` are as the head sees them.

        Every one of several processes sees all images, here and in `end_task`; what they find is then
        made the main process's.

        A run that is resumed calls `begin_task` again but not this: what it finds has to lie in
        parameters or buffers.
        """

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Named terms of the loss, weighted: the loop sums them.

        Each of several processes calls it with its part of the batch, and its gradients are averaged
        by the number of images: the same as by one process for terms that are means over images, or do
        not look at images; terms that compare images with each other compare those of a part, and
        old images that a step replays are drawn by each process for itself.

        Args:
            images: normalised float32 (B, 3, H, W).
            targets: int64 (B,), positions in the task's classes.
        """
        raise TypeError(f"{type(self).__name__} has trainable parameters but no loss")

    def after_step(self) -> None:
        """Do what follows each optimizer step, such as averaging."""

    def end_task(self, batches: Batches) -> None:
        """Average, collect statistics; ``batches`` are the task's images as the head sees them."""

    def teach(self, head: Head, features: NDArray[np.float32], labels: Sequence[str]) -> None:
        """Let the head learn a task's features (N, F), when the task has ended."""
        head.update(features, labels)

    def places(self, targets: Tensor, names: Sequence[str]) -> Tensor:
        """Places in `classes`, int64 (B,), of targets (B,) that are positions in these names."""
        return torch.tensor([self.classes.place(name) for name in names], device=targets.device)[targets]

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W)."""
        return self.backbone.features(images, self.parts)

    def forget(self, label: str) -> None:
        """Forget a class between two tasks: what is kept for it alone, rows and images, is deleted.

        What all classes share stays as it is: weights that were trained on its images, subspaces,
        averages. A class of which this method keeps nothing is forgotten already.
        """
        if label in self.classes:
            place = self.classes.remove(label)
            for module in self.modules():
                if isinstance(module, PerClass):
                    module.drop_class(place)

    def follow(self, known: Collection[str]) -> None:
        """Forget every class that is not among the known ones any more."""
        for label in self.classes.names:
            if label not in known:
                self.forget(label)

    def report(self, tasks: Sequence[Batches], classes: Sequence[str]) -> Table | None:
        """Say what this method itself can tell about a run; None when that is nothing.

        Args:
            tasks: images of each task learned, as the head sees them.
            classes: their targets are positions in these names.
        """
        return None

    @property
    def sections(self) -> tuple[int, ...]:
        """Widths of the parts that the features consist of; they add up to F."""
        return self.backbone.sections(self.parts)

    def head(self) -> Head:
        """Make the head that goes with this method when the user names none."""
        return Prototypes(self.sections)

    def deployable(self) -> nn.Module:
        """Make a copy for export, in evaluation mode: normalised images to features.

        Adapters are merged, and so are the branches that some convolutional models, such as RepViT and
        FastViT, have for training only.
        """
        features = Features(copy.deepcopy(self)).eval().requires_grad_(False)
        merge(features)
        for module in list(features.modules()):
            if isinstance(module, Backbone):  # its own, and twins of it
                reparameterize_model(module.model, inplace=True)
        return features

    def adapted_blocks(self, parts: Sequence[Part]) -> list[nn.Module]:
        """Make a copy of each block with its deployed adapter, of which a device can train on the last ones.

        In evaluation mode, tokens (B, N, d) to tokens; the adapters' parameters alone require a gradient.
        What `Backbone.gather` makes of the blocks' tokens has to be the method's features.

        Args:
            parts: that it will make; the last block need give no more tokens than are `Backbone.wanted`.

        Raises:
            ValueError: The method has no such adapters.
        """
        raise ValueError(
            f"{type(self).__name__} has no adapters that a device could train on; NTKCL() has, and "
            "train_step='head' goes with every method"
        )

    def config(self) -> dict[str, Any]:
        """Give the constructor's arguments, to write them down."""
        parameters = inspect.signature(type(self)).parameters.values()
        # Keyword-only: a method without a constructor has nn.Module's, with *args and **kwargs.
        return {one.name: getattr(self, one.name) for one in parameters if one.kind is one.KEYWORD_ONLY}

    @classmethod
    def completed(cls, config: dict[str, Any]) -> dict[str, Any]:
        """A saved configuration, and what it was in effect where an argument came later than it."""
        later = {name: value for name, value in LATER.items() if name in inspect.signature(cls).parameters}
        return later | config

    def trainable(self) -> list[nn.Parameter]:
        """Give the parameters that the optimizer moves."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def own_parameters(self, module: nn.Module) -> list[nn.Parameter]:
        """The parameters of a module that are none of the backbone's, which a `Backbone.twin` has, too."""
        shared = self.backbone.shared()
        return [parameter for parameter in module.parameters() if id(parameter) not in shared]

    def shared(self) -> dict[int, Any]:
        """What no task changes, as a memo for ``copy.deepcopy``: copies hold these very objects."""
        return {id(self.backbone): self.backbone, **self.backbone.shared()}

    def learned(self) -> dict[str, Tensor]:
        """Give what the method keeps beside the backbone: the part of its state to save.

        Of a `Backbone.twin` that is what was put into it: the weights are the backbone's own.
        """
        shared = self.backbone.shared()
        state = self.state_dict(keep_vars=True)
        return {name: value.detach() for name, value in state.items() if id(value) not in shared}

    def restore(self, learned: dict[str, Tensor], classes: Iterable[str] = ()) -> None:
        """Put back what `learned` gave and the names in `classes`.

        Raises:
            ValueError: when it is another configuration's.
        """
        for name, module in self.named_modules():
            if isinstance(module, Growing):
                module.grow(len(learned.get(f"{name}.{module.counted}", ())))
        own = self.learned()
        shapes = {name: tuple(value.shape) for name, value in own.items()}
        if shapes != {name: tuple(value.shape) for name, value in learned.items()}:
            odd = sorted(own.keys() ^ learned.keys()) or [n for n in own if own[n].shape != learned[n].shape]
            raise ValueError(
                f"saved weights are not those of this {type(self).__name__}: they differ at {odd[:3]}; "
                "make it with the backbone and the arguments that it was saved with"
            )
        self.load_state_dict(learned, strict=False)
        self.classes = Classes(classes)


class Features(nn.Module):
    """A method as a module whose call gives its features."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W)."""
        return self.method.features(images)


@runtime_checkable
class Growing(Protocol):
    """A module that makes room, so that there are so many rows of the tensor that is ``counted``."""

    counted: ClassVar[str]

    def grow(self, rows: int, /) -> None:
        """Make room; rows that are there stay."""


@runtime_checkable
class PerClass(Protocol):
    """A module that keeps something for each class, at its place in `Method.classes`."""

    def drop_class(self, place: int, /) -> None:
        """Delete what is kept for the class at this place; later ones move up by one."""


class LinearClassifier(nn.Module):
    """Logits ``w_c . features + b_c``; new classes start at zero."""

    counted: ClassVar[str] = "weight"

    def __init__(self, width: int, classes: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def grow(self, classes: int) -> None:
        """Make room for further classes, so that there are this many; old rows stay."""
        new = max(classes - len(self.weight), 0)
        trains = self.weight.requires_grad
        self.weight = nn.Parameter(nn.functional.pad(self.weight.detach(), (0, 0, 0, new)), trains)
        self.bias = nn.Parameter(nn.functional.pad(self.bias.detach(), (0, new)), trains)

    def drop_class(self, place: int) -> None:
        """Delete the row of the class at this place."""
        self.weight, self.bias = without_row(self.weight, place), without_row(self.bias, place)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, F)."""
        return nn.functional.linear(features, self.weight, self.bias)


class CosineClassifier(nn.Module):
    """Logits ``scale * cos(features, w_c)`` with a learnable scale; classes added later start at zero."""

    counted: ClassVar[str] = "weight"

    def __init__(self, width: int, classes: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        self.scale = nn.Parameter(torch.tensor(scale))
        if classes:
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def grow(self, classes: int) -> None:
        """Make room for further classes, so that there are this many; old rows stay."""
        new = max(classes - len(self.weight), 0)
        rows = nn.functional.pad(self.weight.detach(), (0, 0, 0, new))
        self.weight = nn.Parameter(rows, self.weight.requires_grad)

    def drop_class(self, place: int) -> None:
        """Delete the row of the class at this place."""
        self.weight = without_row(self.weight, place)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, F)."""
        unit = nn.functional.normalize
        return self.scale * unit(features, dim=1) @ unit(self.weight, dim=1).T


def without_row(parameter: nn.Parameter, place: int) -> nn.Parameter:
    """Give a parameter without its row at this place."""
    rows = parameter.detach()
    return nn.Parameter(torch.cat([rows[:place], rows[place + 1 :]]), parameter.requires_grad)
