"""What the forms of NTK-CL differ in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from everlearn.backbones import Backbone, Depths
from everlearn.methods.losses import overlap, supervised_info_nce
from everlearn_runtime.heads import Head

if TYPE_CHECKING:
    from everlearn.methods.ntkcl.method import NTKCL


class Seen(NamedTuple):
    """How the images of a batch are seen in training.

    Attributes:
        views: what is classified, (B, F) each, by name.
        features: what is compared with old prototypes, (B, F) each, by name.
        apart: which of the features L_dis holds apart.
        clear: which of them L_orth keeps clear of the old prototypes' directions.
    """

    views: dict[str, Tensor]
    features: dict[str, Tensor]
    apart: str
    clear: tuple[str, ...]


class Form(ABC):
    """A form of NTK-CL: how images are seen, and what the terms of the loss are.

    It keeps nothing: all that a form makes and reads is the method's. The terms here are the paper's.

    Attributes:
        hidden, scale, sharpness: what `NTKCL` takes where the user gives none.
        depths, later: likewise.
        steady: whether the averaged adapters stay in evaluation mode in training.
    """

    hidden: ClassVar[int]
    scale: ClassVar[float]
    sharpness: ClassVar[float]
    depths: ClassVar[Depths] = ()
    later: ClassVar[float] = 1.0
    steady: ClassVar[bool] = True

    def check(self, method: NTKCL) -> None:  # noqa: B027 - a form may take all
        """``ValueError`` for arguments that this form cannot have."""

    def check_backbone(self, backbone: Backbone) -> None:  # noqa: B027 - a form may go with all
        """``ValueError`` for a backbone that this form cannot go on."""

    def insert(self, method: NTKCL) -> None:  # noqa: B027 - the channel view's may be all
        """Put what this form has beside the channel view's adapters into ``cur`` and beside it."""

    @abstractmethod
    def sections(self, method: NTKCL) -> tuple[int, ...]:
        """Widths of the parts that the features consist of."""

    @abstractmethod
    def head(self, method: NTKCL) -> Head:
        """Make the head that goes with this form."""

    @abstractmethod
    def begin_task(self, method: NTKCL, classes: int) -> None:
        """Make the task's classifiers."""

    @abstractmethod
    def see(self, method: NTKCL, images: Tensor) -> Seen:
        """See normalised images (B, 3, H, W) as training does."""

    @abstractmethod
    def features(self, method: NTKCL, images: Tensor) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W)."""

    def remember(self, method: NTKCL, prototypes: Tensor, classes: int) -> None:
        """Take down what the loss needs of old prototypes (K, F), for a task of so many classes."""
        unit = F.normalize(prototypes, dim=1)
        _, singular, directions = torch.linalg.svd(unit, full_matrices=False)
        method.basis = directions[singular > 1e-6][: method.rank]
        method.old = unit

    def negatives(self, method: NTKCL, count: int) -> Tensor:
        """Which of the old prototypes join L_dis in a step of ``count`` images: here all, int64 (K,)."""
        return torch.arange(len(method.old), device=method.old.device)

    def dissimilarity(self, method: NTKCL, features: Tensor, targets: Tensor) -> Tensor:
        """L_dis of features (B, F) with targets int64 (B,)."""
        old = method.old[method.negatives(len(features))]
        return supervised_info_nce(features, targets, old, method.temperature)

    def in_old_span(self, features: Tensor, basis: Tensor) -> Tensor:
        """L_orth of one view, (B, F), and orthonormal rows (R, F)."""
        return overlap(features, basis)
