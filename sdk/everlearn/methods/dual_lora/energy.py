"""DualLoRA's own rule: Psi covers a share of the energy of the inputs, and never more than fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from everlearn.backbones import Backbone
from everlearn.methods.dual_lora.rule import Rule
from everlearn.methods.dual_lora.subspaces import Subspace, fewest_directions, principal

if TYPE_CHECKING:
    from everlearn.methods.dual_lora.method import DualLoRA


class Energy(Rule):
    """Moments of CLS, A from the principal directions outside Psi, Psi by shares of the energy."""

    residual: ClassVar[bool] = True

    def check(self, backbone: Backbone) -> None:
        """Raise ``ValueError`` where there is no CLS to be read."""
        if not backbone.has_cls:
            raise ValueError(
                f"backbone {backbone.name!r} has no CLS token, which this method reads; choose one that has, "
                "or take subspace='inflora'"
            )

    def capacity(self, method: DualLoRA, width: int) -> int:
        """As many as the user says, or half."""
        return method.capacity or width // 2

    def tokens(self, given: Tensor) -> Tensor:
        """CLS alone, (B, 1, d)."""
        return given[:, :1]

    def threshold(self, method: DualLoRA) -> float:
        """From the first share of the energy to the last by equal steps, one a task."""
        low, high = method.energy
        return low + (high - low) * min(method.index / max(method.tasks - 1, 1), 1)

    def down(self, moment: Tensor, psi: Subspace, rank: int) -> Tensor:
        """The directions with the most energy outside Psi; zero where fewer are free."""
        down = principal(moment, psi.basis)[1][:rank]
        return F.pad(down, (0, 0, 0, rank - len(down)))

    def take_in(self, method: DualLoRA, moment: Tensor, psi: Subspace, own: Tensor, room: int) -> Subspace:
        """Psi, the task's own directions, and the fewest beside them that the threshold asks for."""
        basis = torch.cat([psi.basis, own])
        more = fewest_directions(moment, basis, method.threshold)[: max(room - len(basis), 0)]
        return Subspace(torch.cat([basis, more]))
