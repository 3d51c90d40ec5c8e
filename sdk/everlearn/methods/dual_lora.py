"""DualLoRA: low-rank updates in directions that old tasks leave free, and gated ones in each task's own."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everlearn.adapters.gated import GatedLinear, GatedLoRA
from everlearn.adapters.lora import insert_lora
from everlearn.adapters.subspaces import Subspace, dual_gpm, fewest_directions, principal, released_down
from everlearn.backbones import Backbone
from everlearn.methods.base import Batches, LinearClassifier, Method, TaskInfo
from everlearn.training import Training
from everlearn_runtime.heads import LDA, EvidenceLDA, Head

# Least standard deviation of omega that evidence is measured by: that of one image is zero, and a
# smaller one would make of float32's rounding what the exported graph may not show.
SPREAD = 0.01
# How far the largest share has to be ahead for the head to look at it: of 0, 0.3 and 0.6 the last did
# the least harm on held-out training images.
MARGIN = 0.6


class DualLoRA(Method):
    """Adapt keys and values of every block by two kinds of low-rank updates.

    The paper came without code, and its equations were not at hand: this is a reconstruction from
    its description and from InfLoRA's released code, on which its orthogonal half is built.

    With h the CLS token that enters a block's keys and values, and Psi orthonormal directions in
    which the earlier tasks' h lie:

    - The orthogonal branch ``B A`` reads, by A, the ``rank`` directions with the most energy that
      are orthogonal to Psi; B is trained. What lies in Psi it does not touch, and what of an old h
      lies outside can move by no more than ``|B|`` times the root of its energy there: `outside`
      tells how much that is. After the task B A is merged into the method's copy of the weights.
    - The residual branch ``C_t Phi_t^T`` reads the fewest directions beside Psi that bring the
      task's energy to a threshold; C_t is trained. It stays as it is, and acts as far as an image
      is of that task: it is scaled by omega_t = ``|Phi_t^T h|^2 / |h|^2``, once an image.
    - After training Psi takes in Phi_t, and what the threshold now asks for beside it.

    Memory is bounded, and of the same size at all times: `tasks` slots of `directions` for the
    residual branch, `capacity` directions in Psi, in which room is kept for the slots to come. A task
    that finds no slot or no room trains what is left: fewer residual directions or none, and always
    the orthogonal branch. What does not fit into Psi is not protected from later tasks.

    Psi is made of CLS tokens only, while keys and values are computed from all tokens: those of an old
    image's patches may move. On three tasks of Split Tiny-ImageNet-B, held-out training images, one seed,
    A_T was 61.1, and a ridge on the same features forgot 12.5 points; with moments of all tokens, which
    would be another method, 61.1 and 10.3. On these features untrained LDA had 59.9, and the ridge forgot
    10.9.

    With ``evidence`` the head is told how much an image looks like each task: the mean of omega over the
    blocks, standardised by its figures on the task's own images, in a softmax over the tasks. Where one
    is clearly ahead, `EvidenceLDA` adds its logarithm to the scores of that task's classes. It is off by
    default: on four tasks of Split Tiny-ImageNet-B, held-out training images, it found 42 % of the
    tasks, the LDA head by itself 61 %, and together they had 52.5 % of the classes right, LDA 52.6.

    ``subspace="inflora"`` does what InfLoRA's released code does, the residual branch being off:
    moments of all tokens, A from the left singular vectors of (I - P) M over sqrt(3), Psi by
    `dual_gpm` with a threshold that never reaches its end, without a cap on its size.

    The settings are for small ViTs; for a ViT-B/16 the paper takes rank 10, Adam with 5e-4, batches
    of 128, 20 epochs (50 on ImageNet-R), and a threshold from 0.95 to 1.

    Args:
        subspace: ``"energy"`` or ``"inflora"``, see above.
        rank: of the orthogonal branch.
        energy: threshold at the first task and at the last of `tasks`; in between it rises by equal
            steps. A share of the energy, or for ``"inflora"`` of the squared eigenvalues.
        tasks: slots of the residual branch, and the task at which the threshold has risen.
        directions: most directions of a task in the residual branch.
        capacity: most directions in Psi; None: half of the width.
        residual: whether there is a residual branch; None: unless it is ``"inflora"``.
        patches: let classifier and head see the mean of the patch tokens behind CLS.
        evidence: append the shares of the tasks, one for each slot, to the features.

    Attributes:
        twin: the backbone with adapters inside.
        orthogonal: the `LoRA` of each block; ``down`` holds A for keys and for values, ``up`` B of
            each, ``linear`` the copy of the weights that takes in what is merged.
        residual_branch: the `GatedLoRA` of each block, where there is one.
        memory: Psi of each block, (blocks, capacity, d): unused rows are zero.
        free: true where the memory holds what is left free, see `Subspace`, (blocks,).
        usual, spread: mean and standard deviation of omega on each task's own images, (tasks,); a
            spread of zero where there is no such task.
        left_out: largest share of a task's energy outside Psi when it was taken in, (blocks,).
        classifier: of the current task's classes, None between tasks.

    Source: "Dual Low-Rank Adaptation for Continual Learning with Pre-Trained Models", arXiv
    2411.00623; Liang and Li, "InfLoRA: Interference-Free Low-Rank Adaptation for Continual
    Learning", arXiv 2404.00228.
    """

    defaults: ClassVar[Training] = Training(
        epochs=3, batch_size=32, lr=5e-4, optimizer="adam", weight_decay=0.0
    )
    memory: Tensor
    free: Tensor
    left_out: Tensor
    usual: Tensor
    spread: Tensor

    def __init__(
        self,
        *,
        subspace: str = "energy",
        rank: int = 10,
        energy: tuple[float, float] = (0.95, 1.0),
        tasks: int = 10,
        directions: int = 5,
        capacity: int | None = None,
        residual: bool | None = None,
        patches: bool = True,
        evidence: bool = False,
    ) -> None:
        super().__init__()
        if subspace not in ("energy", "inflora"):
            raise ValueError(f"subspace must be 'energy' or 'inflora', got {subspace!r}")
        released = subspace == "inflora"
        if released and (residual or capacity is not None):
            raise ValueError(
                "subspace='inflora' has no residual branch and no capacity, got "
                f"residual={residual!r} and capacity={capacity!r}; leave both out, or take subspace='energy'"
            )
        counts = {"rank": rank, "tasks": tasks, "directions": directions, "capacity": capacity}
        for name, value in counts.items():
            if name == "capacity" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        low, high = energy
        if not 0 < low <= high <= 1:
            raise ValueError(f"energy must be two shares, 0 < first <= last <= 1, got {energy!r}")
        self.subspace = subspace
        self.rank = rank
        self.energy = (low, high)
        self.tasks = tasks
        self.directions = directions
        self.capacity = capacity
        self.residual = not released if residual is None else residual
        self.patches = patches
        self.evidence = evidence
        if evidence and not self.residual:
            raise ValueError(
                "evidence comes from the residual branch, got evidence=True without it; leave one out"
            )

    def attach(self, backbone: Backbone) -> None:
        """Put both branches around keys and values of every block of a twin."""
        width = backbone.vit.embed_dim
        if self.rank > width:
            raise ValueError(f"rank must be at most the width of the backbone, {width}, got {self.rank}")
        capacity = width if self.subspace == "inflora" else self.capacity or width // 2
        if capacity > width:
            raise ValueError(f"capacity must be at most the width, {width}, got {self.capacity}")
        if self.subspace == "energy" and not backbone.prefix:
            raise ValueError(
                f"backbone {backbone.name!r} has no CLS token, which this method reads; choose one that has, "
                "or take subspace='inflora'"
            )
        super().attach(backbone)
        self.twin = backbone.twin()
        self.orthogonal = insert_lora(self.twin, layers=("key", "value"), rank=self.rank)
        self.residual_branch: list[GatedLoRA] = []
        for block, branch in zip(self.twin.blocks(), self.orthogonal, strict=True):
            branch.linear = copy.deepcopy(branch.linear)  # an own copy, to merge into
            branch.down.requires_grad_(False)
            if self.residual:
                gated = GatedLoRA(
                    branch,
                    width=width,
                    outputs=branch.linear.out_features,
                    first=width,  # behind the queries
                    slots=self.tasks,
                    directions=self.directions,
                )
                block.attn.qkv = gated
                self.residual_branch.append(gated)
        blocks, like = len(self.orthogonal), backbone.mean
        self.register_buffer("memory", like.new_zeros(blocks, capacity, width))
        self.register_buffer("free", torch.zeros(blocks, dtype=torch.bool, device=like.device))
        self.register_buffer("left_out", like.new_zeros(blocks))
        self.register_buffer("usual", like.new_zeros(self.tasks))
        self.register_buffer("spread", like.new_zeros(self.tasks))
        self.classifier: LinearClassifier | None = None

    @property
    def sections(self) -> tuple[int, ...]:
        """Widths of CLS, of the mean patch, and of the evidence."""
        return self.twin.sections(self.patches) + ((self.tasks,) if self.evidence else ())

    def head(self) -> Head:
        """LDA; the one that looks at the evidence, where there is some."""
        return EvidenceLDA(tasks=self.tasks, margin=MARGIN) if self.evidence else LDA()

    def begin_task(self, task: TaskInfo) -> None:
        """Make the task's classifier."""
        self.index = task.index
        width = sum(self.twin.sections(self.patches))
        self.classifier = LinearClassifier(width, len(task.classes)).to(self.backbone.mean)

    def survey(self, batches: Batches) -> None:
        """Choose A and Phi_t of every block by the task's inputs."""
        for index, (branch, moment) in enumerate(zip(self.orthogonal, self.moments(batches), strict=True)):
            psi = self.psi(index)
            if self.subspace == "inflora":
                down = released_down(moment, psi, self.rank)
            else:
                down = principal(moment, psi.basis)[1][: self.rank]
                down = F.pad(down, (0, 0, 0, self.rank - len(down)))  # where less than that is free
            branch.down.copy_(down.expand_as(branch.down))
            if self.residual and self.index < self.tasks:
                room = len(self.memory[index]) - len(psi.basis)
                directions = fewest_directions(moment, psi.basis, self.threshold)
                self.residual_branch[index].open(self.index, directions[: min(room, self.directions)])

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over the task's own classes."""
        assert self.classifier is not None
        features = self.twin.features(images, patches=self.patches)
        return {"ce": F.cross_entropy(self.classifier(features), targets)}

    def end_task(self, batches: Batches) -> None:
        """Merge the orthogonal branch, keep the residual one, and take the inputs into Psi."""
        for branch in self.orthogonal:
            branch.linear = branch.merged()
            branch.up.data.zero_()
        own = [gated.keep().double() for gated in self.residual_branch]
        later = max(self.tasks - 1 - self.index, 0) if self.residual else 0
        reserved = later * self.directions
        omega: list[list[Tensor]] = [[] for _ in own]

        def look(block: int, gated: GatedLoRA, given: tuple[Tensor]) -> None:
            omega[block].append(gated.omega(given[0][:, 0]))

        with _looking(self.residual_branch if self.evidence else [], look):
            moments = self.moments(batches)
        for index, moment in enumerate(moments):
            psi = self.psi(index)
            if self.subspace == "inflora":
                psi = dual_gpm(moment, psi if self.index else None, self.threshold)
            else:
                basis = torch.cat([psi.basis, *own[index : index + 1]])
                room = max(len(self.memory[index]) - reserved - len(basis), 0)
                more = fewest_directions(moment, basis, self.threshold)[:room]
                psi = Subspace(torch.cat([basis, more]))
            self.free[index] = psi.free
            self.memory[index] = F.pad(psi.basis, (0, 0, 0, len(self.memory[index]) - len(psi.basis)))
            self.left_out[index].clamp_(min=self._left(index, moment) / moment.trace().item())
        if self.evidence and self.index < self.tasks:
            own_task = torch.stack([torch.cat(parts) for parts in omega]).mean(0)[:, self.index]
            self.usual[self.index] = own_task.mean()
            self.spread[self.index] = own_task.std(correction=0).clamp(min=SPREAD)
        self.classifier = None

    @property
    def threshold(self) -> float:
        """Share of the energy that the current task's directions have to reach, together with Psi."""
        low, high = self.energy
        if self.subspace == "inflora":
            return low + (high - low) * min(self.index / self.tasks, 1)  # a task late: see `dual_gpm`
        return low + (high - low) * min(self.index / max(self.tasks - 1, 1), 1)

    def psi(self, block: int) -> Subspace:
        """Psi of a block, without the memory's unused rows, in float64."""
        rows = self.memory[block]
        return Subspace(rows[rows.any(1)].double(), bool(self.free[block]))

    def moments(self, batches: Batches) -> list[Tensor]:
        """Second moments, not centred, of what enters keys and values of each block, float64 (d, d).

        Of CLS; for ``"inflora"`` of all tokens.
        """
        width = self.backbone.vit.embed_dim
        sums = [self.memory.new_zeros(width, width, dtype=torch.float64) for _ in self.orthogonal]
        counts = [0] * len(sums)

        def collect(index: int, _: nn.Module, given: tuple[Tensor]) -> None:
            tokens = given[0] if self.subspace == "inflora" else given[0][:, :1]
            rows = tokens.flatten(0, 1).double()
            sums[index] += rows.T @ rows
            counts[index] += len(rows)

        with torch.no_grad(), _looking(self.orthogonal, collect):
            for images, _ in batches:
                self.twin.features(images)
        return [total / count for total, count in zip(sums, counts, strict=True)]

    def outside(self, batches: Batches) -> list[float]:
        """Measure how much of these images' energy lies outside Psi, as a mean over them, block by block.

        By no more than ``|B|`` times its root does the next task's orthogonal branch move what the keys
        and values of these images are, in the root mean square. `left_out` has the largest share that
        was left outside when a task was taken in.
        """
        return [self._left(index, moment) for index, moment in enumerate(self.moments(batches))]

    def report(self, tasks: Sequence[Batches], classes: Sequence[str]) -> str:
        """Give the share of each task's energy that lies outside Psi, block by block."""
        lines = [
            "Inputs outside Psi, in percent of their energy: what the next task can move",
            f"{'block':>8}" + "".join(f"{block + 1:6}" for block in range(self.backbone.depth)),
        ]
        for number, batches in enumerate(tasks, 1):
            shares = [
                100 * self._left(index, moment) / moment.trace().item()
                for index, moment in enumerate(self.moments(batches))
            ]
            lines.append(f"{f'task {number}':>8}" + "".join(f"{share:6.1f}" for share in shares))
        return "\n".join(lines)

    def _left(self, block: int, moment: Tensor) -> float:
        """Energy outside Psi."""
        return max(self.psi(block).outside(moment).trace().item(), 0.0)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W)."""
        if not self.evidence:
            return self.twin.features(images, patches=self.patches)
        features, omega = self._with_omega(images)
        known = self.spread > 0
        standard = (omega - self.usual) / self.spread.clamp(min=1e-6)
        shares = torch.where(known, standard, torch.full_like(standard, -1e4)).softmax(1)
        return torch.cat([features, shares * known], 1)

    def _with_omega(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features without evidence, and the mean of omega over the blocks, (B, tasks)."""
        tokens = self.twin.embed(images)
        omega = self.usual.new_zeros(1, self.tasks)
        for block in self.twin.blocks():
            layer = block.attn.qkv
            if isinstance(layer, GatedLinear):  # one in which nothing is stored may be merged away
                omega = omega + layer.omega(block.norm1(tokens[:, 0])) / self.backbone.depth
            tokens = block(tokens)
        features = self.twin.both(tokens).flatten(1) if self.patches else self.twin.pool(tokens)
        return features, omega


@contextlib.contextmanager
def _looking(modules: Sequence[nn.Module], look: Callable[[int, Any, tuple[Tensor]], None]) -> Iterator[None]:
    """Call ``look`` with number, module and inputs whenever one of the modules is called."""
    hooks = [module.register_forward_pre_hook(partial(look, number)) for number, module in enumerate(modules)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
