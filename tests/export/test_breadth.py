"""Many kinds of timm models, small and with random weights: trained, merged, exported, and run at any batch.

With random weights no accuracy says anything. What is held is that training lowers the loss and moves the
features but no weight of the backbone, and that the graph of the merged model computes what was trained.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from everlearn import (
    APER,
    NTKCL,
    SAFE,
    Backbone,
    DualLoRA,
    FineTune,
    Frozen,
    ILoRA,
    Joint,
    Learner,
    Method,
    RanPAC,
)
from everlearn.adapters import LoRA, ScaleShift
from everlearn.trainable import trainable
from everlearn_runtime.backends.onnxruntime import OnnxRuntime

from ..conftest import cnn, coloured, fit_all, pixels, vit

VIT: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
LAYER_SCALE: dict[str, Any] = VIT | {"init_values": 0.5}  # at its own start it leaves nothing to be seen
EVA: dict[str, Any] = VIT | {"img_size": 28}  # patches of 14 pixels
ONE: dict[str, Any] = {"depth": 1}  # the exporter takes seconds a block; others of the same class have two
STAGES: dict[str, Any] = {"depths": [1, 1, 1, 1]}

VITS: dict[str, dict[str, Any]] = {
    "vit_small_patch14_reg4_dinov2": LAYER_SCALE | {"img_size": 28},
    "vit_base_patch16_siglip_256": VIT | ONE,
    "vit_small_patch16_dinov3": LAYER_SCALE,
    "vit_small_plus_patch16_dinov3_qkvb": LAYER_SCALE | ONE,
    "eva02_tiny_patch14_224": EVA | ONE,
    "eva02_base_patch14_448": EVA | ONE,
    "vit_small_patch16_rope_mixed_224": LAYER_SCALE | ONE,
    "vit_pe_core_tiny_patch16_384": VIT | ONE,
}
OTHERS: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": LAYER_SCALE,
    "swin_tiny_patch4_window7_224": {
        **{"img_size": 32, "window_size": 4, "embed_dim": 24},
        **{"depths": [1, 1], "num_heads": [1, 2]},
    },
    "resnet10t": {"channels": [16, 24, 32, 48]},
    "test_byobnet": {},
    "test_efficientnet": {},
    "mobilenetv4_conv_small_035": {},
    "convnext_atto": STAGES | {"dims": [16, 16, 24, 32]},
    "convnextv2_nano.fcmae_ft_in22k_in1k_384": STAGES | {"dims": [16, 16, 24, 32]},
    "repvit_m0_9": {"embed_dim": [16, 24, 32, 48], "depth": [1, 1, 1, 1]},
    "fastvit_t8": {"layers": [1, 1, 1, 1]},
    "efficientvit_b0": STAGES,
    "edgenext_xx_small": STAGES | {"global_block_counts": [0, 1, 0, 0]},
    "test_mambaout": {},
}
SQUASHED = ("eva02_base_patch14_448", "convnextv2_nano.fcmae_ft_in22k_in1k_384")
TASKS = [coloured("ab", 4), coloured("cd", 4)]


def small(name: str) -> Backbone:
    return cnn(name, **(VITS | OTHERS)[name])


def check_export(learner: Learner, path: Path) -> None:
    """The bundle passes its gate, and its graph gives the method's features at batches of 3 and 1."""
    backbone, images = learner.backbone, pixels(coloured("abc", 1, seed=1), learner)
    # In float64, from which a float32 of torch is up to 7e-5 away (MobileNet with random weights).
    exact = copy.deepcopy(learner.method.eval()).double()
    with torch.inference_mode():
        expected = exact.features(backbone.normalise(torch.from_numpy(images)).double()).numpy()
    manifest = learner.export(path)
    assert manifest.sections == learner.method.sections
    graph = OnnxRuntime(path / "features.onnx", threads=1)
    try:
        size = np.sqrt(np.square(expected).mean())
        for batch in (3, 1):
            found = np.concatenate([graph.run(images[at : at + batch]) for at in range(0, 3, batch)])
            assert np.abs(found - expected).max() < 1e-4 * size
    finally:
        graph.close()


class Watched(NTKCL):
    """NTK-CL that notes the loss of each step."""

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        self.noted: list[float] = []

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        terms = super().loss(images, targets)
        self.noted.append(float(torch.stack(list(terms.values())).detach().sum()))
        return terms


@pytest.mark.parametrize("name", [*VITS, *OTHERS])
def test_a_model_is_trained_merged_and_exported(name: str, tmp_path: Path) -> None:
    backbone = small(name)
    assert backbone.has_tokens == (name in VITS)
    assert (backbone.input.crop == "squash") == (name in SQUASHED)
    weights = backbone.fingerprint()
    frozen = Learner(backbone, Frozen(patches=True, depths="auto"), device="cpu").fit(TASKS[0])
    method = Watched(dropout=0)
    settings: dict[str, Any] = {"augmentation": None, "epochs": 8, "batch_size": 8, "lr": 0.005}
    learner = Learner(backbone, method, **settings, device="cpu")
    untrained = learner.features(TASKS[0])
    np.testing.assert_allclose(untrained, frozen.features(TASKS[0]), rtol=1e-4, atol=1e-5)
    fit_all(learner, TASKS)
    losses = np.reshape(method.noted, (2, 8))  # a step an epoch: the random classifier's first ones lead away
    assert (losses[:, -1] < losses[:, 0]).all()
    trained = learner.features(TASKS[0])
    assert np.abs(trained - untrained).max() > 1e-4 * np.abs(untrained).max()
    assert backbone.fingerprint() == weights
    check_export(learner, tmp_path / "bundle")


# The other methods on them

EVA_METHODS: dict[str, tuple[str, Callable[[], Method]]] = {
    "FineTune": ("eva02_base_patch14_448", FineTune),
    "ILoRA": ("vit_small_plus_patch16_dinov3_qkvb", partial(ILoRA, memory=8, replay=2)),
    "DualLoRA, fused": ("vit_small_plus_patch16_dinov3_qkvb", partial(DualLoRA, tasks=2)),
    "DualLoRA, made one": ("eva02_base_patch14_448", partial(DualLoRA, tasks=2)),
    "DualLoRA, inflora": ("vit_small_patch16_dinov3", partial(DualLoRA, subspace="inflora", energy=(0.5, 1))),
    "RanPAC": ("eva02_tiny_patch14_224", partial(RanPAC, projection=32, depths="auto")),
    "SAFE": ("vit_small_patch16_dinov3", partial(SAFE, projection=32, depths="auto")),
    "SAFE, ssf": ("vit_small_plus_patch16_dinov3_qkvb", partial(SAFE, projection=32, adapter="ssf")),
    "SAFE, ssf, three layers": ("eva02_base_patch14_448", partial(SAFE, projection=32, adapter="ssf")),
    "SAFE, vpt": ("vit_small_patch16_rope_mixed_224", partial(SAFE, projection=32, adapter="vpt")),
    "NTKCL, hybrid": ("vit_small_plus_patch16_dinov3_qkvb", partial(NTKCL, view="hybrid")),
}
CNN_METHODS: dict[str, tuple[str, Callable[[], Method]]] = {
    "NTKCL on a CNN": ("fastvit_t8", NTKCL),
    "RanPAC on a CNN": ("repvit_m0_9", partial(RanPAC, projection=32)),
    "APER on a CNN": ("convnext_atto", APER),
    "SAFE, ssf, on a CNN": ("repvit_m0_9", partial(SAFE, projection=32, adapter="ssf")),
}
GRAPHS_OF_THEIR_OWN = ("DualLoRA, made one", "SAFE, vpt", "NTKCL, hybrid")


@pytest.mark.parametrize("name", [*EVA_METHODS, *CNN_METHODS])
def test_a_method_is_trained_saved_and_merged(name: str, tmp_path: Path) -> None:
    model, make = (EVA_METHODS | CNN_METHODS)[name]
    backbone = small(model)
    weights = backbone.fingerprint()
    learner = Learner(backbone, make(), augmentation=None, epochs=2, batch_size=4, lr=0.001, device="cpu")
    start = learner.features(TASKS[1])
    fit_all(learner, TASKS)
    found = learner.features(TASKS[1])
    assert found.shape == start.shape
    assert np.abs(found - start).max() > 1e-5 * np.abs(start).max()
    assert backbone.fingerprint() == weights
    learner.save(tmp_path / "learner")
    again = Learner.load(tmp_path / "learner", backbone=backbone, method=make(), device="cpu")
    np.testing.assert_array_equal(again.features(TASKS[1]), found)

    # timm makes one of RepViT's branches in 32 bits only.
    dtype, near = (torch.float32, 1e-4) if model.startswith("repvit") else (torch.float64, 1e-9)
    images = backbone.normalise(torch.from_numpy(pixels(coloured("abc", 1, seed=1), learner))).to(dtype)
    method = copy.deepcopy(learner.method).eval().to(dtype)
    deployed = method.deployable()
    with torch.inference_mode():
        torch.testing.assert_close(deployed(images), method.features(images), rtol=near, atol=near)
    assert not any(isinstance(module, (LoRA, ScaleShift)) for module in deployed.modules())
    if name in GRAPHS_OF_THEIR_OWN:
        check_export(again, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["repvit_m0_9", "fastvit_t8"])
def test_branches_are_merged_with_what_is_in_them(name: str) -> None:
    method = NTKCL()
    method.attach(small(name))
    merged = cast(Backbone, method.deployable().method.pre["channel"])  # type: ignore[union-attr, index]
    counts = [
        sum(isinstance(one, (nn.Conv2d, nn.BatchNorm2d)) for one in module.modules())
        for module in (method.backbone, merged)
    ]
    assert counts[1] < 0.7 * counts[0]


@pytest.mark.parametrize(
    "make",
    [FineTune, Joint, ILoRA, DualLoRA, SAFE, partial(SAFE, adapter="vpt"), partial(NTKCL, view="hybrid")],
    ids=["FineTune", "Joint", "ILoRA", "DualLoRA", "SAFE", "SAFE, vpt", "NTKCL, hybrid"],
)
def test_a_method_that_a_cnn_cannot_have_says_so(make: Callable[[], Method]) -> None:
    backbone, method = small("test_byobnet"), make()
    with pytest.raises(
        ValueError,
        match=r"'test_byobnet' \(ByobNet\) is no plain Vision Transformer.*such as.*NTKCL\(\).*Frozen\(\)",
    ):
        Learner(backbone, method)
    Learner(vit(), method)


def test_a_model_without_norms_has_nothing_to_scale(tmp_path: Path) -> None:
    backbone = cnn("test_nfnet")
    with pytest.raises(ValueError, match=r"'test_nfnet' \(NormFreeNet\) has no batch, layer or group norm"):
        Learner(backbone, NTKCL())
    learner = Learner(backbone, Frozen(), device="cpu").fit(TASKS[0])
    check_export(learner, tmp_path / "bundle")


def test_a_device_cannot_train_on_what_is_in_the_norms() -> None:
    learner = Learner(small("test_byobnet"), NTKCL(), device="cpu")
    for blocks in ("last2", "all"):
        with pytest.raises(ValueError, match=r"'test_byobnet' is merged into its norms.*train_step='head'"):
            trainable(learner.method, blocks, weight_decay=0, tasks=1)
