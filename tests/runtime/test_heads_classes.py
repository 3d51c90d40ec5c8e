"""The order of classes, and the rows that follow it."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn_runtime import (
    LDA,
    FeCAM,
    Head,
    HeldOutRidge,
    Linear,
    Prototypes,
    Ridge,
    StreamingLDA,
    from_state,
)
from everlearn_runtime.heads import Classes
from everlearn_runtime.heads.growing import GrowingRows

from .test_heads import HEADS, learned, make_samples, snapshot

names = st.lists(st.sampled_from("abcdefgh"), max_size=6)
acts = st.lists(st.one_of(names, st.sampled_from("abcdefgh")), max_size=20)


@given(acts=acts)
def test_classes_are_a_list_without_doubles(acts: list[list[str] | str]) -> None:
    classes, wanted = Classes(), list[str]()
    for act in acts:
        if isinstance(act, list):
            wanted += [name for name in dict.fromkeys(act) if name not in wanted]
            assert classes.places(act) == [wanted.index(name) for name in act]
        elif act in wanted:
            assert classes.remove(act) == wanted.index(act)
            wanted.remove(act)
        assert classes.names == tuple(classes) == tuple(wanted)
        assert len(classes) == len(wanted)
        assert [classes[place] for place in range(len(wanted))] == wanted
        assert [classes.place(name) for name in wanted] == list(range(len(wanted)))
        assert all((name in classes) == (name in wanted) for name in "abcdefgh")
        assert classes == Classes(wanted) == classes.copy() == copy.deepcopy(classes)


def test_classes_are_compared_by_their_order() -> None:
    assert Classes("ab") != Classes("ba")
    assert Classes("ab") != ("a", "b")
    assert repr(Classes("ab")) == "Classes(['a', 'b'])"


def test_a_copy_of_classes_goes_its_own_way() -> None:
    classes = Classes("ab")
    other = classes.copy()
    other.places(["c"])
    other.remove("a")
    assert (classes.names, other.names) == (("a", "b"), ("b", "c"))


@pytest.mark.parametrize("wrong", ["", " ", 3, None, "\ud800"])
def test_a_name_that_is_none_is_refused_and_none_is_added(wrong: Any) -> None:
    classes = Classes("a")
    with pytest.raises(ValueError, match=r"label .* is not"):
        classes.places(["b", wrong])
    assert classes.names == ("a",)


def test_an_unknown_class_has_no_place() -> None:
    for ask in (Classes("ab").place, Classes("ab").remove):
        with pytest.raises(ValueError, match="no class 'c'; known classes: 'a', 'b'"):
            ask("c")


@settings(deadline=None)
@given(acts=st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.booleans()), max_size=40))
def test_growing_rows_are_an_array(acts: list[tuple[bool, int, bool]]) -> None:
    rows, wanted = GrowingRows(np.arange(6.0).reshape(3, 2)), np.arange(6.0).reshape(3, 2)
    for number, (grows, at, looks) in enumerate(acts):
        if grows:
            rows.grow(at % 4)
            wanted = np.concatenate([wanted, np.zeros((at % 4, 2))])
        elif len(wanted):
            rows.remove(at % len(wanted))
            wanted = np.delete(wanted, at % len(wanted), axis=0)
        assert len(rows) == len(wanted)
        assert rows.nbytes == wanted.nbytes
        if looks:
            np.testing.assert_array_equal(rows.values, wanted)
            rows.values[:] += number
            wanted += number
    np.testing.assert_array_equal(rows.values, wanted)


GROWING: dict[str, Callable[[], Head]] = {**HEADS, "linear": Linear}


def moves(head: Head) -> list[int]:
    """Where the rows of a head's classes lie in memory."""
    return [rows._array.__array_interface__["data"][0] for rows in head._per_class.values()]


@pytest.mark.parametrize("name", GROWING)
def test_rows_seldom_move_when_classes_come_and_go_one_at_a_time(name: str) -> None:
    """A thousand classes one by one: each array is laid out anew some 20 times, not a thousand."""
    head = GROWING[name]()
    x = np.random.default_rng(0).normal(size=(1000, 5))
    moved = np.zeros(len(head._per_class))
    before = moves(head)
    for number, row in enumerate(x):
        head.update(row[None], [str(number)])
        after = moves(head)
        moved += [one != other for one, other in zip(before, after, strict=True)]
        before = after
    assert 0 < moved.max() <= 30
    kept = head.nbytes
    for number in range(0, 1000, 2):
        head.remove(str(number))
    assert moves(head) == before  # taken out when somebody looks
    assert head.counts.tolist() == [1] * 500
    np.testing.assert_array_equal(head.prototypes, x[1::2])
    assert head.nbytes < kept
    assert head.nbytes == sum(array.nbytes for array in head.state().arrays.values())


@pytest.mark.parametrize("name", GROWING)
def test_classes_one_by_one_are_classes_at_once(name: str) -> None:
    """Each with two samples, some forgotten on the way, and the head asked now and then."""
    one_by_one, at_once = GROWING[name](), GROWING[name]()
    x = np.random.default_rng(0).normal(size=(120, 5))
    labels = [str(number // 2) for number in range(120)]
    at_once.update(x, labels)
    for number in range(0, 60, 7):
        at_once.remove(str(number))
    for number, (row, label) in enumerate(zip(x, labels, strict=True)):
        one_by_one.update(row[None], [label])
        if number % 2 and int(label) % 7 == 0:
            one_by_one.remove(label)
        if number % 5 == 0 and one_by_one.classes:
            one_by_one.scores(x[:1])
    assert one_by_one.classes == at_once.classes
    np.testing.assert_array_equal(one_by_one.counts, at_once.counts)
    np.testing.assert_allclose(one_by_one.prototypes, at_once.prototypes, rtol=1e-12)
    if at_once.exact:
        wanted = at_once.scores(x)
        np.testing.assert_allclose(one_by_one.scores(x), wanted, rtol=1e-8, atol=1e-8 * np.abs(wanted).max())


COPIES: dict[str, Callable[[Head], Head]] = {
    "pickled": lambda head: pickle.loads(pickle.dumps(head)),
    "copied": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", GROWING)
def test_a_head_can_be_pickled_and_copied(name: str, way: str) -> None:
    """By its user, for other processes of the user's; everlearn itself unpickles nothing."""
    head = learned(GROWING[name], make_samples(0, 40))
    head.update(make_samples(1, 1)[0], ["new"])  # waits
    head.scores(make_samples(2, 3)[0])
    head.update(make_samples(3, 1)[0], ["newer"])
    again = COPIES[way](head)
    assert snapshot(again) == snapshot(head)
    for each in (head, again):
        each.update(*make_samples(4, 20))
        each.update(make_samples(5, 1)[0], ["newest"])
    assert snapshot(again) == snapshot(head)
    again.remove("newest")
    assert "newest" in head.classes


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", GROWING)
def test_an_interrupt_on_entering_what_learns_leaves_a_head_as_it_was(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = learned(GROWING[name], make_samples(0, 40))
    before = snapshot(head)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    for hook in ("_learn_shared", "_learn_one"):
        monkeypatch.setattr(type(head), hook, interrupted)
    with pytest.raises(KeyboardInterrupt):
        head.update(make_samples(1, size)[0], ["a", "new", "newer"][-size:])
    monkeypatch.undo()
    assert snapshot(head) == before
    head.update(*make_samples(1, 5))
    assert "new" not in head.classes


@pytest.mark.parametrize("name", [name for name, new in GROWING.items() if new().exact])
def test_an_interrupted_merge_leaves_a_head_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, other = learned(GROWING[name], make_samples(0, 40)), learned(GROWING[name], make_samples(1, 40, 9))
    before, theirs = snapshot(head), snapshot(other)

    def interrupted(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(type(head), "_keep", interrupted)
    with pytest.raises(MemoryError):
        head.merge(other)
    monkeypatch.undo()
    assert snapshot(head) == before
    assert snapshot(other) == theirs


def peak(head: Head, x: np.ndarray, labels: list[str]) -> int:
    """Bytes at most in use during an update."""
    tracemalloc.start()
    try:
        head.update(x, labels)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("width", "projection"), [(64, 400), (400, None)])
def test_a_hold_out_takes_no_more_memory_than_the_ridge_itself(width: int, projection: int | None) -> None:
    x = np.random.default_rng(0).normal(size=(8000, width))
    labels = [str(number % 10) for number in range(8000)]
    held_out, plain = HeldOutRidge(projection=projection), Ridge(projection=projection)
    assert peak(held_out, x, labels) <= 1.2 * peak(plain, x, labels)


@pytest.mark.parametrize("make", [FeCAM, StreamingLDA, HeldOutRidge, Prototypes, LDA])
def test_many_classes_in_one_batch_take_no_array_of_classes_times_rows(make: type[Head]) -> None:
    n = 1500
    x, labels = np.random.default_rng(0).normal(size=(n, 4)), [str(number) for number in range(n)]
    assert peak(make(), x, labels) < 8 * n * n / 2


def test_a_linear_head_makes_no_array_of_classes_times_classes() -> None:
    n, head = 1500, Linear()
    x = np.random.default_rng(0).normal(size=(n, 4))
    for number in range(n):
        head.update(x[number : number + 1], [str(number)])
    assert peak(head, x[:1], ["0"]) < 8 * n * 30


def test_fecam_as_it_was_saved_is_the_released_form() -> None:
    """And is written as it was, for runtimes that know no other."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 4)), [*"abc"] * 10
    head = FeCAM(2.0, pooling=0, correction=0)
    head.update(x, y)
    state = head.state()
    assert state.options == {"alpha1": 2.0, "alpha2": 0.0}
    again = from_state(state)
    np.testing.assert_array_equal(again.scores(x), head.scores(x))
    assert FeCAM.from_state(FeCAM().state()).options == FeCAM().options != {"alpha1": 1.0, "alpha2": 0.0}


def test_fecam_finds_classes_of_three_beside_one_of_thousands() -> None:
    random = np.random.default_rng(0)
    centres = 1.2 * random.normal(size=(8, 24))
    labels, asked = np.repeat(np.arange(8), [2000, *[3] * 7]), np.repeat(np.arange(8), 100)
    x = centres[labels] + random.normal(size=(len(labels), 24))
    probes = centres[asked] + random.normal(size=(800, 24))
    right = []
    for head in (FeCAM(pooling=0, correction=0), FeCAM()):
        head.update(x, [str(label) for label in labels])
        right.append(float(np.mean(np.array(head.predict(probes)) == asked.astype(str))))
    assert right[1] > right[0] + 0.05
    assert right[1] > 0.9
