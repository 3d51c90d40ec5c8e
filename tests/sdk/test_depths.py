"""Features of several depths: which parts there are, and what each method does with them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from everlearn import APER, NTKCL, SAFE, DualLoRA, FineTune, Frozen, Learner, Method, RanPAC, load_backbone
from everlearn.backbones.parts import recommended
from everlearn.methods.base import TaskInfo

from ..conftest import coloured, make_learner, vit
from .contract import CHECKS, Check, MakeMethod

NAMES = ("std", "mean@-3", "cls@0", "std@1", "mean")


def noise(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_each_part_is_what_its_name_says(name: str) -> None:
    backbone, images = vit(name, depth=4), noise()
    method = Frozen(depths=NAMES)
    method.attach(backbone)
    after: list[Tensor] = []
    for block in backbone.vit.blocks:
        block.register_forward_hook(lambda _, given, out: after.append(out))
    with torch.no_grad():
        own = backbone.vit(images)
        after, hidden = [], after
        final = backbone.vit.norm(hidden[-1]).double()
        inner = [F.layer_norm(tokens.double(), (48,)) for tokens in hidden]
        patches = slice(backbone.prefix, None)
        expected = [
            own.double(),
            final[:, patches].std(1, correction=0),
            inner[1][:, patches].mean(1),
            inner[0][:, 0],
            inner[1][:, patches].std(1, correction=0),
            final[:, patches].mean(1),
        ]
        torch.testing.assert_close(
            method.features(images), torch.cat(expected, 1).float(), rtol=1e-4, atol=1e-5
        )
    assert method.sections == (48,) * 6
    assert len(after) == 4, "one pass"


def test_patches_are_the_first_of_the_depths() -> None:
    backbone, images = vit(depth=4), noise()
    shorthand, named = Frozen(patches=True, depths=["std", "mean"]), Frozen(depths=["mean", "std"])
    shorthand.attach(backbone)
    named.attach(backbone)
    assert shorthand.parts == named.parts
    assert torch.equal(shorthand.features(images), named.features(images))


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (1, "mean std"),
        (2, "mean std mean@0"),
        (3, "mean std mean@1"),
        (4, "mean std mean@2 mean@1"),
        (12, "mean std mean@9 mean@7"),
        (24, "mean std mean@19 mean@15"),
    ],
)
def test_the_recommended_parts_follow_the_depth(depth: int, expected: str) -> None:
    assert " ".join(map(str, recommended(depth, patches=True))) == expected
    backbone = vit(depth=depth)
    for patches in (False, True):
        assert backbone.parts("auto", patches=patches) == recommended(depth, patches=True)


def test_a_backbone_that_pools_by_the_mean_has_its_other_parts() -> None:
    backbone, images = vit("vit_medium_patch16_reg4_gap_256", depth=3), noise()
    method = Frozen(patches=True, depths="auto")
    method.attach(backbone)
    assert [str(part) for part in method.parts] == ["std", "mean@1"]
    features = method.features(images)
    assert torch.equal(features[:, :48], backbone.gather(backbone.run(images))[0])
    normal = backbone.vit.fc_norm(backbone.vit.norm(list(backbone.run(images))[-1]))
    torch.testing.assert_close(
        features[:, 48:96], normal[:, backbone.prefix :].std(1, correction=0), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"are 'mean' already; leave it out of depths"):
        backbone.parts(["mean"])
    with pytest.raises(ValueError, match="has no CLS token; leave 'cls' out of depths"):
        backbone.parts(["cls@0"])


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        (["max"], "there is no part 'max'; write 'cls', 'mean' or 'std'.*'mean@9'"),
        (["mean@"], "there is no part 'mean@'"),
        (["mean@x"], "there is no part 'mean@x'"),
        (["mean@--1"], "there is no part 'mean@--1'"),
        (["@3"], "there is no part '@3'"),
        (["mean@12"], "'mean@12' is of no inner block: this backbone has 12, .* from 0 to 10"),
        (["cls@11"], "'cls@11' is of no inner block"),
        (["std@-1"], "'std@-1' is of no inner block"),
        (["mean@-13"], "'mean@-13' is of no inner block"),
        (["std", "mean@9", "mean@-3"], "depths has mean@9 twice: .*; name each once"),
        (["cls"], "are 'cls' already; leave it out of depths"),
    ],
)
def test_depths_that_there_are_not(depths: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(weights="random").parts(depths)
    with pytest.raises(ValueError, match=message):
        Frozen(depths=depths).attach(load_backbone(weights="random"))


@pytest.mark.parametrize("depths", ["mean", "", 3, None, [3]])
def test_depths_are_auto_or_a_list(depths: Any) -> None:
    with pytest.raises(
        ValueError, match=r"depths must be 'auto' or a list such as \['mean', 'std', 'mean@9'\]"
    ):
        Frozen(depths=depths)


def test_a_backbone_without_tokens_has_no_depths() -> None:
    backbone = load_backbone("resnet18", weights="random")
    with pytest.raises(ValueError, match=r"is no plain Vision Transformer.*depths are for a ViT's tokens"):
        Frozen(depths=["mean@0"]).attach(backbone)
    method = Frozen(patches=True, depths="auto")
    method.attach(backbone)
    assert method.sections == (512,)


def test_ntk_cl_trains_as_it_did_and_the_head_sees_all() -> None:
    """The loss looks at CLS and the mean patch, of the old prototypes too: to the bit the same."""
    losses, images, targets = [], noise(6), torch.tensor([0, 1, 0, 1, 0, 1])
    for depths in ((), ["std", "mean@0"]):
        torch.manual_seed(0)
        method = NTKCL(depths=depths)
        method.attach(vit(depth=3))
        for name, weight in method.cur.named_parameters():
            if name.endswith("up.weight"):
                torch.nn.init.normal_(weight, std=0.1)
        width = sum(method.sections)
        old = torch.randn(2, 192, generator=torch.Generator().manual_seed(1))[:, :width]
        method.begin_task(TaskInfo(1, ("c", "d"), ("a", "b"), old))
        torch.manual_seed(1)
        losses.append({name: term.detach() for name, term in method.loss(images, targets).items()})
        assert method.features(images).shape == (6, width)
    assert width == 4 * 48
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_the_hybrid_view_has_no_depths() -> None:
    with pytest.raises(ValueError, match="the hybrid view has no depths, got 'auto'; leave them out"):
        NTKCL(view="hybrid", depths="auto")


@pytest.mark.parametrize(
    ("make", "copies", "own"),
    [
        (lambda **given: RanPAC(projection=50, **given), 1, ()),
        (APER, 2, ()),
        (lambda **given: SAFE(projection=50, **given), 2, ()),
        (lambda **given: SAFE(projection=50, adapter="vpt", **given), 2, ()),
        (lambda **given: SAFE(projection=50, adapter="ssf", **given), 2, ()),
        (lambda **given: DualLoRA(tasks=3, evidence=True, patches=False, **given), 1, (3,)),
    ],
    ids=["RanPAC", "APER", "SAFE", "SAFE vpt", "SAFE ssf", "DualLoRA"],
)
def test_training_is_the_same_and_features_stand_behind(
    make: Callable[..., Method], copies: int, own: tuple[int, ...]
) -> None:
    """CLS is trained as without depths, but for rounding, and leads the features of each pass."""
    learners = [make_learner(make(depths=depths)).fit(coloured("ab")) for depths in ((), ["std", "mean@0"])]
    without, with_depths = (learner.method.learned() for learner in learners)
    for name, weights in with_depths.items():
        torch.testing.assert_close(weights, without[name], rtol=1e-3, atol=1e-5)
    plain, deep = (one.features(coloured("ab", 2)) for one in learners)
    assert deep.shape[1] == copies * 3 * 48 + sum(own)
    near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)  # CLS alone is summed in another order
    for index in range(copies):
        near(deep[:, index * 144 : index * 144 + 48], plain[:, index * 48 : index * 48 + 48])
    if own:
        near(deep[:, -3:], plain[:, -3:])


def test_a_classifier_that_is_the_head_is_trained_on_all() -> None:
    method = FineTune(depths=["std", "mean@0"])
    learner = make_learner(method).fit(coloured("ab"))
    assert method.classifier.weight.shape == (2, 144)
    assert learner.head.width == 144


FORMS: dict[str, MakeMethod] = {
    "Frozen": lambda: Frozen(depths="auto"),
    "NTKCL": lambda: NTKCL(depths="auto"),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_contract(make: MakeMethod, check: Check, tmp_path: Path) -> None:
    check(make, tmp_path)


def test_learners_saved_before_there_were_these_arguments_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(NTKCL(depths=(), later=1.0)).fit(coloured("ab"))
    config = learner.method.config()
    del config["depths"], config["later"]
    with monkeypatch.context() as patch:
        patch.setattr(NTKCL, "config", lambda self: config)
        learner.save(tmp_path)
    back = Learner.load(tmp_path, device="cpu")
    assert back.method.depths == ()
    assert back.method.later == 1.0
    np.testing.assert_array_equal(back.features(coloured("ab")), learner.features(coloured("ab")))
    with pytest.raises(ValueError, match="features are 144 wide; this head has learned from width 96"):
        Learner.load(tmp_path, device="cpu", method=NTKCL(depths=["std"], later=1.0))
