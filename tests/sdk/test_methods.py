"""Every method keeps the contract; a new one joins by its name in `everlearn.methods.__all__`."""

from functools import partial
from pathlib import Path

import pytest
import torch

from everlearn import NTKCL, SAFE, DualLoRA, Frozen, ILoRA, Joint, Learner, Method, RanPAC, methods

from ..conftest import Clock, cnn, coloured, make_learner, state, vit
from .contract import CHECKS, Check, MakeMethod

METHODS: dict[str, MakeMethod] = {name: getattr(methods, name) for name in methods.__all__}
METHODS["RanPAC"] = partial(RanPAC, projection=200)
METHODS["RanPAC(regularisation='gcv')"] = partial(RanPAC, regularisation="gcv", projection=200)
METHODS["RanPAC(pet=False)"] = partial(RanPAC, pet=False, projection=200)
METHODS["Frozen(patches=True)"] = partial(Frozen, patches=True)
METHODS["DualLoRA(subspace='inflora')"] = partial(DualLoRA, subspace="inflora", energy=(0.5, 1.0))
METHODS["DualLoRA(evidence=True)"] = partial(DualLoRA, evidence=True, tasks=4)
METHODS["ILoRA"] = partial(ILoRA, memory=8, replay=2)
METHODS["ILoRA(average='delta')"] = partial(ILoRA, memory=8, replay=2, average="delta")
METHODS["NTKCL(view='hybrid')"] = partial(NTKCL, view="hybrid")
METHODS["NTKCL(variant='released')"] = partial(NTKCL, variant="released")
METHODS["NTKCL(view='hybrid', ptm=True)"] = partial(NTKCL, view="hybrid", ptm=True)
METHODS["SAFE"] = partial(SAFE, projection=64)  # its own is for wider features, and slow here
METHODS["SAFE(adapter='ssf')"] = partial(SAFE, adapter="ssf", projection=64)
METHODS["SAFE(adapter='vpt')"] = partial(SAFE, adapter="vpt", projection=64)
METHODS["SAFE(variant='released')"] = partial(SAFE, variant="released", projection=64)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_contract(make: MakeMethod, check: Check, tmp_path: Path) -> None:
    check(make, tmp_path)


ON_A_CNN = [
    (name, check)
    for name in ("NTKCL", "RanPAC", "SAFE(adapter='ssf')")
    for check in CHECKS
    # Scale and shift start at one and zero, whatever the seed; SAFE's with a little noise.
    if name.startswith("SAFE") or check.__name__ != "another_seed_gives_another_result"
]


@pytest.mark.parametrize(("name", "check"), ON_A_CNN, ids=lambda given: getattr(given, "__name__", given))
def test_contract_on_a_cnn(name: str, check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(make_learner.__globals__, "vit", cnn)
    check(METHODS[name], tmp_path)


def test_the_suite_finds_every_method() -> None:
    assert METHODS.keys() >= {"DualLoRA", "FineTune", "Frozen", "ILoRA", "Joint", "NTKCL", "SAFE"}
    assert all(issubclass(getattr(methods, name), Method) for name in methods.__all__)
    assert len(CHECKS) == len({check.__name__ for check in CHECKS}) > 10


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_frozen_features_are_the_backbones_and_the_mean_patch(name: str) -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, both = Frozen(), Frozen(patches=True)
    backbone = vit(name)
    plain.attach(backbone)
    both.attach(backbone)
    with torch.no_grad():
        tokens = backbone.vit.forward_features(images)
        assert torch.equal(plain.features(images), backbone.features(images))
        torch.testing.assert_close(
            both.features(images), torch.cat([tokens[:, 0], tokens[:, backbone.prefix :].mean(1)], 1)
        )
    assert (plain.sections, both.sections) == ((48,), (48, 48))


def test_a_mean_that_is_there_already_is_not_put_behind() -> None:
    backbone, images = vit("vit_medium_patch16_reg4_gap_256"), torch.zeros(1, 3, 32, 32)
    method = Frozen(patches=True)
    method.attach(backbone)
    assert method.sections == (48,)
    torch.testing.assert_close(method.features(images), backbone.features(images))


def test_nothing_is_forgotten_in_the_middle_of_a_task(tmp_path: Path) -> None:
    learner, clock = make_learner(Joint()).fit(coloured("ab")), Clock(26)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(clock.watch(coloured("cd")), checkpoint=tmp_path)
    learner = Learner.load(tmp_path, device="cpu")
    assert learner.unfinished
    before = state(learner)
    with pytest.raises(ValueError, match="a task is unfinished, so 'a' cannot be forgotten now; call fit"):
        learner.forget("a")
    assert state(learner) == before
    learner.fit(coloured("cd")).forget("a")
    assert learner.classes == learner.method.classes.names == ("b", "c", "d")


def test_what_is_exported_is_not_verified_on_images_of_a_forgotten_class() -> None:
    learner = make_learner(Frozen()).fit(coloured("ab"))
    learner.forget("a")
    assert learner._seen is not None
    assert set(learner._seen.labels) == {"b"}
    learner.forget("b")
    assert learner._seen is None
