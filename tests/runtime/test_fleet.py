"""Many devices: what they hand in adds up to one that saw everything, and nothing counts twice."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn_runtime import (
    LDA,
    Bundle,
    DeltaError,
    EdgeLearner,
    FeCAM,
    Head,
    MissingExtra,
    OnnxRuntime,
    Prototypes,
    Ridge,
    StateError,
    TrustError,
    WhitenedCosine,
    signing,
)
from everlearn_runtime.cli import main
from everlearn_runtime.fleet import Delta, merge, merging
from everlearn_runtime.heads import BalancedRidge
from everlearn_runtime.state import Owner
from everlearn_runtime.state.adapted import Adapters

from .conftest import MakeBundle, MakeImages

HEADS: dict[str, Callable[[], Head]] = {
    "prototypes": Prototypes,
    "lda": LDA,
    "whitened_cosine": WhitenedCosine,
    "ridge": lambda: Ridge(0.1),
    "balanced_ridge": BalancedRidge,
    "lda, removable": lambda: LDA(removable=True),
    "lda, projection": lambda: LDA(projection=16, seed=1),
    "ridge, projection": lambda: Ridge(0.1, projection=16),
    "ridge, both": lambda: Ridge(0.1, projection=16, removable=True),
}


class Fleet:
    """A bundle, and devices that learn on it."""

    def __init__(self, folder: Path, bundle: Path, images: MakeImages) -> None:
        self.folder, self.bundle, self.images = folder, bundle, images
        self.seeds = itertools.count(1)
        self.shown: list[tuple[str, int, int]] = []

    def open(self, device: str, bundle: Path | None = None, migrate: bool = False) -> EdgeLearner:
        return EdgeLearner.open(
            bundle or self.bundle, state=self.folder / f"{device}.db", threads=1, migrate=migrate
        )

    def teach(self, edge: EdgeLearner, label: str, n: int = 3, note: bool = True) -> None:
        seed = next(self.seeds)
        edge.learn(self.images(label, n, seed), [label] * n)
        if note:
            self.shown.append((label, n, seed))

    def hand_in(self, device: str, since: int | None = None, name: str = "", min_count: int = 1) -> Path:
        place = self.folder / f"{device}-{name}{next(self.seeds)}.delta"
        with self.open(device) as edge:
            edge.delta(since, min_count=min_count).save(place)
        return place

    def merge(self, deltas: Sequence[Path], name: str = "merged", bundle: Path | None = None) -> Bundle:
        merge(bundle or self.bundle, deltas, self.folder / name)
        return Bundle.open(self.folder / name)

    def one_device(self) -> Head:
        """The head of a device that saw all that was shown."""
        with EdgeLearner.open(self.bundle, threads=1) as edge:
            for label, n, seed in self.shown:
                edge.learn(self.images(label, n, seed), [label] * n)
            return edge._keeper.head


def same(one: Head, other: Head) -> None:
    """The same sums, whatever the order of the classes."""
    assert sorted(one.classes) == sorted(other.classes)
    order = [one.classes.index(name) for name in other.classes]
    np.testing.assert_array_equal(one.counts[order], other.counts)
    np.testing.assert_allclose(one.prototypes[order], other.prototypes, rtol=1e-9, atol=1e-12)
    rows = np.random.default_rng(0).normal(size=(20, 6)) + one.prototypes.mean(axis=0)
    mine, theirs = one.scores(rows)[:, order], other.scores(rows)
    np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())


@pytest.fixture
def fleet(tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages) -> Fleet:
    return Fleet(tmp_path, make_bundle(), make_images)


def of_head(
    tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages, new: Callable[[], Head]
) -> Fleet:
    head, plain = new(), make_bundle("plain")
    backend = OnnxRuntime(plain / "features.onnx", threads=1)
    for label in ("mug", "pen", "cup"):
        head.update(backend.run(make_images(label, 6)), [label] * 6)
    return Fleet(tmp_path, make_bundle("bundle", head), make_images)


@pytest.mark.parametrize("kind", HEADS)
def test_deltas_add_up_to_one_device_that_saw_everything(
    kind: str, tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages
) -> None:
    fleet = of_head(tmp_path, make_bundle, make_images, HEADS[kind])
    places = []
    for device, labels in {"a": ["mug", "key", "key"], "b": ["key", "fork"], "c": ["pen"]}.items():
        with fleet.open(device) as edge:
            for label in labels:
                fleet.teach(edge, label)
        places.append(fleet.hand_in(device))
    merged = fleet.merge(places)
    same(merged.head(), fleet.one_device())
    for number, order in enumerate(itertools.permutations(places)):  # to the bit, whatever the order
        again = fleet.merge(order, f"again {number}")
        assert again.manifest.files == merged.manifest.files
    one_by_one = fleet.merge(places[:1], "first")
    for number, place in enumerate(places[1:]):
        one_by_one = fleet.merge([place], f"next {number}", one_by_one.path)
    same(one_by_one.head(), fleet.one_device())


def test_what_is_handed_in_twice_counts_once(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        fleet.teach(edge, "mug")
    first = fleet.hand_in("a")
    copy = fleet.hand_in("a")
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    second, whole = fleet.hand_in("a", since=2), fleet.hand_in("a", since=0)
    found = merge(fleet.bundle, [first, copy, second, whole, first], fleet.folder / "merged")
    assert found.deltas == 1  # the whole
    assert len(found.counted) == 4
    assert found.learned == {"key": 6, "mug": 3}
    same(Bundle.open(fleet.folder / "merged").head(), fleet.one_device())
    parts = fleet.merge([second, first], "parts")
    same(parts.head(), fleet.one_device())
    spans = parts.ledger().devices
    assert [(span.start.version, span.end.version) for span in next(iter(spans.values()))] == [(0, 3)]
    found = merge(fleet.folder / "parts", [first, whole], fleet.folder / "more")
    assert (found.deltas, found.learned) == (0, {})
    assert Bundle.open(fleet.folder / "more").head().counts.tolist() == parts.head().counts.tolist()


def test_deltas_that_overlap_are_refused(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        for label in ("key", "mug", "fork"):
            fleet.teach(edge, label)
    late = fleet.hand_in("a", since=1)
    with fleet.open("a") as edge:
        edge.rollback(2)
    early = fleet.hand_in("a", since=0)
    first = fleet.merge([late])
    with pytest.raises(DeltaError, match=r"overlaps them|counted already"):
        fleet.merge([early], "more", first.path)
    assert not (fleet.folder / "more").exists()


def test_two_devices_that_go_on_from_copies_of_one_state_are_told(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    shutil.copy(fleet.folder / "a.db", fleet.folder / "b.db")
    places = []
    for device in "ab":
        with fleet.open(device) as edge:
            fleet.teach(edge, "fork")
        places.append(fleet.hand_in(device))
    with pytest.raises(DeltaError, match="two pasts"):
        fleet.merge(places)
    with fleet.open("a") as edge:
        edge.backup(fleet.folder / "c.db")  # which goes on as the same device
    same_device = [Delta.peek(fleet.hand_in(device)).device for device in "ac"]
    assert same_device[0] == same_device[1]


def test_a_forgotten_class_stays_forgotten(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        edge.forget("mug")
        fleet.teach(edge, "key", note=False)
        edge.forget("key")
        fleet.teach(edge, "fork")
    with fleet.open("b") as edge:
        fleet.teach(edge, "mug", note=False)
        fleet.teach(edge, "key", note=False)
        fleet.teach(edge, "fork")
    deltas = [fleet.hand_in("a"), fleet.hand_in("b")]
    late = fleet.hand_in("b", name="late")
    for order in (deltas, deltas[::-1]):
        bundle = fleet.merge(order, f"merged {order[0].name}")
        assert sorted(bundle.head().classes) == ["fork", "pen"]
        assert bundle.head().counts.tolist() == [4, 6]
    only = fleet.merge(deltas[:1], "first")
    again = fleet.merge([late], "second", only.path)  # learned with the bundle before
    assert sorted(again.head().classes) == ["fork", "pen"]
    with fleet.open("d", again.path) as edge:  # and with this one it may be learned anew
        fleet.teach(edge, "mug")
        edge.delta().save(fleet.folder / "d.delta")
    anew = fleet.merge([fleet.folder / "d.delta"], "third", again.path)
    assert "mug" in anew.head().classes


@pytest.mark.parametrize("kind", ["lda, removable", "ridge, both"])
def test_of_a_removable_head_nothing_of_a_forgotten_class_stays(
    kind: str, tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages
) -> None:
    new = HEADS[kind]
    fleet = of_head(tmp_path, make_bundle, make_images, new)
    with fleet.open("a") as edge:
        edge.forget("mug")
        fleet.teach(edge, "fork", note=False)
        fleet.teach(edge, "key")
        edge.forget("fork")
    with fleet.open("b") as edge:
        fleet.teach(edge, "mug", note=False)
        fleet.teach(edge, "pen")
    head = fleet.merge([fleet.hand_in("a"), fleet.hand_in("b")]).head()
    backend, alone = OnnxRuntime(fleet.bundle / "features.onnx", threads=1), new()
    for label, n, seed in (("pen", 6, 0), ("cup", 6, 0), *fleet.shown):
        alone.update(backend.run(make_images(label, n, seed)), [label] * n)
    same(head, alone)


def test_who_forgets_and_learns_anew_keeps_that(fleet: Fleet) -> None:
    for name in ("mug", "pen"):  # the first, and the last, which stands where it stood
        with fleet.open(f"a {name}") as edge:
            edge.forget(name)
            fleet.teach(edge, name, 5)
            mean = edge._keeper.head.prototypes[1]
        with fleet.open(f"b {name}") as edge:
            fleet.teach(edge, name, 2, note=False)
        head = fleet.merge([fleet.hand_in(f"a {name}"), fleet.hand_in(f"b {name}")], f"of {name}").head()
        assert head.counts[head.classes.index(name)] == 5
        np.testing.assert_allclose(head.prototypes[head.classes.index(name)], mean, rtol=1e-9)


def test_a_device_takes_the_merged_bundle_and_keeps_what_it_has_learned_since(fleet: Fleet) -> None:
    for device in "ab":
        with fleet.open(device) as edge:
            fleet.teach(edge, "key")
    deltas = [fleet.hand_in(device) for device in "ab"]
    with fleet.open("a") as edge:
        fleet.teach(edge, "fork")
        fleet.teach(edge, "key")
    first = fleet.merge(deltas)
    with pytest.raises(StateError, match="merged from that one, and with migrate=True"):
        fleet.open("a", first.path)
    with fleet.open("a", first.path, migrate=True) as edge:
        assert edge.migrated is not None
        assert edge.migrated.learned == {"fork": 3, "key": 3}
        same(edge._keeper.head, fleet.one_device())
        fleet.teach(edge, "spoon")
        rest = edge.delta()
        rest.save(fleet.folder / "rest.delta")
        assert rest.counts == {"fork": 3, "key": 3, "spoon": 3}
        assert rest.span.start.version == 1
    with fleet.open("c", first.path) as edge:
        fleet.teach(edge, "key")
        edge.delta().save(fleet.folder / "c.delta")
    second = fleet.merge([fleet.folder / "rest.delta", fleet.folder / "c.delta"], "second", first.path)
    same(second.head(), fleet.one_device())
    with fleet.open("a", second.path, migrate=True) as edge:
        same(edge._keeper.head, fleet.one_device())
    with fleet.open("b") as edge:
        edge.forget("key")
    with fleet.open("b", second.path, migrate=True) as edge:
        assert "key" not in edge.classes
        assert edge.delta().forgotten == ("key",)


def test_a_state_of_a_device_that_had_handed_in_nothing(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    with fleet.open("b") as edge:
        fleet.teach(edge, "fork")
    bundle = fleet.merge([fleet.hand_in("a")])
    with fleet.open("b", bundle.path, migrate=True) as edge:
        same(edge._keeper.head, fleet.one_device())
        assert edge.delta().counts == {"fork": 3}


def test_what_was_taken_back_is_not_handed_in(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        fleet.teach(edge, "fork", note=False)
        edge.forget("mug")
        edge.rollback(1)
        with pytest.raises(ValueError, match="version 2 was taken back"):
            edge.delta(2)
        delta = edge.delta()
        assert (delta.counts, delta.forgotten) == ({"key": 3}, ())
        with pytest.raises(ValueError, match="nothing was learned or forgotten since version 4"):
            edge.delta(4)


def test_adapters_of_its_own_keep_a_device_from_handing_in(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        owner = edge._keeper
        assert isinstance(owner, Owner)
        owner.adapt(owner.head, Adapters({"scale": np.ones(2, np.float32)}, 1), ["key"])
        with pytest.raises(ValueError, match="adapters were trained"):
            edge.delta(0)
        owner.rollback(1)
        assert edge.delta().counts == {"key": 3}


def test_few_samples_are_withheld(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key", 1)
        fleet.teach(edge, "mug", 2)
        fleet.teach(edge, "fork", 5)
        delta = edge.delta(min_count=3)
        assert (delta.counts, delta.withheld) == ({"fork": 5}, 2)
        for wrong in (0, -1, 1.0, True, None):
            with pytest.raises(ValueError, match="min_count is"):
                edge.delta(min_count=wrong)  # type: ignore[arg-type]
        for other in (-1, 1.0, True, "1"):
            with pytest.raises(ValueError, match="since is"):
                edge.delta(other)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="from 0 to 3 can"):
            edge.delta(9)


def test_without_a_state_or_with_other_heads_there_is_no_delta(
    fleet: Fleet, tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages
) -> None:
    with EdgeLearner.open(fleet.bundle, threads=1) as edge:
        fleet.teach(edge, "key")
        with pytest.raises(ValueError, match="needs the versions of a state"):
            edge.delta()
    other = of_head(
        tmp_path / "other", lambda name, *given: make_bundle(f"other {name}", *given), make_images, FeCAM
    )
    (tmp_path / "other").mkdir()
    with other.open("a") as edge:
        other.teach(edge, "key")
        with pytest.raises(ValueError, match="more than sums of features"):
            edge.delta()
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    with (
        EdgeLearner.open(fleet.bundle, state=fleet.folder / "a.db", read_only=True, threads=1) as reader,
        pytest.raises(ValueError, match="needs the versions of a state"),
    ):
        reader.delta()


def test_a_delta_of_another_graph_or_bundle_is_refused(fleet: Fleet, make_bundle: MakeBundle) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    delta = fleet.hand_in("a")
    head = Bundle.open(fleet.bundle).head()
    head.remove("pen")
    other = make_bundle("other", head)
    with pytest.raises(DeltaError, match="another bundle with the same graph"):
        merge(other, [delta], fleet.folder / "merged")
    ridge = Ridge(0.1)
    ridge.update(np.eye(6)[:2], ["mug", "pen"])
    with pytest.raises(DeltaError, match="another graph or head"):
        merge(make_bundle("ridge", ridge), [delta], fleet.folder / "merged")
    with pytest.raises(ValueError, match="no delta to merge"):
        merge(fleet.bundle, [], fleet.folder / "merged")
    with pytest.raises(ValueError, match="already holds a bundle"):
        merge(fleet.bundle, [delta], fleet.bundle)
    assert not (fleet.folder / "merged").exists()


def test_signed_deltas(fleet: Fleet, tmp_path: Path) -> None:
    key, public = signing.new_keys(tmp_path / "key")
    _, stranger = signing.new_keys(tmp_path / "stranger")
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        delta = edge.delta()
    signed, plain = tmp_path / "signed.delta", tmp_path / "plain.delta"
    delta.save(signed, key=key)
    delta.save(plain)
    assert Delta.read(signed, trust=[public]).counts == {"key": 3}
    merge(fleet.bundle, [signed], tmp_path / "merged", trust=[public])
    for place, trust, says in ((plain, public, "not signed"), (signed, stranger, "signed by")):
        with pytest.raises(TrustError, match=says):
            merge(fleet.bundle, [place], tmp_path / "other", trust=[trust])
    arrays = safetensors.numpy.load_file(signed)
    with safetensors.safe_open(signed, "np") as file:
        metadata = file.metadata()
    arrays["means"] = arrays["means"] + 1
    safetensors.numpy.save_file(arrays, signed, metadata=metadata)
    with pytest.raises(TrustError, match="altered"):
        merge(fleet.bundle, [signed], tmp_path / "other", trust=[public])
    said = json.loads(metadata["everlearn_delta"])
    said["device"] = "0" * 16
    safetensors.numpy.save_file(
        safetensors.numpy.load_file(plain), signed, metadata={**metadata, "everlearn_delta": json.dumps(said)}
    )
    with pytest.raises(TrustError, match="altered"):
        Delta.read(signed, trust=[public])
    assert not (tmp_path / "other").exists()


def test_a_delta_of_the_graph_before_is_carried_over_by_the_map(
    fleet: Fleet, tmp_path: Path, make_bundle: MakeBundle, graph: bytes
) -> None:
    from everlearn_runtime.heads.drift import affine_map
    from everlearn_runtime.identity import model_of
    from everlearn_runtime.migration import Replaced

    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    delta, old = fleet.hand_in("a"), Bundle.open(fleet.bundle)
    rows = np.random.default_rng(0).normal(size=(40, 6))
    mixed = rows @ np.random.default_rng(1).normal(size=(6, 6)) + 1
    drift, _ = affine_map(rows, mixed)
    base = old.head()
    replaced = Replaced(
        old.id, model_of(old.manifest), base.state(), drift, 40, explained=1.0, agreement=None
    )
    new = base.moved(drift, LDA())
    model = onnx.load_from_string(graph)
    model.doc_string = "another graph"
    bundle = make_bundle("new", new, features=model.SerializeToString(), replaces=replaced)
    with pytest.raises(DeltaError, match="another graph"):
        merge(make_bundle("stranger", new, features=model.SerializeToString()), [delta], tmp_path / "no")
    merge(bundle, [delta], tmp_path / "merged")
    wanted = Bundle.open(bundle).head()
    wanted.merge(Delta.read(delta).head().moved(drift, LDA()))
    same(Bundle.open(tmp_path / "merged").head(), wanted)


def test_blocks_add_up_to_the_same(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    for device in "abcde":
        with fleet.open(device) as edge:
            fleet.teach(edge, "key", 2)
        places.append(fleet.hand_in(device))
    monkeypatch.setattr(merging, "BLOCK", 2)
    same(fleet.merge(places).head(), fleet.one_device())


@pytest.mark.filterwarnings("ignore::Warning:ray.data.context")  # Ray warns of itself
def test_on_ray_the_result_is_the_same_to_the_bit(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    places = []
    for device in "abcde":
        with fleet.open(device) as edge:
            fleet.teach(edge, "key", 2)
            if device == "c":
                edge.forget("pen")
        places.append(fleet.hand_in(device))
    monkeypatch.setattr(merging, "BLOCK", 2)
    plain = fleet.merge(places)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = merge(fleet.bundle, places, fleet.folder / "ray", ray=True)
        damaged = fleet.folder / "damaged.delta"
        damaged.write_bytes(places[0].read_bytes()[:-1])
        with pytest.raises(DeltaError, match=r"damaged\.delta is no delta"):
            merge(fleet.bundle, [damaged], fleet.folder / "no", ray=True)
    finally:
        ray.shutdown()
    assert found.deltas == 5
    assert Bundle.open(fleet.folder / "ray").manifest.files == plain.manifest.files
    assert not (fleet.folder / "no").exists()


def test_without_ray_one_line_names_the_extra(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ray.data", raising=False)
    with pytest.raises(MissingExtra, match=r"everlearn\[ray\]"):
        merge(fleet.bundle, [fleet.hand_in("a")], fleet.folder / "merged", ray=True)


def test_from_the_command_line(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        edge.forget("pen")
    place = fleet.folder / "a.delta"
    asked = ["delta", str(fleet.bundle), str(place), "--state", str(fleet.folder / "a.db")]
    assert main([*asked, "--min-count", "2"]) == 0
    assert capsys.readouterr().out.strip() == (
        f"{place}: after version 0 up to 2, learned 3 of key; forgotten pen"
    )
    assert Delta.read(place).counts == {"key": 3}
    place.unlink()
    assert main([*asked, "--since", "2"]) == 2
    assert "nothing was learned" in capsys.readouterr().err
    assert not place.exists()


@pytest.fixture
def small(fleet: Fleet) -> bytes:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    return fleet.hand_in("a").read_bytes()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_named_or_still_right(
    small: bytes, fleet: Fleet, at: float, byte: int, cut: bool
) -> None:
    place, where = fleet.folder / "damaged.delta", int(at * (len(small) - 1))
    place.write_bytes(small[:where] if cut else small[:where] + bytes([byte]) + small[where + 1 :])
    out = fleet.folder / f"out-{os.urandom(4).hex()}"
    try:
        merge(fleet.bundle, [place], out)
    except DeltaError:
        assert not out.exists()
    else:  # a number in the sums, or a time
        assert len(Bundle.open(out).head().classes) == 3
        shutil.rmtree(out)


def test_a_ledger_is_checked_when_it_is_read(fleet: Fleet, small: bytes) -> None:
    (fleet.folder / "whole.delta").write_bytes(small)
    ledger = fleet.merge([fleet.folder / "whole.delta"]).ledger()
    arrays = ledger.arrays()
    assert type(ledger).read(arrays).devices == ledger.devices
    wrong = {
        "devices": arrays["devices"][:, :4],
        "versions": arrays["versions"][:, ::-1].copy(),
        "digests": arrays["digests"].astype(np.int64),
        "says": arrays["says"][1:],
    }
    for name, array in wrong.items():
        with pytest.raises(ValueError, match="ledger"):
            type(ledger).read({**arrays, name: array})
    with pytest.raises(ValueError, match="holds the arrays"):
        type(ledger).read({})
