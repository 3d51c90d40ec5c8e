"""DualLoRA: what its two branches promise, exactly where that is possible and measured otherwise."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from everlearn import DualLoRA, Images, Learner
from everlearn.adapters import GatedLinear, GatedLoRA, LoRA, merge
from everlearn.data.loader import Loader
from everlearn.methods.dual_lora.inflora import dual_gpm, released_down
from everlearn.methods.dual_lora.subspaces import (
    Subspace,
    fewest_directions,
    orthogonal_complement,
    principal,
)
from everlearn_runtime import EvidenceLDA

from ..conftest import coloured, fit_all, make_learner, vit

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)


def rows(seed: int, count: int, width: int, rank: int | None = None) -> Tensor:
    """Inputs (count, width) of uneven energy; of a rank, when one is given."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or width, width, generator=random, dtype=torch.float64)
    strength = torch.logspace(0, -3, len(mixing), dtype=torch.float64)
    return 0.3 + torch.randn(count, len(mixing), generator=random, dtype=torch.float64) @ (
        strength[:, None] * mixing
    )


def moment(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def none(width: int) -> Tensor:
    return torch.zeros(0, width, dtype=torch.float64)


def orthonormal(basis: Tensor) -> bool:
    return torch.allclose(basis @ basis.T, torch.eye(len(basis), dtype=basis.dtype), atol=1e-9)


# Subspaces


@few
@given(seed=seeds, width=st.integers(2, 12), energy=st.floats(0.05, 1.0))
def test_the_directions_are_the_fewest_that_reach_the_energy(seed: int, width: int, energy: float) -> None:
    inputs = moment(rows(seed, 3 * width, width))
    used = fewest_directions(moment(rows(seed + 1, 2, width)), none(width), 0.9)
    found = fewest_directions(inputs, used, energy)
    together = torch.cat([used, found])
    assert orthonormal(together)

    def covered(basis: Tensor) -> float:
        return ((basis @ inputs @ basis.T).trace() / inputs.trace()).item()

    assert covered(together) >= energy - 1e-8
    if len(found):
        assert covered(together[:-1]) < energy
        values = torch.linalg.eigvalsh(inputs - used.T @ used @ inputs)
        assert len(found) <= len(values)


def test_the_fewest_are_no_more_than_any_others() -> None:
    diagonal = torch.diag(torch.tensor([5.0, 3.0, 1.0, 1.0]).double())
    for energy, count in ((0.5, 1), (0.51, 2), (0.8, 2), (0.9, 3), (1.0, 4)):
        assert len(fewest_directions(diagonal, none(4), energy)) == count
    assert len(fewest_directions(diagonal, torch.eye(4).double()[:2], 0.8)) == 0
    assert len(fewest_directions(diagonal, torch.eye(4).double(), 1.0)) == 0


@few
@given(seed=seeds, width=st.integers(2, 12), count=st.integers(1, 30), data=st.data())
def test_principal_directions_keep_clear_of_what_is_used(
    seed: int, width: int, count: int, data: st.DataObject
) -> None:
    """However few inputs there are: also where no energy is left outside."""
    used = orthogonal_complement(none(width))[: data.draw(st.integers(0, width))]
    values, directions = principal(moment(rows(seed, count, width, rank=1)), used)
    assert orthonormal(torch.cat([used, directions]))
    assert len(used) + len(directions) == width
    assert (values[:-1] >= values[1:]).all()
    assert (values >= 0).all()


def test_the_release_counts_squares_and_takes_one_fewer_at_first() -> None:
    """Defect 3 of the record, beside what the energy asks for."""
    diagonal = torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.5, 0.5, 0.5]).double())
    # By squares 25, 9, 1, ...: two reach 0.9, so the first task takes one; by energy it takes four.
    first = dual_gpm(diagonal, None, 0.9)
    assert len(first.basis) == 1
    assert len(fewest_directions(diagonal, none(6), 0.9)) == 4
    assert len(dual_gpm(diagonal, first, 0.9).basis) == 2


def test_the_released_rows_are_not_the_principal_directions() -> None:
    """Of (I - P) M, not of (I - P) M (I - P): also outside the subspace, but others."""
    inputs = moment(rows(0, 40, 8))
    before = Subspace(fewest_directions(moment(rows(1, 40, 8)), none(8), 0.6))
    released = released_down(inputs, before, 3) * 3**0.5
    ours = principal(inputs, before.basis)[1][:3]
    assert (released @ before.basis.T).abs().max() < 1e-12
    assert (ours @ before.basis.T).abs().max() < 1e-12
    assert not torch.allclose(released.T @ released, ours.T @ ours, atol=1e-3)


# The two branches


@few
@given(seed=seeds, width=st.integers(3, 10), rank=st.integers(1, 3), energy=st.floats(0.1, 0.99))
def test_old_outputs_drift_no_further_than_the_energy_outside_allows(
    seed: int, width: int, rank: int, energy: float
) -> None:
    """|B A h| <= |B| |(I - P) h| for every old h, so in the root mean square |B| times the root of E."""
    old = rows(seed, 4 * width, width)
    psi = Subspace(fewest_directions(moment(old), none(width), energy))
    down = principal(moment(rows(seed + 1, 3 * width, width)), psi.basis)[1][:rank]
    linear = nn.Linear(width, width).double()
    branch = LoRA(linear, rank=len(down))
    with torch.no_grad():
        branch.down.copy_(down)
        branch.up.copy_(torch.randn(branch.up.shape, generator=torch.Generator().manual_seed(seed)))
        drift = branch(old) - linear(old)
        norm = torch.linalg.matrix_norm(branch.up[0], 2)
    each = psi.outside(old.T).norm(dim=0)
    assert (drift.norm(dim=1) <= norm * each + 1e-9).all()
    energy_outside = psi.outside(moment(old)).trace()
    assert drift.square().sum(1).mean().sqrt() <= norm * energy_outside.sqrt() + 1e-9


def filled(seed: int = 0, width: int = 8, slots: int = 4) -> GatedLoRA:
    """Two of four slots filled, with 2 and 1 of at most 2 directions; the third is being trained."""
    inner = LoRA(nn.Linear(width, 3 * width).double(), rank=2, parts=(1, 2), of=3)
    gated = GatedLoRA(inner, width=width, outputs=3 * width, first=width, slots=slots, directions=2)
    basis = torch.linalg.qr(rows(seed, width, width)).Q
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        inner.up.normal_(generator=random)
        for slot, part in enumerate((basis[:2], basis[2:3], basis[3:5])):
            gated.open(slot, part)
            gated.up.normal_(generator=random)
            if slot < 2:
                gated.keep()
    return gated


@few
@given(seed=seeds)
def test_each_residual_is_as_strong_as_cls_lies_in_its_subspace(seed: int) -> None:
    gated, tokens = filled(seed), rows(seed, 15, 8).view(3, 5, 8)
    expected = gated.inner(tokens)
    for image, given_tokens in enumerate(tokens):
        cls = given_tokens[0]
        for slot in range(4):
            phi, c = gated.basis[2 * slot : 2 * slot + 2], gated.coefficients()[2 * slot : 2 * slot + 2]
            omega = (phi @ cls).square().sum() / cls.square().sum()
            assert torch.isclose(gated.omega(cls[None])[0, slot], omega)
            expected[image, :, 8:] += omega * given_tokens @ phi.T @ c
    torch.testing.assert_close(gated(tokens), expected)
    assert (gated.omega(tokens[:, 0]).sum(1) <= 1 + 1e-9).all()


@few
@given(seed=seeds)
def test_merging_leaves_the_gated_part_and_computes_the_same(seed: int) -> None:
    gated, tokens = filled(seed), rows(seed, 15, 8).view(3, 5, 8)
    expected = gated(tokens)
    (merged,) = merge(nn.Sequential(gated)).children()
    assert type(merged) is GatedLinear
    assert type(merged.inner) is nn.Linear
    assert merged.basis.shape == (5, 8)  # without the rows that are not used
    torch.testing.assert_close(merged(tokens), expected)


def test_a_gated_branch_without_directions_merges_away() -> None:
    inner = LoRA(nn.Linear(4, 12), rank=1, parts=(1, 2), of=3)
    gated = GatedLoRA(inner, width=4, outputs=12, first=4, slots=2, directions=1)
    assert type(gated.merged()) is nn.Linear


# The method


def batches(learner: Learner, images: Images) -> list[tuple[Tensor, Tensor]]:
    return list(Loader(images, learner.backbone, learner.device).in_order())


def largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0


class Watched(DualLoRA):
    """Holds, while it learns, what it promises of every task."""

    watched = 0

    def survey(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        super().survey(batches)
        for block, branch in enumerate(self.orthogonal):
            psi, down = self.psi(block).basis, branch.down[0].double()
            assert largest(down @ psi.T) < 1e-6
            assert largest(down @ down.T - torch.eye(len(down)).double()) < 1e-6
            assert not branch.up.any()
            if self.residual:
                gated = self.residual_branch[block]
                own = gated.basis[gated.slot @ gated.owner > 0].double()
                assert largest(own @ psi.T) < 1e-6
                assert not gated.up.any()

    def end_task(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        batches = list(batches)
        before = [self.features(images) for images, _ in batches]
        assert all(branch.up.any() for branch in self.orthogonal)
        super().end_task(batches)
        for (images, _), expected in zip(batches, before, strict=True):
            torch.testing.assert_close(self.features(images), expected, rtol=0, atol=1e-5)
        assert not any(branch.up.any() for branch in self.orthogonal)
        self.watched += 1


TASKS = [coloured(names, count=8) for names in ("ab", "cd", "ef")]


@pytest.fixture(scope="module", params=[True, False], ids=["both branches", "orthogonal branch"])
def learner(request: pytest.FixtureRequest) -> Learner:
    method = Watched(rank=4, energy=(0.9, 0.99), tasks=3, directions=3, residual=request.param)
    return fit_all(make_learner(method, lr=0.01), TASKS)


def method_of(learner: Learner) -> DualLoRA:
    assert isinstance(learner.method, DualLoRA)
    return learner.method


def test_a_keeps_clear_of_psi_and_merging_changes_nothing(learner: Learner) -> None:
    assert method_of(learner).watched == len(TASKS)


def test_all_directions_that_are_kept_are_orthogonal_and_in_psi(learner: Learner) -> None:
    method = method_of(learner)
    for block in range(method.backbone.depth):
        psi = method.psi(block).basis
        assert largest(psi @ psi.T - torch.eye(len(psi)).double()) < 1e-5
        if method.residual:
            gated = method.residual_branch[block]
            phi = gated.basis[gated.basis.any(1)].double()
            assert largest(phi @ phi.T - torch.eye(len(phi)).double()) < 1e-5
            assert largest(Subspace(psi).outside(phi.T)) < 1e-5
            per_slot = gated.owner @ gated.basis.any(1).to(gated.owner)
            assert per_slot[0] > 0
            assert (per_slot <= 3).all()


def test_psi_covers_the_energy_that_was_asked_for() -> None:
    method = DualLoRA(energy=(0.9, 0.99), tasks=2, capacity=48)
    learner = make_learner(method).fit(TASKS[0])
    assert (method.left_out <= 0.1 + 1e-5).all()
    outside = method.outside(batches(learner, TASKS[0]))
    for block, moment in enumerate(method.moments(batches(learner, TASKS[0]))):
        assert outside[block] / moment.trace() == pytest.approx(method.left_out[block].item(), abs=1e-6)
    learner.fit(TASKS[1])
    assert method.threshold == 0.99
    for block, moment in enumerate(method.moments(batches(learner, TASKS[1]))):
        assert method.psi(block).outside(moment).trace() <= (0.01 + 1e-5) * moment.trace()


def test_old_keys_and_values_drift_by_no_more_than_is_reported() -> None:
    """What enters being as it was: training moves that, too, behind the first block."""
    method = DualLoRA(energy=(0.6, 0.6), residual=False, rank=4)
    learner = make_learner(method, lr=0.01).fit(TASKS[0])
    old = batches(learner, TASKS[0])
    seen: list[list[Tensor]] = [[] for _ in method.orthogonal]
    for into, branch in zip(seen, method.orthogonal, strict=True):
        branch.register_forward_pre_hook(lambda _, given, into=into: into.append(given[0][:, 0]))
    reported = method.outside(old)
    inputs = [torch.cat(parts).double() for parts in seen]
    subspaces = [method.psi(block) for block in range(len(inputs))]
    before = [branch.linear.weight.double() for branch in method.orthogonal]
    learner.fit(TASKS[1])
    for block, (cls, psi) in enumerate(zip(inputs, subspaces, strict=True)):
        change = method.orthogonal[block].linear.weight.double() - before[block]
        strength = torch.linalg.matrix_norm(change, 2).item()
        drift = (cls @ change.T).norm(dim=1)
        allowed = strength * psi.outside(cls.T).norm(dim=0)
        assert strength > 1e-2
        assert (drift <= 1.001 * allowed + 1e-5).all()
        assert drift.square().mean().sqrt().item() <= 1.001 * strength * reported[block] ** 0.5 + 1e-5
        assert drift.max() < 0.5 * strength * cls.norm(dim=1).max()  # a bound that says something


def test_the_report_says_what_is_left_outside() -> None:
    method = DualLoRA(energy=(0.9, 0.9), capacity=48)
    learner = make_learner(method).fit(TASKS[0])
    ((name, *shares),) = method.report([batches(learner, TASKS[0])], learner.classes).rows
    assert name == "task 1"
    assert [float(share) for share in shares] == [round(100 * left, 1) for left in method.left_out.tolist()]


def test_at_the_cap_tasks_learn_by_the_orthogonal_branch_alone() -> None:
    method = Watched(rank=4, energy=(1.0, 1.0), tasks=2, directions=4, capacity=6)
    learner = make_learner(method, lr=0.01)
    shapes = {name: value.shape for name, value in method.learned().items()}
    for task in TASKS:
        learner.fit(task)
    assert {name: value.shape for name, value in method.learned().items()} == shapes
    for block, gated in enumerate(method.residual_branch[1:], start=1):
        assert len(method.psi(block).basis) == 6
        per_slot = gated.owner @ gated.basis.any(1).to(gated.owner)
        assert per_slot.tolist() == [4, 2]
        assert not gated.slot.any()
        assert all(gated.kept[owned > 0].any() for owned in gated.owner)
    assert method.watched == 3
    assert learner.evaluate(coloured("abcdef", seed=1)) == 1


def test_room_is_kept_for_the_slots_to_come() -> None:
    method = DualLoRA(energy=(1.0, 1.0), tasks=3, directions=4, capacity=14)
    learner, found = make_learner(method), []
    for task in TASKS:
        learner.fit(task)
        found.append([len(method.psi(1).basis), int(method.residual_branch[1].basis.any(1).sum())])
    assert found == [[6, 4], [10, 8], [14, 12]]


def test_only_the_residual_branch_stays_in_the_graph(learner: Learner) -> None:
    method = method_of(learner)
    kinds = {type(module) for module in method.deployable().modules()}
    assert kinds.isdisjoint({LoRA, GatedLoRA})
    assert (GatedLinear in kinds) == method.residual


def test_evidence_finds_the_task_and_reaches_the_head() -> None:
    """Shares of the tasks so far, from the task's own images on; later slots are empty."""
    method = DualLoRA(energy=(0.9, 0.9), tasks=4, evidence=True)
    learner = make_learner(method, lr=0.01)
    assert isinstance(learner.head, EvidenceLDA)
    for number, task in enumerate(TASKS, 1):
        learner.fit(task)
        shares = learner.features(task)[:, -4:]
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
        assert not shares[:, number:].any()
        of_class = np.array(task.labels) == learner.classes[-1]
        np.testing.assert_allclose(learner.head.prototypes[-1, -4:], shares[of_class].mean(0), rtol=1e-5)
    shares = np.stack([learner.features(task)[:, -4:].mean(0) for task in TASKS])
    for number in range(len(TASKS)):  # its own images look more like a task than those of the others
        assert shares[number, number] > np.delete(shares[:, number], number).mean()


def test_evidence_is_the_standardised_mean_of_omega() -> None:
    method = DualLoRA(energy=(0.9, 0.9), tasks=3, evidence=True)
    learner = fit_all(make_learner(method, lr=0.01), TASKS[:2])
    ((images, _),) = batches(learner, TASKS[1])
    seen: list[Tensor] = []
    hooks = [
        gated.register_forward_pre_hook(lambda layer, given: seen.append(layer.omega(given[0][:, 0])))
        for gated in method.residual_branch
    ]
    features = method.features(images)
    for hook in hooks:
        hook.remove()
    omega = torch.stack(seen).mean(0)
    assert omega[:, 1].mean().item() == pytest.approx(method.usual[1].item(), abs=1e-5)
    assert omega[:, 1].std(correction=0).item() == pytest.approx(method.spread[1].item(), abs=1e-5)
    expected = ((omega - method.usual) / method.spread)[:, :2].softmax(1)
    torch.testing.assert_close(features[:, -3:-1], expected, rtol=0, atol=1e-4)
    plain = method.twin.features(images, method.parts)
    torch.testing.assert_close(features[:, :-3], plain, rtol=0, atol=1e-6)


def test_a_released_rule_that_ends_leaves_the_learner_as_it_was() -> None:
    learner = make_learner(DualLoRA(subspace="inflora", energy=(1.0, 1.0)))
    with pytest.raises(ValueError, match=r"the first task takes .* take the energy rule"):
        learner.fit(coloured("abc", count=20))
    assert learner.classes == ()
    assert not method_of(learner).memory.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subspace": "gpm"}, "subspace must be 'energy' or 'inflora', got 'gpm'"),
        (
            {"subspace": "inflora", "residual": True},
            "has no residual branch and no capacity, got residual=True",
        ),
        ({"subspace": "inflora", "capacity": 9}, "capacity=9; leave both out"),
        ({"residual": False, "evidence": True}, "got evidence=True without it; leave one out"),
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"tasks": True}, "tasks must be a whole number of at least 1, got True"),
        ({"energy": (0.9, 0.8)}, "energy must be two shares, 0 < first <= last <= 1, got"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualLoRA(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 49}, "rank must be at most the width of the backbone, 48, got 49"),
        ({"capacity": 49}, "capacity must be at most the width, 48, got 49"),
    ],
)
def test_more_directions_than_there_are_cannot_be_had(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualLoRA(**options).attach(vit())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_mediumd_patch16_reg4_gap_256"])
def test_without_cls_there_is_nothing_to_gate_by(name: str) -> None:
    """Nor by a register, where these are the first tokens."""
    backbone = vit(name, class_token=False, global_pool="avg")
    assert not backbone.has_cls
    with pytest.raises(ValueError, match="has no CLS token"):
        DualLoRA().attach(backbone)
    learner = make_learner(DualLoRA(subspace="inflora", energy=(0.5, 0.6)), backbone=backbone)
    assert fit_all(learner, TASKS[:2]).evaluate(coloured("abcd", seed=1)) == 1


def test_cls_before_registers_is_what_is_read() -> None:
    backbone, method = vit("vit_small_patch14_reg4_dinov2"), DualLoRA(energy=(0.9, 0.9))
    method.attach(backbone)
    assert backbone.has_cls
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = backbone.embed(images)
        backbone.vit.cls_token += 1
        moved = (backbone.embed(images) - before).abs().amax((0, 2)) > 0
        cls = next(backbone.blocks()).norm1(backbone.embed(images)[:, 0])
    assert moved.tolist() == [True] + [False] * (backbone.tokens - 1)
    torch.testing.assert_close(method.moments([(images, torch.zeros(3))])[0], moment(cls.double()))
