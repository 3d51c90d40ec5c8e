"""A device takes bundles that were merged from its own, also after it has missed some."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import onnx
import pytest

from everlearn_runtime import Bundle, Delta, DeltaError, EdgeLearner, Head, StateError, merge
from everlearn_runtime.fleet.stamps import MOST_PASSED, contradict, passed, stamp
from everlearn_runtime.heads.drift import affine_map
from everlearn_runtime.identity import model_of
from everlearn_runtime.ledger import Ledger
from everlearn_runtime.migration import Replaced
from everlearn_runtime.state import Version, owner

from .conftest import MakeBundle, MakeImages
from .test_fleet import HEADS, Fleet, of_head, same


@pytest.fixture
def fleet(tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages) -> Fleet:
    return Fleet(tmp_path, make_bundle(), make_images)


def lesson(fleet: Fleet, device: str, bundle: Path, *labels: str, note: bool = True) -> Path:
    """What a device learns with a bundle, handed in."""
    place = fleet.folder / f"{device}-{next(fleet.seeds)}.delta"
    with fleet.open(device, bundle, migrate=True) as edge:
        for label in labels:
            fleet.teach(edge, label, note=note)
        edge.delta().save(place)
    return place


def head_of(fleet: Fleet, device: str, bundle: Path) -> Head:
    with fleet.open(device, bundle, migrate=True) as edge:
        return edge._keeper.head


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("handed_in", [True, False])
def test_who_misses_bundles_takes_the_last_one(
    kind: str, handed_in: bool, tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages
) -> None:
    fleet = of_head(tmp_path, make_bundle, make_images, HEADS[kind])
    bundles, own = [fleet.bundle], {}
    for name in ("none", "one", "two"):  # how many each is going to miss
        own[name] = lesson(fleet, name, fleet.bundle, "key" if handed_in else "spoon")
        with fleet.open(name) as edge:
            fleet.teach(edge, "fork")
    for number in range(3):
        deltas = [lesson(fleet, f"other {number}", bundles[-1], "mug", "knife")]
        deltas += own.values() if handed_in and number == 0 else []
        bundles.append(fleet.merge(deltas, f"bundle {number}", bundles[-1]).path)
        if number < 1:
            head_of(fleet, "one", bundles[-1])
        head_of(fleet, "none", bundles[-1])
    for name in own:
        with fleet.open(name, bundles[-1], migrate=True) as edge:
            rest = {"fork": 3} if handed_in else {"spoon": 3, "fork": 3}
            assert edge.delta().counts == rest
            edge.delta().save(fleet.folder / f"{name}.rest")
            assert edge.counts["fork"] == 3
            assert edge.counts["key" if handed_in else "spoon"] == (9 if handed_in else 3)
    found = fleet.merge([fleet.folder / f"{name}.rest" for name in own], "all", bundles[-1])
    same(found.head(), fleet.one_device())
    for name in own:
        same(head_of(fleet, name, found.path), fleet.one_device())


def test_what_was_handed_in_with_one_bundle_and_merged_into_a_later_one(fleet: Fleet) -> None:
    late = lesson(fleet, "a", fleet.bundle, "key")
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    second = fleet.merge([lesson(fleet, "b", fleet.bundle, "fork")], "second")
    third = fleet.merge([late], "third", second.path)
    same(head_of(fleet, "a", third.path), fleet.one_device())
    with fleet.open("a", third.path) as edge:
        assert edge.delta().counts == {"key": 3}
        assert edge.delta().span.start.version == 1


def test_who_hands_in_takes_a_bundle_without_that_and_then_one_with_it(fleet: Fleet) -> None:
    first = lesson(fleet, "a", fleet.bundle, "key")
    with fleet.open("a") as edge:
        fleet.teach(edge, "fork")
    late = fleet.hand_in("a", since=1)
    second = fleet.merge([first], "second")
    with fleet.open("a", second.path, migrate=True) as edge:  # goes on with the fork
        fleet.teach(edge, "spoon")
    third = fleet.merge([late], "third", second.path)
    same(head_of(fleet, "a", third.path), fleet.one_device())
    with fleet.open("a", third.path) as edge:
        assert (edge.delta().counts, edge.delta().span.start.version) == ({"spoon": 3}, 2)


def test_what_came_late_is_not_counted_beside_what_the_device_carries(fleet: Fleet) -> None:
    first = lesson(fleet, "a", fleet.bundle, "key")
    with fleet.open("a") as edge:
        fleet.teach(edge, "fork")
    late = fleet.hand_in("a", since=1)
    with fleet.open("a") as edge:
        fleet.teach(edge, "fork")
    second = fleet.merge([first], "second")
    with fleet.open("a", second.path, migrate=True) as edge:  # goes on with both forks
        fleet.teach(edge, "spoon")
    third = fleet.merge([late], "third", second.path)
    with pytest.raises(StateError, match=r"up to version 2: its history goes from version 4 to 5"):
        fleet.open("a", third.path, migrate=True)
    with fleet.open("a", second.path) as edge:  # which is as it was
        assert edge.counts["fork"] == 6
        edge.delta().save(fleet.folder / "whole.delta")
    with pytest.raises(DeltaError, match="overlaps"):
        fleet.merge([fleet.folder / "whole.delta"], "no", third.path)
    mended = fleet.merge([fleet.folder / "whole.delta", late], "mended", second.path)
    same(mended.head(), fleet.one_device())
    same(head_of(fleet, "a", mended.path), fleet.one_device())


def test_versions_that_were_passed_over_are_not_lost(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        for label in ("key", "fork", "spoon"):
            fleet.teach(edge, label)
    part = fleet.hand_in("a", since=2)
    bundle = fleet.merge([part], "hole")
    with pytest.raises(StateError, match="not all, of it are there only versions 2 to 3; merge a new delta"):
        fleet.open("a", bundle.path, migrate=True)
    whole = fleet.merge([part, fleet.hand_in("a")], "whole")
    same(head_of(fleet, "a", whole.path), fleet.one_device())


def test_two_lines_of_versions_part_where_one_went_back(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        for label in ("key", "fork", "spoon"):
            fleet.teach(edge, label)
        edge.rollback(1)
    bundle = fleet.merge([fleet.hand_in("a")])  # of the key alone
    with fleet.open("a") as edge:
        edge.rollback(3)
    same(head_of(fleet, "a", bundle.path), fleet.one_device())


def test_of_a_bundle_that_is_too_long_ago_it_says_so(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    bundle = fleet.bundle
    for number in range(3):
        delta = lesson(fleet, f"other {number}", bundle, "fork")
        merge(bundle, [delta], fleet.folder / f"bundle {number}", ancestors=2)
        bundle = fleet.folder / f"bundle {number}"
    with pytest.raises(StateError, match=r"3 bundles were merged since its own.* heads of the last 2 alone"):
        fleet.open("a", bundle, migrate=True)
    head_of(fleet, "a", fleet.folder / "bundle 0")
    same(head_of(fleet, "a", bundle), fleet.one_device())
    for wrong in (0, -1, 1.0, True, None):
        with pytest.raises(ValueError, match="ancestors is"):
            merge(bundle, [delta], fleet.folder / "no", ancestors=wrong)  # type: ignore[arg-type]


def test_what_was_forgotten_meanwhile_goes_and_may_have_come_back(fleet: Fleet) -> None:
    for name in ("a", "b"):
        with fleet.open(name) as edge:
            fleet.teach(edge, "mug", note=False)
            fleet.teach(edge, "fork")
    with fleet.open("b") as edge:
        edge.forget("mug")
    with fleet.open("x") as edge:
        edge.forget("mug")
    second = fleet.merge([fleet.hand_in("x")], "second")
    third = fleet.merge([lesson(fleet, "y", second.path, "mug", note=False)], "third", second.path)
    head = third.head()
    assert head.counts[head.classes.index("mug")] == 3
    for name in "ab":  # who had learned it before has no more of it than others, and who forgot it no less
        with fleet.open(name, third.path, migrate=True) as edge:
            assert edge.counts == {"pen": 4, "mug": 3, "fork": 3}
            assert edge.delta().forgotten == ()
    with fleet.open("y", third.path, migrate=True) as edge:  # who learned it anew
        assert edge.counts["mug"] == 3
        fleet.teach(edge, "mug", 2)
    again = lesson(fleet, "z", third.path, "pen", note=False)
    with fleet.open("y", fleet.merge([again], "fourth", third.path).path, migrate=True) as edge:
        assert edge.counts["mug"] == 5


def test_a_class_that_is_forgotten_late_goes_only_if_it_did_not_go_before(fleet: Fleet) -> None:
    late = []
    for name in ("b", "x"):
        with fleet.open(name) as edge:
            edge.forget("mug")
        late.append(fleet.hand_in(name))
    second = fleet.merge(late[1:], "second")
    third = fleet.merge([lesson(fleet, "y", second.path, "mug", note=False)], "third", second.path)
    fourth = fleet.merge(late[:1], "fourth", third.path)
    assert "mug" in fourth.head().classes
    with fleet.open("x", fourth.path, migrate=True) as edge:
        edge.forget("mug")
        edge.delta().save(fleet.folder / "anew.delta")
    assert "mug" not in fleet.merge([fleet.folder / "anew.delta"], "fifth", fourth.path).head().classes


def test_what_was_handed_in_and_taken_back_comes_back_with_the_bundle(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        fleet.teach(edge, "fork")
    bundle = fleet.merge([fleet.hand_in("a")])
    with fleet.open("a") as edge:
        edge.undo()
        fleet.teach(edge, "spoon")
    same(head_of(fleet, "a", bundle.path), fleet.one_device())
    with fleet.open("a", bundle.path) as edge:
        delta = edge.delta()
        assert (delta.counts, delta.span.start.version) == ({"spoon": 3}, 2)
        delta.save(fleet.folder / "rest.delta")
    same(fleet.merge([fleet.folder / "rest.delta"], "second", bundle.path).head(), fleet.one_device())


def test_copies_of_one_state_are_told(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    shutil.copy(fleet.folder / "a.db", fleet.folder / "b.db")  # a copied card
    with fleet.open("b") as edge:
        edge.backup(fleet.folder / "c.db")
    with fleet.open("a") as edge:
        fleet.teach(edge, "fork")
    bundle = fleet.merge([fleet.hand_in("a")])
    with fleet.open("b") as edge:
        fleet.teach(edge, "spoon")
    with pytest.raises(StateError, match="two devices go on from copies of one state"):
        fleet.open("b", bundle.path, migrate=True)
    with fleet.open("b") as edge:
        edge.undo()
    with pytest.raises(StateError, match="two devices go on from copies of one state"):
        fleet.open("b", bundle.path, migrate=True)
    with pytest.raises(StateError, match="up to version 2: it is at version 1, as a backup or a copy"):
        fleet.open("c", bundle.path, migrate=True)


def test_after_a_purge_it_says_how_to_go_on(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    early = fleet.hand_in("a")
    with fleet.open("a") as edge:
        fleet.teach(edge, "bob", note=False)
        edge.forget("bob", purge=True)
        fleet.teach(edge, "fork")
    bundle = fleet.merge([early])
    with pytest.raises(
        StateError, match=r"history goes from version 3 to 4.*merge a new delta of this device"
    ):
        fleet.open("a", bundle.path, migrate=True)
    mended = fleet.merge([fleet.hand_in("a"), early], "mended")
    assert mended.head().counts.tolist() == [4, 4, 3, 3]
    assert head_of(fleet, "a", mended.path).counts.tolist() == [4, 4, 3, 3]


def test_what_was_withheld_stays_on_the_device(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "fork", 5)
        fleet.teach(edge, "key", 1)
        fleet.teach(edge, "mug", 1, note=False)
    bundle = fleet.merge([fleet.hand_in("a", min_count=2)])
    assert bundle.head().classes == ("mug", "pen", "fork")
    with fleet.open("a") as edge:
        fleet.teach(edge, "key", 2)
    same(head_of(fleet, "a", bundle.path), fleet.one_device())
    with fleet.open("a", bundle.path) as edge:
        delta = edge.delta(min_count=3)
        assert delta.counts == {"key": 3}
        delta.save(fleet.folder / "rest.delta")
    same(fleet.merge([fleet.folder / "rest.delta"], "second", bundle.path).head(), fleet.one_device())


def replaced(fleet: Fleet, make_bundle: MakeBundle, graph: bytes) -> tuple[Path, Callable[[Head], Head]]:
    """A bundle of another graph that replaces the fleet's, and its map of heads."""
    old, rows = Bundle.open(fleet.bundle), np.random.default_rng(0).normal(size=(40, 6))
    after = rows @ np.random.default_rng(1).normal(size=(6, 6)) + 1
    drift, _ = affine_map(rows, after)
    base = old.head()
    pair = (rows, after) if base.expands else None
    map_ = Replaced(old.id, model_of(old.manifest), base.state(), drift, 40, 1.0, None, pair)
    model = onnx.load_from_string(graph)
    model.doc_string = "another graph"
    new = map_.moved(base, base)
    bundle = make_bundle("new", new, features=model.SerializeToString(), replaces=map_)
    return bundle, lambda head: map_.moved(head, new)


@pytest.mark.parametrize("kind", HEADS)
def test_what_was_merged_over_the_map_is_not_carried_over_again(
    kind: str, tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages, graph: bytes
) -> None:
    fleet = of_head(tmp_path, make_bundle, make_images, HEADS[kind])
    delta = lesson(fleet, "a", fleet.bundle, "key", "mug")
    with fleet.open("a") as edge:
        fleet.teach(edge, "fork")
        own = edge._keeper.head.since(edge.bundle.head())
    new, move = replaced(fleet, make_bundle, graph)
    wanted = Bundle.open(new).head()
    wanted.merge(move(own))
    merged = fleet.merge([delta], "merged", new)
    same(head_of(fleet, "a", merged.path), wanted)
    with fleet.open("a", merged.path) as edge:
        assert edge.delta().counts == {"fork": 3}
        edge.delta().save(fleet.folder / "rest.delta")
    again = fleet.merge([fleet.folder / "rest.delta"], "again", merged.path)
    assert merge(again.path, [delta], fleet.folder / "more").counted == (str(delta),)
    same(again.head(), wanted)
    with fleet.open("b") as edge:
        fleet.teach(edge, "spoon")
    with fleet.open("b", again.path, migrate=True) as edge:  # from the graph before, over a merged bundle
        assert edge.counts == {"mug": 9, "pen": 6, "cup": 6, "key": 3, "fork": 3, "spoon": 3}


def test_a_delta_of_the_graph_before_does_not_bring_back_what_went_since(
    fleet: Fleet, make_bundle: MakeBundle, graph: bytes
) -> None:
    late = lesson(fleet, "a", fleet.bundle, "mug", "key")
    new, _ = replaced(fleet, make_bundle, graph)
    with fleet.open("n", new) as edge:
        edge.forget("mug")
        edge.delta().save(fleet.folder / "n.delta")
    merged = fleet.merge([fleet.folder / "n.delta"], "merged", new)
    both = fleet.merge([late], "both", merged.path)
    assert sorted(both.head().classes) == ["key", "pen"]
    assert sorted(head_of(fleet, "a", merged.path).classes) == ["key", "pen"]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("first", ["forgotten", "few"])
def test_of_what_is_left_out_the_shared_sums_tell_nothing(
    kind: str, first: str, tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages
) -> None:
    fleet = of_head(tmp_path, make_bundle, make_images, HEADS[kind])
    with fleet.open("a") as edge:
        fleet.teach(edge, "pen", 5)
        fleet.teach(edge, "mug", 1, note=False)
        if first == "forgotten":
            edge.forget("mug")
        found = edge.delta(min_count=2)
    with fleet.open("b") as edge:
        label, n, seed = fleet.shown[0]
        edge.learn(make_images(label, n, seed), [label] * n)
        wanted = edge.delta()
    assert found.counts == {"pen": 5}
    for name, array in wanted.state.arrays.items():
        np.testing.assert_allclose(found.state.arrays[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


def test_without_their_features_classes_cannot_be_left_out(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "pen", 5)
        fleet.teach(edge, "key", 1)
        edge.forget("key", purge=True)
        assert edge.delta(min_count=1).counts == {"pen": 5}
        with pytest.raises(ValueError, match=r"of 5 samples of 'pen' the state has the features of 0 only"):
            edge.delta(min_count=2)


CHANGES: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "latest": lambda arrays: arrays.update(latest=arrays["latest"] * 0),
    "heads": lambda arrays: arrays.update({"before.7.means": arrays["before.0.means"]}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_ledger_that_contradicts_itself_is_refused(change: str, fleet: Fleet) -> None:
    ledger = fleet.merge([lesson(fleet, "a", fleet.bundle, "key")]).ledger()
    arrays = ledger.arrays()
    again = Ledger.read(arrays)
    assert (again.latest, len(again.before), again.head_of(0) is not None) == (ledger.latest, 1, True)
    assert again.head_of(1) is again.head_of(-1) is None
    CHANGES[change](arrays)
    with pytest.raises(ValueError, match="ledger"):
        Ledger.read(arrays)


def test_a_delta_that_holds_nothing_new_makes_another_bundle_all_the_same(fleet: Fleet) -> None:
    with fleet.open("x") as edge:
        fleet.teach(edge, "key", note=False)
        edge.forget("key")
    delta = fleet.hand_in("x")
    assert Delta.peek(delta).forgotten == ("key",)
    early = lesson(fleet, "a", fleet.bundle, "key", note=False)
    second = fleet.merge([delta], "second")
    with EdgeLearner.open(second.path, state=fleet.folder / "n.db", threads=1) as edge:
        fleet.teach(edge, "key")
        edge.delta().save(fleet.folder / "n.delta")
    third = fleet.merge([early, fleet.folder / "n.delta"], "third", second.path)
    assert third.head().counts.tolist() == [4, 4, 3]


def test_copies_of_one_state_are_told_also_where_one_lies_within_the_other(fleet: Fleet) -> None:
    with fleet.open("a") as edge:
        fleet.teach(edge, "mug")
    shutil.copy(fleet.folder / "a.db", fleet.folder / "b.db")
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
    short = fleet.hand_in("a")
    with fleet.open("b") as edge:
        for _ in range(3):
            fleet.teach(edge, "fork")
    long = fleet.hand_in("b")
    assert [mark.version for mark in Delta.peek(long).passed] == [1, 2, 3]
    for order in ([short, long], [long, short]):
        with pytest.raises(DeltaError, match="has two pasts up to version 2: two devices go on from copies"):
            fleet.merge(order, "no")
    fleet.merge([long, fleet.hand_in("b")], "yes")


def test_what_marks_a_version_says_nothing_of_its_images(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "now", lambda: 1_700_000_000_123)
    fleet.open("a").close()
    shutil.copy(fleet.folder / "a.db", fleet.folder / "b.db")
    found = []
    for device, label in (("a", "mug"), ("b", "pen")):
        with fleet.open(device) as edge:
            fleet.teach(edge, label)
            fleet.teach(edge, label)
            delta = edge.delta()
        found.append((delta.device, delta.span, delta.passed))
    assert found[0] == found[1]


def test_of_many_versions_some_are_marked() -> None:
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    history = [Version(n, start + timedelta(milliseconds=n), "learn", {}) for n in range(5000)]
    marks = passed("00" * 8, history, 3, 4000)
    assert len(marks) <= MOST_PASSED
    assert {mark.version for mark in marks} == set(range(16, 4000, 16))
    assert contradict(marks, passed("00" * 8, history, 0, 100)) is None
    assert contradict(marks, passed("11" * 8, history, 0, 100)) == 16
    assert stamp("00" * 8, history[0]) == (0, "")
