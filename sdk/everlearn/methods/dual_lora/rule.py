"""What a rule of subspaces says: which directions a task reads, and which are kept clear of."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from everlearn.backbones import Backbone
from everlearn.methods.dual_lora.subspaces import Subspace

if TYPE_CHECKING:
    from everlearn.methods.dual_lora.method import DualLoRA


class Rule(Protocol):
    """A rule of subspaces; it keeps nothing, all that it makes and reads is the method's.

    Attributes:
        residual: whether there is a residual branch where the user does not say.
    """

    residual: ClassVar[bool]

    def check(self, backbone: Backbone) -> None:
        """Raise ``ValueError`` for a backbone without the tokens that are read."""

    def capacity(self, method: DualLoRA, width: int) -> int:
        """How many directions of the width there is room for in Psi."""

    def tokens(self, given: Tensor) -> Tensor:
        """Those of a layer's inputs (B, N, d) whose moments are taken."""

    def threshold(self, method: DualLoRA) -> float:
        """The share that the current task's directions have to reach, together with Psi."""

    def down(self, moment: Tensor, psi: Subspace, rank: int) -> Tensor:
        """A (rank, d), by the moment (d, d) of the task's inputs before it is trained."""

    def take_in(self, method: DualLoRA, moment: Tensor, psi: Subspace, own: Tensor, room: int) -> Subspace:
        """Psi after the task.

        Args:
            method: for its threshold.
            moment: of the task's inputs after it was trained, (d, d).
            psi: before the task.
            own: the task's directions in the residual branch, (n, d).
            room: most directions that Psi may have now; those of the residual branch always fit.
        """
