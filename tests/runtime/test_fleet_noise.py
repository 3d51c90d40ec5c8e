"""Noise on what devices hand in: what it hides, what it says of that, and that it still adds up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlearn_runtime import (
    LDA,
    Bundle,
    Delta,
    DeltaError,
    GaussianNoise,
    Head,
    MissingExtra,
    Prototypes,
    Ridge,
    TrustError,
    WhitenedCosine,
    merge,
    signing,
)
from everlearn_runtime.cli import main
from everlearn_runtime.fleet import merging
from everlearn_runtime.fleet import noise as noising
from everlearn_runtime.fleet.noise import add_means, clipped, metric, noisy_sums, secure_normal
from everlearn_runtime.heads import BalancedRidge
from everlearn_runtime.heads.gram import GramSum

from .conftest import MakeBundle, MakeImages
from .test_fleet import Fleet, of_head

NOISE = GaussianNoise(1.0, 3.0)
WIDE = GaussianNoise(1.0, 1e6)  # clips nothing
HEADS: dict[str, Callable[[], Head]] = {
    "prototypes": Prototypes,
    "lda": LDA,
    "whitened_cosine": WhitenedCosine,
    "balanced_ridge": BalancedRidge,
}


@pytest.fixture
def fleet(tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages) -> Fleet:
    return of_head(tmp_path, make_bundle, make_images, LDA)


@pytest.fixture
def accountant() -> Any:
    return pytest.importorskip("dp_accounting")


def no_noise(count: int) -> NDArray[np.float64]:
    return np.zeros(count)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 4),
    clip=st.floats(1e-3, 1e3),
    size=st.floats(1e-3, 1e6),
)
def test_one_blank_image_moves_all_sums_together_by_no_more_than_the_clip(
    seed: int, classes: int, clip: float, size: float
) -> None:
    draw = np.random.default_rng(seed)
    rows = [size * draw.normal(size=(draw.integers(1, 5), 5)) for _ in range(classes)]
    other = [own.copy() for own in rows]
    place = draw.integers(classes)
    other[place][draw.integers(len(other[place]))] = 0
    noise = GaussianNoise(1.0, clip)
    gap = noisy_sums(rows, noise, 5, no_noise) - noisy_sums(other, noise, 5, no_noise)
    assert np.linalg.norm(gap) <= clip * (1 + 1e-9)


def test_the_bound_is_reached_and_short_rows_stay() -> None:
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(clipped(rows, 1.0), np.array([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert noisy_sums([], NOISE, 2).shape == (0, 2)


def test_noise_has_the_spread_that_is_said() -> None:
    found = noisy_sums([np.zeros((2, 100))] * 400, GaussianNoise(0.7, 3.0), 100).ravel()
    assert abs(found.mean()) < 5 * 2.1 / 200
    assert found.std() == pytest.approx(2.1, rel=5 / np.sqrt(2 * found.size))
    normal = secure_normal(40_000)
    assert (normal**4).mean() == pytest.approx(3, abs=5 * np.sqrt(96 / normal.size))
    assert np.abs(normal).max() < 7
    assert abs(np.corrcoef(normal[:-1], normal[1:])[0, 1]) < 5 / 200
    assert not np.array_equal(secure_normal(4), secure_normal(4))


def test_epsilon_is_that_of_the_accountant(accountant: Any) -> None:
    # Of the analytic Gaussian mechanism: delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s).
    special = pytest.importorskip("scipy.special")
    for multiplier, delta in ((0.5, 1e-5), (1.0, 1e-5), (3.7, 1e-6)):
        epsilon = GaussianNoise(multiplier, 2.0, delta).epsilon
        half, long = 0.5 / multiplier, epsilon * multiplier
        told = special.ndtr(half - long) - np.exp(epsilon) * special.ndtr(-half - long)
        assert told == pytest.approx(delta, rel=1e-6)
    assert GaussianNoise(1.0, 2.0).epsilon == pytest.approx(4.377178, abs=1e-6)
    pld = pytest.importorskip("dp_accounting.pld").PLDAccountant(
        accountant.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    pld.compose(accountant.GaussianDpEvent(1.0))
    assert GaussianNoise(1.0, 2.0).epsilon == pytest.approx(pld.get_epsilon(1e-5), rel=1e-3)


@pytest.mark.parametrize("name", ["noise_multiplier", "clip", "target_delta"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", None, True, 1e12])
def test_arguments_that_make_no_sense(name: str, value: object) -> None:
    given: dict[str, Any] = {"noise_multiplier": 1.0, "clip": 1.0, "target_delta": 1e-5, name: value}
    with pytest.raises(ValueError, match=f"{name} is .* give a number above 0"):
        GaussianNoise(**given)


def test_lengths_are_measured_by_the_bundle(fleet: Fleet) -> None:
    head = Bundle.open(fleet.bundle).head()
    apart, back = metric(head)
    np.testing.assert_allclose(apart @ back, np.eye(6), atol=1e-9)
    scatter = GramSum.from_packed(head.state().arrays["scatter"], 6).value()
    covariance = scatter / (18 - 3)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / 6 * np.eye(6)
    np.testing.assert_allclose(apart.T @ shrunk @ apart, np.eye(6), atol=1e-9)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.usefixtures("accountant")
def test_without_noise_and_clipping_the_means_add_up(
    kind: str,
    tmp_path: Path,
    make_bundle: MakeBundle,
    make_images: MakeImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = of_head(tmp_path, make_bundle, make_images, HEADS[kind])
    monkeypatch.setattr(noising, "secure_normal", no_noise)
    places, plain = [], []
    for device, labels in {"a": ["mug", "key", "key"], "b": ["key", "fork"], "c": ["pen"]}.items():
        with fleet.open(device) as edge:
            for label in labels:
                fleet.teach(edge, label)
            delta = edge.delta(noise=WIDE)
        assert (delta.noise, delta.epsilon) == (WIDE, WIDE.epsilon)
        assert set(delta.state.arrays) == {"counts", "means"}
        places.append(fleet.folder / f"{device}.noisy")
        delta.save(places[-1])
        plain.append(fleet.hand_in(device))
    head = fleet.merge(places).head()
    assert (
        fleet.merge(places[::-1], "again").manifest.files == Bundle.open(tmp_path / "merged").manifest.files
    )
    wanted, before = fleet.one_device(), Bundle.open(fleet.bundle).head()
    order = [head.classes.index(name) for name in wanted.classes]
    assert head.counts[order].tolist() == wanted.counts.tolist()
    np.testing.assert_allclose(head.prototypes[order], wanted.prototypes, rtol=1e-9)
    if kind != "prototypes":  # the covariance, with its degrees of freedom, is the bundle's own
        arrays, own = head.state().arrays, before.state().arrays
        free = arrays["seen"][0] - len(head.classes), own["seen"][0] - len(before.classes)
        np.testing.assert_allclose(arrays["scatter"] / free[0], own["scatter"] / free[1], rtol=1e-12)
    # Those with noise and those without go together.
    both = fleet.merge([places[0], *plain[1:]], "both").head()
    order = [both.classes.index(name) for name in wanted.classes]
    assert both.counts[order].tolist() == wanted.counts.tolist()
    np.testing.assert_allclose(both.prototypes[order], wanted.prototypes, rtol=1e-9)


@pytest.mark.usefixtures("accountant")
def test_what_is_handed_in_is_clipped_has_noise_and_is_another_each_time(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key", 5)
        fleet.teach(edge, "mug", 2)
        one, two = edge.delta(noise=NOISE), edge.delta(noise=NOISE)
        assert one.counts == two.counts == {"key": 5, "mug": 2}
        assert not np.isclose(one.state.arrays["means"], two.state.arrays["means"]).any()
        few = edge.delta(min_count=3, noise=NOISE)
        assert (few.counts, few.withheld) == ({"key": 5}, 1)
        monkeypatch.setattr(noising, "secure_normal", no_noise)
        still = edge.delta(noise=GaussianNoise(1.0, 0.5)).state.arrays["means"]
    base = Bundle.open(fleet.bundle).head()
    apart, _ = metric(base)
    lengths = np.linalg.norm((still - base.prototypes.mean(axis=0)) @ apart, axis=1)
    assert (lengths <= 0.5 + 1e-9).all()


@pytest.mark.usefixtures("accountant")
def test_only_what_counts_is_in_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noising, "secure_normal", no_noise)
    with fleet.open("a") as edge:
        fleet.teach(edge, "key", 2)
        edge.forget("key")
        fleet.teach(edge, "key", 3)
        fleet.teach(edge, "fork", 4)
        edge.undo()
        fleet.teach(edge, "pen", 2)
        delta, plain = edge.delta(noise=WIDE), edge.delta()
        assert delta.counts == plain.counts == {"pen": 2, "key": 3}
        assert (delta.forgotten, delta.span) == (plain.forgotten, plain.span)
        np.testing.assert_allclose(delta.state.arrays["means"], plain.state.arrays["means"], rtol=1e-9)
        late = edge.delta(since=3, noise=WIDE)
        assert late.counts == {"pen": 2}
        edge.forget("pen")
        edge.forget("key")
        assert edge.delta(noise=NOISE).counts == {}


@pytest.mark.usefixtures("accountant")
def test_samples_that_the_journal_has_no_more_cannot_be_clipped(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        fleet.teach(edge, "fork")
        edge.forget("fork", purge=True)
        with pytest.raises(ValueError, match=r"of 3 samples of 'key' the state has the features of 0 only"):
            edge.delta(noise=NOISE)
        assert edge.delta().counts == {"key": 3}
        start = edge.version
        fleet.teach(edge, "pen")
        assert edge.delta(since=start, noise=NOISE).counts == {"pen": 3}
        for wrong in (1.0, True, {"clip": 1}):
            with pytest.raises(ValueError, match="give a GaussianNoise"):
                edge.delta(noise=wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("accountant")
def test_heads_whose_means_cannot_be_had_apart(
    tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages
) -> None:
    fleet = of_head(tmp_path, make_bundle, make_images, Ridge)
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        with pytest.raises(ValueError, match=r"Ridge.* does not keep its class means apart"):
            edge.delta(noise=NOISE)
    empty = Fleet(tmp_path, make_bundle("empty", LDA()), make_images)
    with empty.open("b") as edge:
        empty.teach(edge, "key")
        with pytest.raises(ValueError, match="this one knows no class"):
            edge.delta(noise=NOISE)
    head = LDA()
    head.update(np.eye(6)[:2], ["mug", "pen"])
    with pytest.raises(ValueError, match="several images of some class"):
        metric(head)
    with pytest.raises(ValueError, match="apart"):
        add_means(Ridge(), Prototypes())


def test_without_the_accountant_one_line_names_the_extra(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        with pytest.raises(MissingExtra, match=r"everlearn\[privacy\]"):
            edge.delta(noise=NOISE)
        assert edge.delta().noise is None


def made(fleet: Fleet) -> Delta:
    """A delta as if it had noise, wherever the accountant is or is not."""
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        delta = edge.delta()
    arrays = {name: delta.state.arrays[name] for name in ("counts", "means")}
    state = replace(delta.state, kind="prototypes", options=Prototypes().options, arrays=arrays)
    return replace(delta, state=state, noise=NOISE, epsilon=4.4)


def test_what_a_file_says_of_its_noise_is_checked(fleet: Fleet, tmp_path: Path) -> None:
    delta, place = made(fleet), tmp_path / "noisy.delta"
    delta.save(place)
    again = Delta.read(place)
    assert (again.noise, again.epsilon) == (NOISE, 4.4)
    assert Delta.peek(place).noise == NOISE
    with safetensors.safe_open(place, "np") as file:
        metadata = file.metadata()
    arrays, said = safetensors.numpy.load_file(place), json.loads(metadata["everlearn_delta"])
    assert said["format"] == 2
    wrong: list[object] = [None, {}, [], {**said["noise"], "more": 1.0}, 1.0]
    wrong += [{**said["noise"], name: value} for name in said["noise"] for value in (-1.0, "1", None, True)]
    for noise in wrong:
        text = json.dumps({**said, "noise": noise})
        safetensors.numpy.save_file(arrays, place, metadata={**metadata, "everlearn_delta": text})
        with pytest.raises(DeltaError, match="damaged"):
            merge(fleet.bundle, [place], tmp_path / "merged")
    for changed in ({**said, "format": 1}, {k: v for k, v in said.items() if k != "noise"}):
        text = json.dumps(changed)
        safetensors.numpy.save_file(arrays, place, metadata={**metadata, "everlearn_delta": text})
        with pytest.raises(DeltaError, match="damaged"):
            Delta.read(place)
    place.unlink()
    with fleet.open("a") as edge:
        replace(edge.delta(), noise=NOISE, epsilon=4.4).save(place)
    with pytest.raises(DeltaError, match="class means alone, and this is a lda head"):
        Delta.read(place)


def test_a_signed_file_says_no_other_noise(fleet: Fleet, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    key, public = signing.new_keys(tmp_path / "key")
    delta, place = made(fleet), tmp_path / "noisy.delta"
    delta.save(place, key=key)
    assert Delta.read(place, trust=[public]).epsilon == 4.4
    with safetensors.safe_open(place, "np") as file:
        metadata = file.metadata()
    said = json.loads(metadata["everlearn_delta"])
    said["noise"]["epsilon"] = 0.1
    metadata["everlearn_delta"] = json.dumps(said, sort_keys=True)
    safetensors.numpy.save_file(safetensors.numpy.load_file(place), place, metadata=metadata)
    with pytest.raises(TrustError, match="altered"):
        Delta.read(place, trust=[public])


def test_a_plain_delta_is_what_older_versions_read(fleet: Fleet, tmp_path: Path) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        edge.delta().save(tmp_path / "plain.delta")
    with safetensors.safe_open(tmp_path / "plain.delta", "np") as file:
        said = json.loads(file.metadata()["everlearn_delta"])
    assert said["format"] == 1
    assert "noise" not in said


def test_a_device_goes_on_with_what_was_merged_with_noise(fleet: Fleet) -> None:
    made(fleet).save(fleet.folder / "a.delta")
    with fleet.open("b") as edge:
        fleet.teach(edge, "key")
        edge.forget("pen")
    bundle = fleet.merge([fleet.folder / "a.delta", fleet.hand_in("b")])
    assert sorted(bundle.head().classes) == ["cup", "key", "mug"]
    with fleet.open("a", bundle.path, migrate=True) as edge:
        assert edge.counts["key"] == 6
        fleet.teach(edge, "key")
        assert edge.delta().counts == {"key": 3}


@pytest.mark.filterwarnings("ignore::Warning:ray.data.context")  # Ray warns of itself
def test_on_ray_it_is_the_same_to_the_bit(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    delta, places = made(fleet), list[Path]()
    for number in range(5):
        places.append(fleet.folder / f"{number}.delta")
        replace(delta, device=f"{number:016x}").save(places[-1])
    places.append(fleet.hand_in("a"))
    monkeypatch.setattr(merging, "BLOCK", 2)
    plain = fleet.merge(places)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = merge(fleet.bundle, places, fleet.folder / "ray", ray=True)
    finally:
        ray.shutdown()
    assert found.deltas == 6
    assert Bundle.open(fleet.folder / "ray").manifest.files == plain.manifest.files


@pytest.mark.usefixtures("accountant")
def test_from_the_command_line(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    place = fleet.folder / "a.delta"
    asked = ["delta", str(fleet.bundle), str(place), "--state", str(fleet.folder / "a.db")]
    assert main([*asked, "--noise", "1", "--clip", "3"]) == 0
    assert capsys.readouterr().out.strip() == (
        f"{place}: after version 0 up to 1, learned 3 of key; noise of epsilon 4.38 at delta 1e-05"
    )
    assert Delta.read(place).noise == NOISE
    assert main([*asked, "--noise", "1", "--clip", "3"]) == 2
    assert "holds versions 0 to 1 of this device, with noise" in capsys.readouterr().err
    place.unlink()
    assert main([*asked, "--noise", "1", "--clip", "3", "--target-delta", "1e-6", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["noise"] == {"noise_multiplier": 1.0, "clip": 3.0, "target_delta": 1e-6}
    assert said["epsilon"] == Delta.read(place).epsilon
    for wrong, says in (
        (["--noise", "1"], "--noise needs --clip"),
        (["--clip", "1"], "--clip goes with --noise"),
        (["--noise", "0", "--clip", "1"], "--noise is 0.0"),
        (["--noise", "1", "--clip", "1", "--target-delta", "0"], "--target-delta is 0.0"),
    ):
        assert main([*asked, *wrong]) == 2
        assert says in capsys.readouterr().err
