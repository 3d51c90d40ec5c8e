"""NTK-CL: what the paper says, in numbers."""

import copy
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from everlearn import NTKCL, Backbone, ClassIncremental, Prototypes
from everlearn.adapters import Bottleneck, Hybrid
from everlearn.methods.base import CosineClassifier, TaskInfo
from everlearn.methods.losses import overlap, supervised_info_nce
from everlearn.methods.ntkcl.released import batch_wide_info_nce, complement_sum

from ..conftest import coloured, fit_all, make_learner, vit

Array = NDArray[np.floating[Any]]


def attached(backbone: Backbone | None = None, **options: Any) -> NTKCL:
    """The method on a tiny ViT of three blocks, ready for its first task."""
    method = NTKCL(**{"view": "hybrid", **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method.attach(backbone or vit(depth=3))
    begin(method)
    return method.eval()


def begin(method: NTKCL, classes: int = 2, old: Tensor | None = None, index: int = 0) -> None:
    prototypes = torch.zeros(0, sum(method.sections)) if old is None else old
    names = tuple(f"old {number}" for number in range(len(prototypes)))
    method.begin_task(TaskInfo(index, tuple(map(str, range(classes))), names, prototypes))


def stir(module: nn.Module, scale: float = 0.1, seed: int = 0) -> None:
    """Move all of a module's parameters, so that nothing is at its start value any more."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=numbers))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def backward(value: Tensor) -> None:
    value.backward()  # type: ignore[no-untyped-call]


def stirred(**options: Any) -> NTKCL:
    method = attached(**options)
    parts = [method.cur, method.pre, *([method.hybrid] if method.view == "hybrid" else [])]
    for seed, part in enumerate(parts):
        stir(part, seed=seed)
    return method


# Size and start


def test_the_trainable_parameters_are_as_many_as_published() -> None:
    with torch.device("meta"):  # shapes only: a ViT-B/16 for nothing
        method = NTKCL(view="hybrid")
        method.attach(Backbone(VisionTransformer(num_classes=0)))
        classifier = CosineClassifier(sum(method.sections), 10)

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    assert method.backbone.tokens == 197
    assert size(method.cur["channel"]) == 304_320
    assert size(method.cur["patch"]) == 42_192
    assert size(classifier) == 15_361
    assert size(method.hybrid) == 3 * (768 * 768 + 768)
    assert size(method) == size(method.cur) + size(method.hybrid)
    assert sum(parameter.numel() for parameter in method.pre.parameters()) == 304_320 + 42_192

    with torch.device("meta"):  # the published hybrid reads the whole view as one token of 2d
        method = NTKCL(variant="released")
        method.attach(Backbone(VisionTransformer(num_classes=0)))
    assert size(method.hybrid) == 7_082_496
    assert size(method) + size(classifier) == 7_444_369


@pytest.mark.parametrize("ptm", [False, True])
def test_a_fresh_channel_view_is_the_backbone_itself(ptm: bool) -> None:
    method, images = attached(ptm=ptm), noise(3, 3, 32, 32)
    with torch.no_grad():
        channel, patch, _ = method.views(images)
        expected = method.backbone.features(images)
        for section in channel.reshape(3, -1, 48).unbind(1):
            torch.testing.assert_close(section, expected, rtol=0, atol=1e-6)
        assert method.sections == (48,) * (3 if ptm else 2)
        assert not torch.allclose(patch[:, -48:], expected, atol=1e-3)  # prompts are attended to


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_with_one_block_no_prompt_reaches_the_features(name: str) -> None:
    method, images = attached(vit(name, depth=1)), noise(3, 3, 32, 32)
    stir(method.cur["patch"])
    with torch.no_grad():
        expected = method.backbone.features(images)
        for section in method.views(images)[1].reshape(3, 2, 48).unbind(1):
            torch.testing.assert_close(section, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_medium_patch16_reg4_gap_256"])
def test_registers_and_average_pooling_go_with_both_views(name: str) -> None:
    backbone = vit(name, init_values=0.5)  # their own LayerScale silences a block that is not trained
    learner = fit_all(make_learner(NTKCL(view="hybrid"), backbone=backbone), [coloured("ab"), coloured("cd")])
    assert learner.evaluate(coloured("abcd", seed=1)) == 1


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="48 is no multiple of heads=7; pass heads that divide it"):
        attached(heads=7)


# The forward pass, against a plain one


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    normal: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias
    return normal


def numbers(module: nn.Module) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def mlp(block: Any, tokens: Array) -> Array:
    with torch.no_grad():
        x = torch.from_numpy(tokens).float()
        out: Array = block.ls2(block.mlp(block.norm2(x))).double().numpy()
    return out


def attention(block: Any, tokens: Array) -> Array:
    with torch.no_grad():
        x = torch.from_numpy(tokens).float()
        out: Array = block.ls1(block.attn(block.norm1(x))).double().numpy()
    return tokens + out


def plain_channel_view(backbone: Backbone, adapters: nn.Module, images: Tensor) -> Array:
    """The features of `plain_channel_tokens`."""
    with torch.no_grad():
        tokens = torch.from_numpy(plain_channel_tokens(backbone, adapters, images)).float()
        return np.asarray(backbone.pool(tokens).double().numpy())


def plain_channel_tokens(backbone: Backbone, adapters: nn.Module, images: Tensor) -> Array:
    """S2: out = h + MLP(LN2 h) + 0.1 up(relu(down h)) with h = x + MSA(LN1 x), on all tokens."""
    with torch.no_grad():
        x: Array = backbone.embed(images).double().numpy()
    for block, adapter in zip(backbone.blocks(), adapters.children(), strict=True):
        h, w = attention(block, x), numbers(adapter)
        hidden = np.maximum(h @ w["down.weight"].T + w["down.bias"], 0)
        x = h + mlp(block, h) + 0.1 * (hidden @ w["up.weight"].T + w["up.bias"])
    return x


def plain_patch_view(backbone: Backbone, generators: nn.Module, images: Tensor, q: int = 10) -> Array:
    """S1: strip the old prompts, p = LN(W base + b) + 0.1 p_old, u = [prefix, p, patches],
    out = MLP(LN2 u) + h, in which the old prompts kept their slots (block 1: zeros)."""
    at = backbone.prefix
    with torch.no_grad():
        x: Array = backbone.embed(images).double().numpy()
    for number, (block, generator) in enumerate(zip(backbone.blocks(), generators.children(), strict=True)):
        h, w = attention(block, x), numbers(generator)
        if number == 0:
            h = np.concatenate([h[:, :at], np.zeros((len(h), q, h.shape[2])), h[:, at:]], axis=1)
        base = np.delete(h, np.s_[at : at + q], axis=1)
        mixed = np.einsum("qn,bnd->bqd", w["mix.weight"], base) + w["mix.bias"][:, None]
        prompts = layer_norm(mixed, w["norm.weight"], w["norm.bias"]) + 0.1 * h[:, at : at + q]
        u = np.concatenate([base[:, :at], prompts, base[:, at:]], axis=1)
        x = mlp(block, u) + h
    x = np.delete(x, np.s_[at : at + q], axis=1)
    with torch.no_grad():
        return np.asarray(backbone.pool(torch.from_numpy(x).float()).double().numpy())


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_medium_patch16_reg4_gap_256", "deit_tiny_distilled_patch16_224"],
)
def test_both_views_follow_the_papers_order_of_operations(name: str) -> None:
    options = {"init_values": 0.5} if "reg4" in name else {}
    method, images = attached(vit(name, depth=3, **options)), noise(3, 3, 32, 32)
    for seed, part in enumerate((method.cur, method.pre)):
        stir(part, 0.3, seed)
    backbone = method.backbone
    with torch.no_grad():
        channel, patch, _ = method.views(images)
    expected = [plain_channel_view(backbone, part["channel"], images) for part in (method.pre, method.cur)]
    np.testing.assert_allclose(channel, np.concatenate(expected, axis=1), atol=2e-5)
    expected = [plain_patch_view(backbone, part["patch"], images) for part in (method.pre, method.cur)]
    np.testing.assert_allclose(patch, np.concatenate(expected, axis=1), atol=2e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.02


@pytest.mark.parametrize("ptm", [False, True])
def test_the_hybrid_view_is_attention_over_the_sections(ptm: bool) -> None:
    method, images = stirred(ptm=ptm), noise(3, 3, 32, 32)
    with torch.no_grad():
        channel, patch, hybrid = (view.double().numpy() for view in method.views(images))
    w, sections = numbers(method.hybrid), len(method.sections)
    zc, zp = (view.reshape(3, sections, 48) for view in (channel, patch))
    query = zp @ w["query.weight"].T + w["query.bias"]
    key, value = (zc @ w[f"{name}.weight"].T + w[f"{name}.bias"] for name in ("key", "value"))
    attended = np.zeros_like(zc)
    for image in range(3):
        for head in range(8):
            part = np.s_[image, :, 6 * head : 6 * head + 6]
            scores = np.exp(query[part] @ key[part].T / np.sqrt(6))
            attended[part] = scores / scores.sum(1, keepdims=True) @ value[part]
    expected = 0.5 * attended + zc + 0.1 * zp
    np.testing.assert_allclose(hybrid, expected.reshape(3, -1), atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(method.features(images).double().numpy(), hybrid)


def test_queries_and_keys_learn() -> None:
    method = stirred()
    backward(method.features(noise(3, 3, 32, 32)).square().sum())
    for layer in (method.hybrid.query, method.hybrid.key, method.hybrid.value):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().max() > 1e-6


# The shared forward pass


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"view": "hybrid"},
        {"view": "hybrid", "ptm": True},
        {"variant": "released"},
        {"variant": "released", "ptm": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_medium_patch16_reg4_gap_256", "deit_tiny_distilled_patch16_224"]
)
def test_sharing_changes_no_term_and_no_gradient(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "examples/benchmarks/ntkcl_step.py"))
    found: list[dict[str, Tensor]] = []
    for kind in (NTKCL, benchmark["FourPasses"]):
        backbone = vit(name, depth=3, **{"init_values": 0.5} if "reg4" in name else {})
        backbone.fuse_attention(False)
        method = kind(**{"view": None, "dropout": 0.0, **options})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            method.attach(backbone)
            for seed, part in enumerate((method.cur, method.pre, method.hybrid)):
                stir(part, seed=seed)
            method.to(dtype).train()
            begin(method, old=noise(3, sum(method.sections)), index=1)
            if kind is not NTKCL:
                method.pre.requires_grad_(True)  # what needs no gradient changes no other
            stir(method.cur, 0.01, seed=9)
            terms = method.loss(noise(4, 3, 32, 32).to(dtype), torch.tensor([0, 0, 1, 1]))
        backward(torch.stack(list(terms.values())).sum())
        gradients = {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in method.named_parameters()
            if not name.startswith(("backbone.", "pre.", "anchor."))
        }
        found.append({name: value.detach() for name, value in terms.items()} | gradients)
    assert found[0].keys() == found[1].keys()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for name, value in found[1].items():
        size = max(1.0, value.abs().max().item())
        torch.testing.assert_close(found[0][name], value, rtol=0, atol=tolerance * size)


# What trains


def test_every_prompt_generator_learns_from_the_first_step() -> None:
    method = attached()
    terms = method.train().loss(noise(4, 3, 32, 32), torch.tensor([0, 0, 1, 1]))
    backward(torch.stack(list(terms.values())).sum())
    largest = {
        name: 0.0 if value.grad is None else value.grad.abs().max().item()
        for name, value in method.cur.named_parameters()
    }
    for block in (0, 1):
        for part in ("mix.weight", "norm.weight", "norm.bias"):
            assert largest[f"patch.{block}.{part}"] > 1e-6
    # The last block's prompts meet no attention any more; all that moves them is L_reg, zero here.
    assert not any(value for name, value in largest.items() if name.startswith("patch.2."))
    assert all(largest[f"channel.{block}.up.weight"] > 1e-6 for block in range(3))


def test_the_averaged_adapters_get_no_gradient_and_no_dropout() -> None:
    method = stirred()
    method.train()
    terms = method.loss(noise(4, 3, 32, 32), torch.tensor([0, 0, 1, 1]))
    backward(torch.stack(list(terms.values())).sum())
    assert all(p.grad is None and not p.requires_grad for p in method.pre.parameters())
    assert all(p.grad is None for p in method.backbone.parameters())
    with torch.no_grad():
        one, other = (method.views(noise(4, 3, 32, 32))[0] for _ in range(2))
    assert torch.equal(one[:, :48], other[:, :48])
    assert not torch.equal(one[:, 48:], other[:, 48:])


def test_pre_is_the_plain_mean_of_the_adapters_of_all_tasks() -> None:
    learner, ends = make_learner(NTKCL(view="hybrid"), lr=0.1), []
    method = learner.method
    assert isinstance(method, NTKCL)
    for names in ("ab", "cd", "ae", "f"):
        learner.fit(coloured(names))
        ends.append([parameter.detach().clone() for parameter in method.cur.parameters()])
        for mean, *values in zip(method.pre.parameters(), *ends, strict=True):
            torch.testing.assert_close(mean.detach(), torch.stack(values).mean(0), rtol=0, atol=1e-6)
    moved = [(a - b).abs().max().item() for a, b in zip(ends[0], ends[-1], strict=True)]
    assert max(moved) > 1e-3


@pytest.mark.parametrize("later", [0.0, 0.25, 1.0])
def test_pre_follows_later_tasks_so_far_of_the_way_to_the_mean(later: float) -> None:
    learner = make_learner(NTKCL(later=later), lr=0.1)
    method = learner.method
    assert isinstance(method, NTKCL)
    for task, names in enumerate(("ab", "cd", "ef")):
        before = [parameter.detach().clone() for parameter in method.pre.parameters()]
        learner.fit(coloured(names))
        share = 1 if task == 0 else later / (task + 1)
        parts = zip(method.pre.parameters(), before, method.cur.parameters(), strict=True)
        for mean, old, own in parts:
            expected = old + share * (own.detach() - old)
            torch.testing.assert_close(mean.detach(), expected, rtol=0, atol=1e-6)


def test_only_the_averaged_view_is_slow_to_follow_where_nothing_is_said() -> None:
    assert NTKCL().later < 1
    assert NTKCL(view="hybrid").later == NTKCL(variant="released").later == 1


def test_a_task_starts_from_the_adapters_of_the_last_one_with_a_classifier_of_its_own() -> None:
    method = stirred()
    before = copy.deepcopy(method.cur.state_dict())
    begin(method, classes=3, old=noise(2, 96), index=1)
    assert all(torch.equal(value, before[name]) for name, value in method.cur.state_dict().items())
    assert method.classifier is not None
    assert method.classifier.weight.shape == (3, 96)
    assert method.classifier.scale.item() == 1
    method.end_task([])
    assert method.classifier is None


def test_an_uneven_first_task() -> None:
    data, test = coloured("abcdefgh", count=4), coloured("abcdefgh", count=2, seed=1)
    learner = make_learner(NTKCL(view="hybrid"), epochs=1)
    matrix = learner.run(ClassIncremental(data, test, classes_per_task=2, first=4))
    assert [len(classes) for classes in learner.tasks] == [4, 2, 2]
    assert matrix.last > 0.9


# The losses


def unit(rows: Array) -> Array:
    normal: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normal


def dissimilarity(features: Tensor, targets: Sequence[int], old: Tensor | None = None) -> float:
    method = attached()
    begin(method, old=old, index=1)
    return float(supervised_info_nce(features, torch.tensor(targets), method.old, 0.1).detach())


@pytest.mark.parametrize("old", [None, noise(3, 96, seed=1)])
def test_dissimilarity_by_hand(old: Tensor | None) -> None:
    features, targets = noise(6, 96), [0, 0, 0, 1, 1, 2]
    z = unit(features.double().numpy())
    others = np.concatenate([z, unit(old.double().numpy())]) if old is not None else z
    per_anchor = []
    for i, target in enumerate(targets):
        total = sum(np.exp(z[i] @ others[k] / 0.1) for k in range(len(others)) if k != i)
        shares = [
            np.log(np.exp(z[i] @ z[j] / 0.1) / total) for j in range(6) if j != i and targets[j] == target
        ]
        if shares:
            per_anchor.append(-np.mean(shares))
    assert dissimilarity(features, targets, old) == pytest.approx(np.mean(per_anchor), rel=1e-5)


def test_dissimilarity_pulls_a_class_together_and_away_from_old_prototypes() -> None:
    features, targets = noise(4, 96), [0, 0, 1, 1]
    start = dissimilarity(features, targets)
    closer = features.clone()
    closer[1] = 0.5 * (features[0] + features[1])
    assert dissimilarity(closer, targets) < start
    mixed = features.clone()
    mixed[2] = 0.5 * (features[0] + features[2])  # towards the other class
    assert dissimilarity(mixed, targets) > start
    far, near = noise(1, 96, seed=5), features[:1] + 0.3 * noise(1, 96, seed=5)
    assert dissimilarity(features, targets, near) > dissimilarity(features, targets, far) > start


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("old", [0, 2])
def test_dissimilarity_is_zero_without_two_of_a_class(count: int, old: int) -> None:
    method, features = attached(), noise(count, 96).requires_grad_()
    begin(method, old=noise(old, 96, seed=1), index=1)
    value = supervised_info_nce(features, torch.arange(count), method.old, 0.1)
    backward(value)
    assert value.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_orthogonality_measures_what_lies_in_the_span_of_the_old_prototypes() -> None:
    method, old = attached(), noise(3, 96)
    begin(method, old=old, index=1)
    inside = noise(5, 3, seed=1) @ old
    free = torch.linalg.qr(torch.cat([old, noise(5, 96, seed=2)]).T)[0].T[3:]
    assert overlap(7 * inside, method.basis).item() == pytest.approx(1, abs=1e-5)
    assert overlap(7 * free, method.basis).item() == pytest.approx(0, abs=1e-5)
    half = F.normalize(inside) + F.normalize(free)
    assert overlap(half, method.basis).item() == pytest.approx(0.5, abs=1e-5)


def test_orthogonality_is_off_in_the_first_task_and_bounded_in_rank() -> None:
    method = attached(rank=2)
    assert overlap(noise(4, 96), method.basis).item() == 0
    begin(method, old=torch.diag(torch.tensor([1.0, 1, 0.5]))[:, [0, 1, 2]] @ torch.eye(3, 96), index=1)
    axes = torch.eye(4, 96)
    assert overlap(axes, method.basis).item() <= 2 / 4 + 1e-6
    method = attached()
    begin(method, old=torch.eye(1, 96).repeat(5, 1), index=1)  # five prototypes, one direction
    overlaps = [overlap(axis[None], method.basis).item() for axis in torch.eye(96)]
    assert overlaps == pytest.approx([1, *[0] * 95], abs=1e-6)


def test_regularisation_is_the_squared_distance_of_the_weights_since_the_task_began() -> None:
    method = stirred()
    begin(method, index=1)
    assert method._distance().item() == 0
    trained = nn.ModuleList([method.cur, method.hybrid])
    start = {name: value.detach().clone() for name, value in trained.named_parameters()}
    stir(trained, seed=7)
    distance = method._distance()
    backward(distance)
    moved = {name: value.detach() - start[name] for name, value in trained.named_parameters()}
    weights = {name for name in moved if name.endswith("weight")}
    assert {name for name in weights if "norm" in name}  # the LayerNorms' gains count as weights
    expected = sum(moved[name].square().sum().item() for name in weights)
    assert distance.item() == pytest.approx(expected, rel=1e-5)
    for name, value in trained.named_parameters():
        if name in weights:
            assert value.grad is not None
            torch.testing.assert_close(value.grad, 2 * moved[name])
        else:
            assert value.grad is None


def test_the_terms_carry_their_weights() -> None:
    images, targets = noise(4, 3, 32, 32), torch.tensor([0, 0, 1, 1])
    once, twice = (
        stirred(dissimilarity=0.2 * k, orthogonality=1e-4 * k, regularisation=1e-3 * k) for k in (1, 2)
    )
    losses = []
    for method in (once, twice):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            begin(method, old=noise(3, 96), index=1)
        stir(method.cur, seed=8)
        losses.append({name: value.item() for name, value in method.loss(images, targets).items()})
    with torch.no_grad():
        overlaps = [overlap(view, once.basis).item() for view in once.views(images)]
    assert overlaps[0] != pytest.approx(overlaps[1], rel=0.01)
    assert losses[0]["orthogonality"] == pytest.approx(1e-4 * (overlaps[0] + overlaps[1]), rel=1e-5)
    assert losses[0].keys() == {
        "ce_channel", "ce_patch", "ce_hybrid", "dissimilarity", "orthogonality", "regularisation"
    }  # fmt: skip
    for name, value in losses[0].items():
        assert value > 0
        assert losses[1][name] == pytest.approx(value * (1 if name.startswith("ce") else 2), rel=1e-5)


# The released variant


def test_no_gradient_reaches_the_released_prompt_generators_weights() -> None:
    method = attached(variant="released").train()
    terms = method.loss(noise(4, 3, 32, 32), torch.tensor([0, 0, 1, 1]))
    backward(torch.stack(list(terms.values())).sum())
    for block in (0, 1):
        for name, value in method.cur["patch"].get_submodule(str(block)).named_parameters():
            moves = value.grad is not None and bool(value.grad.any())
            assert moves == (name == "norm.bias")
            assert not value.any()


@pytest.mark.parametrize("ptm", [False, True])
def test_the_released_fusion_is_a_linear_map_of_the_channel_view(ptm: bool) -> None:
    method, images = stirred(variant="released", ptm=ptm), noise(3, 3, 32, 32)
    channel, patch, hybrid = method.views(images)
    expected = 0.5 * method.hybrid.value(channel) + channel + 0.1 * patch
    torch.testing.assert_close(hybrid, expected, rtol=0, atol=1e-6)
    backward(hybrid.square().sum())
    for layer in (method.hybrid.query, method.hybrid.key):
        assert layer.weight.grad is not None
        assert not layer.weight.grad.any()
    assert method.hybrid.value.weight.grad is not None
    assert method.hybrid.value.weight.grad.any()


def test_the_released_dissimilarity_pushes_a_class_apart_and_the_papers_pulls_it_together() -> None:
    features, targets = noise(4, 96), torch.tensor([0, 0, 1, 1])
    closer = features.clone()
    closer[1] = 0.5 * (features[0] + features[1])
    released = [batch_wide_info_nce(rows, targets, 0.1).item() for rows in (features, closer)]
    paper = [supervised_info_nce(rows, targets, noise(0, 96), 0.1).item() for rows in (features, closer)]
    assert released[0] < released[1]
    assert paper[0] > paper[1]


def test_the_released_dissimilarity_by_hand() -> None:
    features, labels = noise(6, 96), [0, 0, 0, 1, 1, 2]
    z = unit(features.double().numpy())
    similar = np.exp(z @ z.T / 0.1)
    pairs = sum(similar[i, j] for i in range(6) for j in range(6) if i != j and labels[i] == labels[j])
    others = [np.log(similar[i].sum() - similar[i, i]) for i in range(6)]
    value = batch_wide_info_nce(features, torch.tensor(labels), 0.1).item()
    assert value == pytest.approx(np.log(pairs) - np.mean(others), rel=1e-5)


def test_without_two_of_a_class_the_released_dissimilarity_is_zero_and_so_is_its_gradient() -> None:
    features = noise(3, 96).requires_grad_()
    value = batch_wide_info_nce(features, torch.arange(3), 0.1)
    backward(value)
    assert value.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_the_released_orthogonality_takes_forty_directions_from_the_first_task_on() -> None:
    method = attached(variant="released")
    torch.testing.assert_close(method.basis.abs(), torch.eye(40, 96))  # there is nothing to keep clear of
    features = noise(5, 96)
    expected = unit(features.double().numpy())[:, 40:].sum()
    assert complement_sum(features, method.basis).item() == pytest.approx(expected, rel=1e-4)
    begin(method, old=noise(3, 96), index=1)
    assert method.basis.shape == (40, 96)
    torch.testing.assert_close(method.basis @ method.basis.T, torch.eye(40), rtol=0, atol=1e-5)
    assert overlap(noise(4, 3, seed=1) @ noise(3, 96), method.basis).item() == pytest.approx(1, abs=1e-5)


def test_at_most_a_batch_of_old_prototypes_joins_a_released_step_drawn_anew_each_time() -> None:
    method = attached(variant="released")
    begin(method, old=noise(9, 96), index=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = [method.negatives(4).tolist() for _ in range(5)]
        torch.manual_seed(0)
        again = [method.negatives(4).tolist() for _ in range(5)]
        assert sorted(method.negatives(16).tolist()) == list(range(9))
    assert draws == again
    assert all(len(set(rows)) == 4 and set(rows) <= set(range(9)) for rows in draws)
    assert len(set(map(tuple, draws))) > 1
    paper = attached()
    begin(paper, old=noise(9, 96), index=1)
    assert paper.negatives(4).tolist() == list(range(9))


def test_the_released_count_of_old_classes_takes_a_larger_first_task_for_old_ones() -> None:
    method = attached(variant="released", increment=5)
    begin(method, classes=7)  # 7 and then 5 a time: two classes too many count as old
    assert method.old.shape == (2, 96)
    assert not method.old.any()
    begin(method, classes=5, old=noise(7, 96), index=1)
    torch.testing.assert_close(method.old, F.normalize(noise(7, 96), dim=1))
    begin(method, classes=3, old=noise(12, 96), index=2)  # a last, smaller task: two old ones too few
    assert len(method.old) == 10
    method = attached(variant="released")
    begin(method, classes=7)
    assert method.old.shape == (0, 96)


def test_dropout_is_active_in_the_released_averaged_adapters() -> None:
    method = stirred(variant="released").train()
    with torch.no_grad():
        one, other = (method.views(noise(4, 3, 32, 32))[0] for _ in range(2))
    assert not torch.equal(one[:, :48], other[:, :48])
    method.eval()
    with torch.no_grad():
        one, other = (method.views(noise(4, 3, 32, 32))[0] for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "code"}, "variant must be 'paper' or 'released', got 'code'"),
        ({"variant": "released", "view": "averaged"}, "has the hybrid view only, got view='averaged'"),
        ({"variant": "released", "increment": 0}, "increment must be None or .* at least 1, got 0"),
        ({"later": 1.5}, "later must be from 0 to 1, got 1.5"),
        ({"later": -1}, "later must be at least 0"),
        ({"later": "all"}, "later must be at least 0"),
    ],
)
def test_what_the_variants_do_not_have_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NTKCL(**options)


# Streams of all shapes

VARIANTS = pytest.mark.parametrize(
    "options", [{}, {"view": "hybrid"}, {"variant": "released", "increment": 5}], ids=str
)


@VARIANTS
def test_seven_classes_and_then_five_at_a_time(options: dict[str, Any]) -> None:
    data, test = coloured("abcdefghijkl", count=3), coloured("abcdefghijkl", count=2, seed=1)
    learner = make_learner(NTKCL(**options), epochs=1)
    matrix = learner.run(ClassIncremental(data, test, classes_per_task=5, first=7))
    assert [len(classes) for classes in learner.tasks] == [7, 5]
    assert matrix.last > 0.9


@VARIANTS
def test_one_class_at_a_time(options: dict[str, Any]) -> None:
    learner = fit_all(make_learner(NTKCL(**options), epochs=1), [coloured(name) for name in "abc"])
    assert learner.evaluate(coloured("abc", seed=1)) == 1


@VARIANTS
def test_a_class_that_comes_back_is_no_old_class(options: dict[str, Any]) -> None:
    learner, seen = make_learner(NTKCL(**options), epochs=1), []
    method = learner.method
    assert isinstance(method, NTKCL)
    fit_all(learner, [coloured("ab"), coloured("cd")])
    begin_task = method.begin_task

    def watched(task: TaskInfo) -> None:
        begin_task(task)
        seen.append((task.known, task.classes, method.first_target))

    learner.method.begin_task = watched  # type: ignore[method-assign]
    learner.begin_task(("b", "e"))
    assert seen == [(("a", "b", "c", "d"), ("b", "e"), 3)]  # a, c and d are old, b is learned again


@VARIANTS
def test_nothing_of_a_task_is_kept_but_the_adapters(options: dict[str, Any]) -> None:
    learner = make_learner(NTKCL(**options), epochs=1)
    start = {name: value.shape for name, value in learner.method.learned().items()}
    heads = []
    for names in ("ab", "cde", "f"):
        learner.fit(coloured(names))
        assert {name: value.shape for name, value in learner.method.learned().items()} == start
        tensors = {name for name, value in vars(learner.method).items() if isinstance(value, Tensor)}
        assert not tensors
        heads.append(learner.head.nbytes)
    assert heads == sorted(heads)


# The head


@pytest.mark.parametrize(("ptm", "weights"), [(False, [0.3, 0.1]), (True, [1.0, 0.3, 0.1])])
def test_the_head_weighs_the_sections(ptm: bool, weights: list[float]) -> None:
    learner = make_learner(NTKCL(view="hybrid", ptm=ptm))
    train, unseen = coloured("abc"), coloured("abc", seed=1)
    learner.fit(train)
    assert isinstance(learner.head, Prototypes)
    features, labels = learner.features(train).astype(np.float64), np.array(train.labels)
    means = np.stack([features[labels == name].mean(axis=0) for name in "abc"])
    expected = np.zeros((len(unseen), 3))
    for number, weight in enumerate(weights):
        part = np.s_[:, 48 * number : 48 * number + 48]
        expected += weight * unit(learner.features(unseen).astype(np.float64)[part]) @ unit(means[part]).T
    np.testing.assert_allclose(learner.head.scores(learner.features(unseen)), expected, atol=1e-12)


# Export


def test_the_bottlenecks_scale_is_folded_into_their_weights() -> None:
    method, images = stirred(), noise(3, 3, 32, 32)
    module = method.deployable()
    assert {part.scale for part in module.modules() if isinstance(part, Bottleneck)} == {1.0}
    assert {part.scale for part in method.modules() if isinstance(part, Bottleneck)} == {0.1}
    with torch.no_grad():
        torch.testing.assert_close(module(images), method.features(images), rtol=0, atol=1e-6)


def test_dropout_of_the_fusion_is_off_outside_training() -> None:
    hybrid, views = Hybrid(48), (noise(2, 2, 48), noise(2, 2, 48, seed=1))
    with torch.no_grad():
        hybrid.value.weight.normal_()
        assert not torch.equal(hybrid(*views), hybrid(*views))
        hybrid.eval()
        assert torch.equal(hybrid(*views), hybrid(*views))


@pytest.mark.parametrize("patches", [True, False])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_the_averaged_view_is_cls_and_the_mean_patch_of_one_pass(name: str, patches: bool) -> None:
    method = stirred(backbone=vit(name, depth=3), view="averaged", scale=0.1, patches=patches, depths=())
    backbone, images = method.backbone, noise(3, 3, 32, 32)
    method.train().eval()
    with torch.no_grad():
        found = method.features(images)
    tokens = plain_channel_tokens(backbone, method.pre["channel"], images)
    with torch.no_grad():
        normal = backbone.vit.norm(torch.from_numpy(tokens).float())
    expected = [normal[:, 0], normal[:, backbone.prefix :].mean(1)][: 2 if patches else 1]
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=0, atol=2e-5)
    assert method.sections == (48,) * len(expected)
    assert set(method.cur) == {"channel"}
    assert not hasattr(method, "hybrid")


def test_a_backbone_that_pools_by_the_mean_has_one_section() -> None:
    backbone = vit("vit_medium_patch16_reg4_gap_256", init_values=0.5)
    method = attached(backbone, view="averaged", depths=())
    assert method.sections == (48,)
    torch.testing.assert_close(method.features(noise(2, 3, 32, 32)), backbone.features(noise(2, 3, 32, 32)))
    learner = fit_all(make_learner(NTKCL(), backbone=backbone), [coloured("ab"), coloured("cd")])
    assert learner.evaluate(coloured("abcd", seed=1)) == 1


def test_the_averaged_view_has_a_classifier_for_each_of_its_ways_to_look() -> None:
    method, images = stirred(view="averaged", depths=()), noise(4, 3, 32, 32)
    targets = torch.tensor([0, 0, 1, 1])
    begin(method, old=noise(3, 96), index=1)
    stir(method.cur, 0.01, seed=9)
    terms = method.loss(images, targets)
    method.pre.load_state_dict(method.cur.state_dict())
    features = method.features(images)
    classifiers = method.classifier, method.patch_classifier
    for name, part, classifier in zip(
        ("channel", "patch"), torch.split(features, 48, 1), classifiers, strict=True
    ):
        assert classifier is not None
        assert classifier.scale.item() == 12
        cosine = F.normalize(part, dim=1) @ F.normalize(classifier.weight, dim=1).T
        torch.testing.assert_close(terms[f"ce_{name}"], F.cross_entropy(12 * cosine, targets))
    expected = 0.2 * supervised_info_nce(features, targets, method.old, 0.1)
    torch.testing.assert_close(terms["dissimilarity"], expected)
    torch.testing.assert_close(terms["orthogonality"], 1e-4 * overlap(features, method.basis))
    backward(torch.stack(list(terms.values())).sum())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in method.trainable())
    method.end_task([])
    assert method.classifier is method.patch_classifier is None


def test_an_unknown_view_is_refused() -> None:
    with pytest.raises(ValueError, match="view must be 'hybrid' or 'averaged', got 'both'"):
        NTKCL(view="both")
