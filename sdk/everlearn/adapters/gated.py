"""Gated LoRA: low-rank updates of a layer, each as strong as an image lies in its task's subspace."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedLinear(nn.Module):
    """``inner(x) + sum_s omega_s(h) C_s Phi_s^T x``, with h the first token of x (CLS).

    omega_s = ``|Phi_s^T h|^2 / |h|^2`` is the share of CLS that lies in the subspace of slot s: one
    factor for each image and slot. Nothing of it merges into the weights, as it depends on the
    image; there is no branching, so it is an ordinary part of a static graph.

    Args:
        inner: the layer around which it stands, d_in to d_out.
        basis: rows Phi of all slots, (K, d_in).
        owner: one where a row is a slot's, (S, K).
        kept: coefficients C, a row for each direction, (K, d_out - first).
        first: the first of the outputs that is updated; those before are left alone.
    """

    basis: Tensor
    owner: Tensor
    kept: Tensor

    def __init__(self, inner: nn.Module, basis: Tensor, owner: Tensor, kept: Tensor, first: int) -> None:
        super().__init__()
        self.inner = inner
        self.first = first
        self.register_buffer("basis", basis)
        self.register_buffer("owner", owner)
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, d_in) to (B, N, d_out)."""
        gates = self.omega(x[:, 0]) @ self.owner
        update = (F.linear(x, self.basis) * gates[:, None]) @ self.coefficients()
        return cast(Tensor, self.inner(x) + F.pad(update, (self.first, 0)))

    def omega(self, cls: Tensor) -> Tensor:
        """Share of CLS (B, d_in) in the subspace of each slot, (B, S), from 0 to 1."""
        energy = F.linear(F.linear(cls, self.basis).square(), self.owner)
        return energy / cls.square().sum(1, keepdim=True).clamp(min=1e-12)

    def coefficients(self) -> Tensor:
        """C of all slots, (K, d_out - first)."""
        return self.kept


class GatedLoRA(GatedLinear):
    """A `GatedLinear` whose slots are filled task by task.

    Every task s has a slot: directions Phi_s of the inputs, orthonormal and orthogonal to those of
    the other slots, and coefficients C_s, zero at first. While a task trains, `up` are the
    coefficients of its slot; `keep` puts them beside the others.

    Args:
        inner: the layer around which it stands.
        width: d_in.
        outputs: d_out.
        first: the first of the outputs that is updated.
        slots: S, tasks that can be kept.
        directions: m, most directions of a task. All is of fixed size, K = S m: what is not used
            is zero.

    Attributes:
        up: coefficients of the current task, (m, d_out - first).
        slot: one at the current task's slot, (S,); all zero where there is none.

    Source: arXiv 2411.00623, as `everlearn.methods.DualLoRA` reconstructs it.
    """

    slot: Tensor

    def __init__(
        self, inner: nn.Module, *, width: int, outputs: int, first: int, slots: int, directions: int
    ) -> None:
        like = next(inner.parameters())
        owner = torch.eye(slots).repeat_interleave(directions, dim=1)
        rows = len(owner.T)
        super().__init__(
            inner, like.new_zeros(rows, width), owner.to(like), like.new_zeros(rows, outputs - first), first
        )
        self.register_buffer("slot", like.new_zeros(slots))
        self.up = nn.Parameter(like.new_zeros(directions, outputs - first))

    def coefficients(self) -> Tensor:
        """C of all slots, the current one among them, (K, d_out - first)."""
        # The outer product puts `up` where the slot is; no index depends on data.
        return self.kept + (self.slot[:, None, None] * self.up).flatten(0, 1)

    def open(self, slot: int, directions: Tensor) -> None:
        """Give the current task a slot and its directions (n, d_in), n at most m."""
        most, start = len(self.up), slot * len(self.up)
        self.slot[slot] = 1
        self.basis[start : start + most] = F.pad(directions, (0, 0, 0, most - len(directions)))

    def keep(self) -> Tensor:
        """End the task: its coefficients stay, and `up` is zero again; gives its directions (n, d_in)."""
        with torch.no_grad():
            self.kept.copy_(self.coefficients())
            self.up.zero_()
        rows = self.basis[self.slot @ self.owner > 0]
        self.slot.zero_()
        return rows[rows.any(1)]

    def merged(self) -> nn.Module:
        """Merge what can be merged, the layer within; the gated part stays, without its unused rows."""
        merge_inner = getattr(self.inner, "merged", None)
        inner = self.inner if merge_inner is None else cast(nn.Module, merge_inner())
        used = self.basis.any(1)
        if not used.any():
            return inner
        return GatedLinear(
            inner, self.basis[used], self.owner[:, used], self.coefficients()[used].detach(), self.first
        )
