"""Baselines that train nothing, or the first task only."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everlearn import APER, NTKCL, SLDA, FeCAM, Frozen, Learner, Method, RanPAC, SimpleCIL
from everlearn.adapters.bottleneck import Bottleneck, Bottlenecks
from everlearn.backbones import load_backbone
from everlearn_runtime import heads

from ..conftest import coloured, make_learner, vit

FIRST_TASK = {"RanPAC": partial(RanPAC, projection=50), "APER": APER}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", FIRST_TASK.values(), ids=FIRST_TASK)
def test_the_first_task_tunes_the_features_and_no_later_one(
    make: Callable[[], Method], tmp_path: Path
) -> None:
    unseen = coloured("abcd", seed=1)
    learner = make_learner(make())
    start = learner.features(unseen)
    first = learner.fit(coloured("ab")).features(unseen)
    assert np.abs(first - start).max() > 1e-4
    assert learner.method.trainable() == []
    learner.save(tmp_path)
    loaded = Learner.load(tmp_path, device="cpu")
    assert loaded.method.trainable() == []
    for each in (learner, loaded):
        np.testing.assert_array_equal(each.fit(coloured("cd")).features(unseen), first)


def test_without_tuning_ranpac_sees_the_backbone_whatever_it_is() -> None:
    method, backbone = RanPAC(pet=False), load_backbone("test_resnet", weights="random")
    method.attach(backbone)
    assert method.trainable() == []
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(method.features(images), backbone.features(images))


def test_aper_puts_the_tuned_features_behind_the_pretrained_ones() -> None:
    learner = make_learner(APER()).fit(coloured("ab"))
    method, backbone = learner.method, learner.backbone
    assert isinstance(method, APER)
    with torch.no_grad():
        both, plain = method.features(IMAGES), backbone.features(IMAGES)
        tuned = method.adapters(backbone, IMAGES)
    assert method.sections == (48, 48)
    assert torch.equal(both, torch.cat([plain, tuned], 1))
    assert (tuned - plain).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_medium_patch16_reg4_gap_256"])
def test_bottlenecks_stand_beside_the_mlps(name: str) -> None:
    backbone = vit(name)
    adapters = Bottlenecks(backbone, hidden=4).eval()
    with torch.no_grad():
        fresh = adapters(backbone, IMAGES)
        torch.testing.assert_close(fresh, backbone.features(IMAGES))
        tokens = backbone.embed(IMAGES)
        for block, adapter in zip(backbone.blocks(), adapters, strict=True):
            assert isinstance(adapter, Bottleneck)
            adapter.up.weight.normal_(generator=torch.Generator().manual_seed(1))
            attended = tokens + block.ls1(block.attn(block.norm1(tokens)))
            tokens = attended + block.ls2(block.mlp(block.norm2(attended))) + adapter(attended)
        expected = backbone.vit.forward_head(backbone.vit.norm(tokens), pre_logits=True)
        torch.testing.assert_close(adapters(backbone, IMAGES), expected)
        assert (expected - fresh).abs().max() > 0.1


@pytest.mark.parametrize(
    ("method", "head"),
    [
        (SimpleCIL(), heads.Prototypes()),
        (SLDA(), heads.LDA(1e-4)),
        (SLDA(variant="released", shrinkage=0.1), heads.StreamingLDA(0.1, covariance="base")),
        (FeCAM(), heads.FeCAM(1.0, 0.0, pooling=0, correction=0)),
        (FeCAM(alpha1=10, alpha2=10), heads.FeCAM(10, 10, pooling=0, correction=0)),
        (RanPAC(regularisation="gcv", seed=3), heads.Ridge(projection=2000, seed=3)),
        (RanPAC(regularisation="newest", projection=9), heads.HeldOutRidge(projection=9)),
        (RanPAC(), heads.HeldOutRidge(True, projection=2000)),
        (APER(), heads.Prototypes()),
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_head_is_what_makes_the_method(method: Method, head: heads.Head) -> None:
    assert (type(method.head()), method.head().options) == (type(head), head.options)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SLDA(variant="paper"), "variant must be 'exact' or 'released', got 'paper'"),
        (lambda: RanPAC(regularisation="loo"), "regularisation must be 'gcv', 'newest' or 'remembering'"),
        (lambda: FeCAM(alpha1=0).head(), "alpha1 is 0; it must be above 0"),
        (lambda: make_learner(Frozen(), head=FeCAM()), "head is a FeCAM.*everlearn_runtime.heads.FeCAM"),
        (lambda: make_learner(Frozen(), head=NTKCL()), "head is a NTKCL"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
