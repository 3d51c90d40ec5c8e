"""DualLoRA: low-rank updates in directions that old tasks leave free, and gated ones in each task's own."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everlearn.adapters.gated import GatedLoRA
from everlearn.adapters.lora import insert_lora
from everlearn.backbones import Backbone, Depths, fuse_qkv
from everlearn.backbones.parts import given
from everlearn.methods.base import Batches, LinearClassifier, Method, TaskInfo
from everlearn.methods.dual_lora.energy import Energy
from everlearn.methods.dual_lora.evidence import MARGIN, note_usual, with_shares
from everlearn.methods.dual_lora.inflora import InfLoRA
from everlearn.methods.dual_lora.rule import Rule
from everlearn.methods.dual_lora.subspaces import Subspace, fewest_directions
from everlearn.tables import Table
from everlearn.training import Training
from everlearn_runtime.heads import LDA, EvidenceLDA, Head

RULES: dict[str, type[Rule]] = {"energy": Energy, "inflora": InfLoRA}
"""By which rule directions are read and kept clear of."""


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

    ``subspace="inflora"`` does what InfLoRA's released code does, the residual branch being off, see
    `everlearn.methods.dual_lora.inflora`.

    Nothing is kept for each class between two tasks; what a slot or Psi has of a task's inputs is of all
    its classes together, and stays when one of them is forgotten.

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
        depths: further parts, for the head alone, as in `Frozen`.
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
        depths: Depths = (),
    ) -> None:
        super().__init__()
        if subspace not in RULES:
            raise ValueError(f"subspace must be 'energy' or 'inflora', got {subspace!r}")
        if subspace == "inflora" and (residual or capacity is not None):
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
        self.rule = RULES[subspace]()
        self.subspace = subspace
        self.rank = rank
        self.energy = (low, high)
        self.tasks = tasks
        self.directions = directions
        self.capacity = capacity
        self.residual = self.rule.residual if residual is None else residual
        self.patches = patches
        self.depths = given(depths)
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
        capacity = self.rule.capacity(self, width)
        if capacity > width:
            raise ValueError(f"capacity must be at most the width, {width}, got {self.capacity}")
        self.rule.check(backbone)
        super().attach(backbone)
        self.twin = backbone.twin()
        for block in self.twin.blocks():
            fuse_qkv(block.attn)
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
                    first=branch.linear.out_features // 3,  # behind the queries
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
        """Widths of CLS, of the parts, and of the evidence."""
        return super().sections + ((self.tasks,) if self.evidence else ())

    def head(self) -> Head:
        """LDA; the one that looks at the evidence, where there is some."""
        return EvidenceLDA(tasks=self.tasks, margin=MARGIN) if self.evidence else LDA()

    def begin_task(self, task: TaskInfo) -> None:
        """Make the task's classifier."""
        self.index = task.index
        width = sum(self.backbone.sections(self.trained_parts))
        self.classifier = LinearClassifier(width, len(task.classes)).to(self.backbone.mean)

    def survey(self, batches: Batches) -> None:
        """Choose A and Phi_t of every block by the task's inputs."""
        for index, (branch, moment) in enumerate(zip(self.orthogonal, self.moments(batches), strict=True)):
            psi = self.psi(index)
            down = self.rule.down(moment, psi, self.rank)
            branch.down.copy_(down.expand_as(branch.down))
            if self.residual and self.index < self.tasks:
                room = len(self.memory[index]) - len(psi.basis)
                directions = fewest_directions(moment, psi.basis, self.threshold)
                self.residual_branch[index].open(self.index, directions[: min(room, self.directions)])

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over the task's own classes."""
        assert self.classifier is not None
        features = self.twin.features(images, self.trained_parts)
        return {"ce": F.cross_entropy(self.classifier(features), targets)}

    def end_task(self, batches: Batches) -> None:
        """Merge the orthogonal branch, keep the residual one, and take the inputs into Psi."""
        for branch in self.orthogonal:
            branch.linear = branch.merged()
            branch.up.data.zero_()
        own = [gated.keep().double() for gated in self.residual_branch]
        none = self.memory.new_zeros(0, self.memory.shape[2], dtype=torch.float64)
        later = max(self.tasks - 1 - self.index, 0) if self.residual else 0
        reserved = later * self.directions
        omega: list[list[Tensor]] = [[] for _ in own]

        def look(block: int, gated: GatedLoRA, given: tuple[Tensor]) -> None:
            omega[block].append(gated.omega(given[0][:, 0]))

        with _looking(self.residual_branch if self.evidence else [], look):
            moments = self.moments(batches)
        for index, moment in enumerate(moments):
            rows = own[index] if own else none
            psi = self.rule.take_in(self, moment, self.psi(index), rows, len(self.memory[index]) - reserved)
            self.free[index] = psi.free
            self.memory[index] = F.pad(psi.basis, (0, 0, 0, len(self.memory[index]) - len(psi.basis)))
            self.left_out[index].clamp_(min=self._left(index, moment) / moment.trace().item())
        if self.evidence and self.index < self.tasks:
            note_usual(self, omega)
        self.classifier = None

    @property
    def threshold(self) -> float:
        """Share of the energy that the current task's directions have to reach, together with Psi."""
        return self.rule.threshold(self)

    def psi(self, block: int) -> Subspace:
        """Psi of a block, without the memory's unused rows, in float64."""
        rows = self.memory[block]
        return Subspace(rows[rows.any(1)].double(), bool(self.free[block]))

    def moments(self, batches: Batches) -> list[Tensor]:
        """Second moments, not centred, of what enters keys and values of each block, float64 (d, d).

        Of those tokens that the rule reads: CLS, or for ``"inflora"`` all.
        """
        width = self.backbone.vit.embed_dim
        sums = [self.memory.new_zeros(width, width, dtype=torch.float64) for _ in self.orthogonal]
        counts = [0] * len(sums)

        def collect(index: int, _: nn.Module, given: tuple[Tensor]) -> None:
            rows = self.rule.tokens(given[0]).flatten(0, 1).double()
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

    def report(self, tasks: Sequence[Batches], classes: Sequence[str]) -> Table:
        """Give the share of each task's energy that lies outside Psi, block by block."""
        return Table(
            "Inputs outside Psi, in percent of their energy: what the next task can move",
            ["block", *(str(block + 1) for block in range(self.backbone.depth))],
            [
                [f"task {number}"]
                + [
                    f"{100 * self._left(index, moment) / moment.trace().item():.1f}"
                    for index, moment in enumerate(self.moments(batches))
                ]
                for number, batches in enumerate(tasks, 1)
            ],
        )

    def _left(self, block: int, moment: Tensor) -> float:
        """Energy outside Psi."""
        return max(self.psi(block).outside(moment).trace().item(), 0.0)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W)."""
        if self.evidence:
            return with_shares(self, images)
        return self.twin.features(images, self.parts)


@contextlib.contextmanager
def _looking(modules: Sequence[nn.Module], look: Callable[[int, Any, tuple[Tensor]], None]) -> Iterator[None]:
    """Call ``look`` with number, module and inputs whenever one of the modules is called."""
    hooks = [module.register_forward_pre_hook(partial(look, number)) for number, module in enumerate(modules)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
