"""SAFE: what the paper says, in numbers."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d, GroupNormAct, LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from everlearn import SAFE, Backbone, Learner
from everlearn.adapters import Bottlenecks, DeepPrompts, ScaleShift, insert_ssf
from everlearn.methods.base import TaskInfo
from everlearn.methods.losses import transfer

from ..conftest import coloured, digests, fit_all, make_learner, pixels, vit

ADAPTERS = ("bottleneck", "ssf", "vpt")


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module, by: float = 0.3) -> nn.Module:
    """The module with its trainable values moved, so that an adapter does something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in module.parameters():
            if value.requires_grad:
                value.add_(by * torch.randn(value.shape, generator=generator))
    return module


def attached(adapter: str = "bottleneck", **options: Any) -> SAFE:
    method = SAFE(adapter=adapter, **{"dropout": 0.0, "projection": 32, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method.attach(vit())
    return method.eval()


def begin(method: SAFE, index: int, known: int, new: int, means: Tensor | None = None) -> None:
    names = tuple(f"class {number}" for number in range(known + new))
    prototypes = torch.zeros(known, 96) if means is None else means
    method.begin_task(TaskInfo(index, names[known:], names[:known], prototypes))


def later_task(**options: Any) -> SAFE:
    """A method in its second task of two classes, with two known, and learners that differ."""
    method = attached(**options)
    begin(method, 0, 0, 2)
    shaken(method.fast)
    method.end_task(iter(()))
    begin(method, 1, 2, 2)
    shaken(method.fast)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for classifier in (method.slow_classifier, method.fast_classifier):
            classifier.weight.copy_(torch.randn(4, 48, generator=generator))
    return method


def test_the_bottlenecks_have_as_many_parameters_as_published() -> None:
    with torch.device("meta"):  # shapes only: a ViT-B/16 for nothing
        backbone = Backbone(VisionTransformer(num_classes=0))
        bottlenecks, prompts = Bottlenecks(backbone, hidden=64), DeepPrompts(backbone)
        scales = insert_ssf(backbone.twin())
    assert sum(value.numel() for value in bottlenecks.parameters()) == 1_189_632
    assert prompts.prompts.numel() == 12 * 5 * 768
    per_block = 2 * (768 + 3 * 768 + 768 + 768 + 4 * 768 + 768)
    assert sum(one.scale.numel() + one.shift.numel() for one in scales.values()) == 12 * per_block + 4 * 768


@torch.no_grad()
def test_scale_and_shift_is_the_same_by_hand_and_merged() -> None:
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    for layer in (nn.Linear(4, 6), nn.LayerNorm(4), nn.Linear(4, 6, bias=False)):
        adapter = ScaleShift(shaken(layer).requires_grad_(False))
        shaken(adapter)
        torch.testing.assert_close(adapter(x), layer(x) * adapter.scale + adapter.shift)
        merged = adapter.merged()
        assert type(merged) is type(layer)
        torch.testing.assert_close(merged(x), adapter(x))
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    patches = ScaleShift(nn.Conv2d(3, 6, 4, stride=4))
    shaken(patches)
    torch.testing.assert_close(patches.merged()(pixels), patches(pixels))
    maps = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for norm in (
        nn.BatchNorm2d(6),
        BatchNormAct2d(6, act_layer=nn.ReLU),
        LayerNorm2d(6),
        nn.GroupNorm(2, 6),
        GroupNormAct(6, 2, act_layer=nn.SiLU),
        nn.LayerNorm(4, bias=False),
    ):
        shaken(norm.double().eval().requires_grad_(False))
        adapter = ScaleShift(norm)
        shaken(adapter.double())
        linear = copy.deepcopy(norm)
        if isinstance(linear, (BatchNormAct2d, GroupNormAct)):
            linear.act = nn.Identity()
        last = (-1,) if type(norm) is nn.LayerNorm else (-1, 1, 1)
        expected = linear(maps) * adapter.scale.view(last) + adapter.shift.view(last)
        torch.testing.assert_close(adapter(maps), getattr(norm, "act", nn.Identity())(expected))
        merged = adapter.merged()
        assert type(merged) is type(norm)
        torch.testing.assert_close(merged(maps), adapter(maps), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="Linear, Conv2d and norm layers, not Embedding"):
        ScaleShift(nn.Embedding(2, 3))


def test_scales_without_spread_and_prompts_of_no_weight_leave_the_backbone_as_it_is() -> None:
    backbone = vit()
    twin = backbone.twin()
    insert_ssf(twin, spread=0.0)
    with torch.no_grad():
        torch.testing.assert_close(twin.features(images()), backbone.features(images()))
        torch.testing.assert_close(Bottlenecks(backbone)(backbone, images()), backbone.features(images()))


def test_prompts_that_start_at_zero_stay_equal_to_each_other() -> None:
    backbone = vit()
    for zero_start in (True, False):
        prompts = DeepPrompts(backbone, zero_start=zero_start)
        prompts(backbone, images()).square().sum().backward()
        gradient = prompts.prompts.grad
        assert gradient is not None
        equal = torch.allclose(gradient, gradient[:, :1].expand_as(gradient), rtol=1e-4, atol=1e-9)
        assert equal == zero_start


@torch.no_grad()
def test_a_block_sees_its_prompts_behind_the_tokens_and_then_no_more() -> None:
    backbone = vit(depth=1)
    prompts = DeepPrompts(backbone, prompts=3)
    tokens = torch.cat([backbone.embed(images()), prompts.prompts.expand(4, -1, -1)], 1)
    expected = backbone.pool(next(backbone.blocks())(tokens)[:, :-3])
    torch.testing.assert_close(prompts(backbone, images()), expected)


def test_the_transfer_loss_by_hand() -> None:
    s, p = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [5.0, 0.0]])
    # C = ([.6, .8]' [0, 1] + [1, 0]' [1, 0]) / 2 = [[.5, .3], [0, .4]]
    diagonal, redundancy = transfer(s, p)
    assert diagonal.item() == pytest.approx(0.25 + 0.36)
    assert redundancy.item() == pytest.approx(0.09)
    p.requires_grad_()
    assert not transfer(s, p)[0].requires_grad


def test_the_first_task_trains_on_cross_entropy_and_transfer() -> None:
    method = attached(diagonal=2.0, redundancy=3.0)
    begin(method, 0, 0, 2)
    shaken(method.fast)
    shaken(method.fast_classifier)
    terms = method.loss(images(), torch.tensor([0, 1, 1, 0]))
    features = method.fast(method.backbone, images())
    diagonal, redundancy = transfer(features, method.backbone.features(images()))
    logits = method.fast_classifier(features)
    wanted = {
        "ce": nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])),
        "diagonal": 2 * diagonal,
        "redundancy": 3 * redundancy,
    }
    torch.testing.assert_close(terms, wanted)


def test_the_fast_loss_by_hand() -> None:
    method = later_task(alignment=0.7, cross=0.4)
    targets = torch.tensor([1, 0, 1, 0])
    terms = method.loss(images(), targets)
    with torch.no_grad():
        slow, fast = method.features(images()).chunk(2, 1)
    unit = nn.functional.normalize

    def entropy_of(rows: Tensor, weights: Tensor, labels: list[int]) -> float:
        logits = 10 * unit(rows, dim=1) @ unit(weights, dim=1).T
        chances = logits.double().softmax(1)
        return float(np.mean([-math.log(chances[row, label]) for row, label in enumerate(labels)]))

    slow_rows, fast_rows = (c.weight.detach() for c in (method.slow_classifier, method.fast_classifier))
    assert terms["ce"].item() == pytest.approx(entropy_of(fast, fast_rows, [3, 2, 3, 2]), rel=1e-4)
    cosines = (unit(fast, dim=1) * unit(slow, dim=1)).sum(1)
    assert terms["alignment"].item() == pytest.approx(0.7 * (1 - cosines).sum().item(), rel=1e-4)
    labels = [0, 1, 3, 2, 3, 2]
    by_fast = entropy_of(torch.cat([slow_rows[:2], slow]), fast_rows, labels)
    by_slow = entropy_of(torch.cat([fast_rows[:2], fast]), slow_rows, labels)
    assert terms["cross_fast"].item() == pytest.approx(0.4 * by_fast, rel=1e-4)
    assert terms["cross_slow"].item() == pytest.approx(0.4 * by_slow, rel=1e-4)
    torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is None for value in method.slow.parameters())
    assert method.slow_classifier.weight.grad is None
    assert method.fast_classifier.weight.grad is not None
    assert method.fast_classifier.weight.grad[:2].any()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_slow_never_changes_after_the_first_task(adapter: str) -> None:
    learner = make_learner(SAFE(adapter=adapter, projection=32)).fit(coloured("ab"))
    method, unseen = learner.method, coloured("abcd", seed=1)
    assert isinstance(method, SAFE)

    def slow() -> dict[str, str]:
        parts = {**method.learned()}
        return digests({name: value for name, value in parts.items() if name.startswith("slow.")})

    kept, features = slow(), learner.features(unseen)
    assert kept
    np.testing.assert_array_equal(features[:, :48], features[:, 48:])
    assert not any(value.requires_grad for value in method.slow.parameters())
    rows = method.slow_classifier.weight.clone()
    fit_all(learner, [coloured("cd"), coloured("ae")])
    after = learner.features(unseen)
    assert slow() == kept
    np.testing.assert_array_equal(after[:, :48], features[:, :48])
    assert np.abs(after[:, 48:] - features[:, 48:]).max() > 1e-4
    assert torch.equal(method.slow_classifier.weight[:2], rows)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_first_task_moves_slow_away_from_the_backbone(adapter: str) -> None:
    learner = make_learner(SAFE(adapter=adapter, projection=32)).fit(coloured("ab"))
    plain = learner.backbone.features(images())
    moved = learner.method.features(images())[:, :48]
    assert (plain - moved).abs().max() > 1e-4


def test_rows_of_new_classes_are_imprinted_with_the_means_of_both_learners() -> None:
    method = later_task()
    before = method.fast_classifier.weight[:2].clone()
    batches = [(images(3, 1), torch.tensor([0, 1, 0])), (images(2, 2), torch.tensor([1, 1]))]
    method.survey(iter(batches))
    with torch.no_grad():
        features = torch.cat([method.features(batch) for batch, _ in batches])
    targets = torch.cat([target for _, target in batches])
    for target in (0, 1):
        slow, fast = nn.functional.normalize(features[targets == target].mean(0).view(2, 48), dim=1)
        torch.testing.assert_close(method.slow_classifier.weight[2 + target], slow)
        torch.testing.assert_close(method.fast_classifier.weight[2 + target].detach(), fast)
    assert torch.equal(method.fast_classifier.weight[:2], before), "rows of known classes stay"


def test_known_classes_without_a_row_are_imprinted_with_their_prototypes() -> None:
    method = attached()
    means = torch.randn(2, 96, generator=torch.Generator().manual_seed(0))
    begin(method, 0, 2, 1, means)
    method.survey(iter([(images(2), torch.tensor([0, 0]))]))
    for part, classifier in zip(
        means.chunk(2, 1), (method.slow_classifier, method.fast_classifier), strict=True
    ):
        torch.testing.assert_close(classifier.weight[:2].detach(), nn.functional.normalize(part, dim=1))


def test_a_known_class_of_the_task_without_a_row_is_imprinted_with_its_images() -> None:
    method = attached()
    method.begin_task(TaskInfo(0, ("old", "new"), ("old",), torch.zeros(0, 96)))
    method.survey(iter([(images(4), torch.tensor([0, 0, 1, 1]))]))
    for classifier in (method.slow_classifier, method.fast_classifier):
        torch.testing.assert_close(classifier.weight.norm(dim=1).detach(), torch.ones(2))


def test_the_release_leaves_new_rows_at_zero_and_sets_the_scales_back() -> None:
    method = attached(variant="released")
    begin(method, 0, 0, 2)
    assert method.fast_classifier.weight.norm(dim=1).min() > 0
    with torch.no_grad():
        method.fast_classifier.scale.fill_(7.0)
    method.end_task(iter(()))
    assert method.fast_classifier.scale == method.slow_classifier.scale == 10
    begin(method, 1, 2, 2)
    method.survey(iter([(images(2), torch.tensor([0, 1]))]))
    for classifier in (method.slow_classifier, method.fast_classifier):
        assert not classifier.weight[2:].any()
    mended = attached()
    begin(mended, 0, 0, 2)
    with torch.no_grad():
        mended.fast_classifier.scale.fill_(7.0)
    mended.end_task(iter(()))
    assert mended.slow_classifier.scale == 7


def test_scores_of_an_image_do_not_depend_on_the_others() -> None:
    learner = fit_all(make_learner(SAFE(projection=32)), [coloured("ab"), coloured("cd")])
    features = learner.features(coloured("abcd", seed=1))
    together = learner.head.scores(features)
    alone = np.concatenate([learner.head.scores(row[None]) for row in features])
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-9)


def test_another_variant_or_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="variant must be 'paper' or 'released', got 'mended'"):
        SAFE(variant="mended")
    with pytest.raises(ValueError, match="adapter must be one of bottleneck, ssf, vpt, got 'lora'"):
        SAFE(adapter="lora")


def test_rows_follow_their_classes_through_a_saved_learner(tmp_path: Any) -> None:
    """Labels that arrive out of alphabetical order, over a save, keep their rows."""
    learner = make_learner(SAFE(projection=32)).fit(coloured("db"))
    learner.save(tmp_path)
    loaded = Learner.load(tmp_path, device="cpu")
    for each in (learner, loaded):
        each.fit(coloured("ca"))
        assert each.classes == ("d", "b", "c", "a")
    assert digests(loaded.method.learned()) == digests(learner.method.learned())
    assert learner.predict(pixels(coloured("abcd", seed=1))) == list(coloured("abcd", seed=1).labels)


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_forgotten_class_has_no_row_and_comes_back_with_a_new_one(variant: str, by_hand: bool) -> None:
    learner = make_learner(SAFE(projection=32, variant=variant)).fit(coloured("bac"))
    method = learner.method
    assert isinstance(method, SAFE)
    classifiers = (method.slow_classifier, method.fast_classifier)
    before = [classifier.weight.detach().clone() for classifier in classifiers]
    if by_hand:
        learner.head.remove("a")
    else:
        learner.forget("a")
    learner.begin_task(("a", "d"), ("b", "c", "d", "a"))
    assert method.classes.names == ("b", "c", "d", "a")
    assert method.known == 2
    for classifier, rows in zip(classifiers, before, strict=True):
        assert torch.equal(classifier.weight[:2], rows[[0, 2]])
        assert classifier.weight.shape == (4, 48)
        assert not classifier.weight[2:].any()  # until the survey
    with torch.no_grad():
        for classifier in classifiers:
            classifier.weight[2:] = 0
            classifier.weight[3, 0] = 1
    data, targets = images(), torch.tensor([0, 1, 1, 0])  # positions in ("a", "d")
    fast = method._see(data, method.fast)
    expected = nn.functional.cross_entropy(method.fast_classifier(fast), torch.tensor([3, 2, 2, 3]))
    torch.testing.assert_close(method.loss(data, targets)["ce"], expected)


def test_a_class_without_a_row_can_be_forgotten() -> None:
    """One that the head knew before there was a task."""
    method = SAFE(projection=32)
    method.attach(vit())
    known = method.head()
    known.update(np.random.default_rng(0).normal(size=(6, 96)), ["x", "y"] * 3)
    learner = make_learner(SAFE(projection=32), head=known)
    learner.forget("x")
    assert learner.classes == ("y",)
    learner.fit(coloured("ba"))
    assert learner.classes == learner.method.classes.names == ("y", "b", "a")
