"""A class that is removed exactly leaves the head that never saw it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlearn_runtime import (
    LDA,
    Aggregate,
    BalancedRidge,
    EvidenceLDA,
    FeCAM,
    Head,
    HeldOutRidge,
    Linear,
    Prototypes,
    Ridge,
    StreamingLDA,
    WhitenedCosine,
)
from everlearn_runtime.heads import SharedAggregate, from_state

Array = NDArray[np.float64]
WIDTH = 6
RTOL = 1e-9
seeds = st.integers(0, 2**32 - 1)

HEADS: dict[str, Callable[[bool], Head]] = {
    "lda": lambda removable: LDA(0.1, removable=removable),
    "whitened cosine": lambda removable: WhitenedCosine(removable=removable),
    "lda by number": lambda removable: LDA("auto", removable, 0.7),
    "evidence lda": lambda removable: EvidenceLDA(0.1, tasks=2, removable=removable),
    "whitened cosine random": lambda removable: WhitenedCosine(projection=9, removable=removable),
    "ridge": lambda removable: Ridge(0.03, removable=removable),
    "ridge balanced": lambda removable: BalancedRidge(removable=removable),
    "ridge gcv": lambda removable: Ridge(removable=removable),
    "ridge projected": lambda removable: Ridge(0.03, projection=20, seed=3, removable=removable),
    "aggregate": lambda removable: Aggregate(
        [2, 4], [LDA(0.1, removable=removable), Ridge(0.03, projection=9, removable=removable)]
    ),
    "nested": lambda removable: Aggregate(
        [2, 4],
        [
            Prototypes(),
            Aggregate([1, 3], [FeCAM(), EvidenceLDA(0.1, tasks=2, removable=removable)]),
        ],
    ),
}
# Of these, what a class takes more in a state, in numbers of eight bytes.
MORE = {
    "lda": [6],
    "whitened cosine": [6],
    "whitened cosine random": [15],
    "evidence lda": [4],
    "ridge": [6],
    "ridge projected": [20],
    "aggregate": [2, 9],
}

Step = tuple[str, Any]


def rows(random: np.random.Generator, labels: list[str]) -> Array:
    """Rows about a place of each class's own; those of "gone" are large beside the others."""
    places = np.stack([np.random.default_rng(list(label.encode())).normal(size=WIDTH) for label in labels])
    sizes = np.array([[100.0 if label == "gone" else 1.0] for label in labels])
    made = sizes * (2 * places + random.normal(size=(len(labels), WIDTH)))
    made[:, -2:] = np.abs(made[:, -2:])
    return np.asarray(made)


names = st.sampled_from(["a", "b", "c", "gone"])
batches = st.lists(names, min_size=1, max_size=12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("update"), batches),
        st.tuples(st.just("merge"), batches),
        st.tuples(st.just("carry"), st.integers(2, 20)),
        st.tuples(st.just("look"), st.none()),
        st.tuples(st.just("settle"), st.none()),
        st.tuples(st.just("reload"), st.none()),
        st.tuples(st.just("remove"), st.sampled_from(["a", "b"])),
    ),
    max_size=8,
)


def without(head: Head, features: Array, labels: list[str], skip: str | None) -> None:
    kept = [index for index, label in enumerate(labels) if label != skip]
    if kept:
        head.update(features[kept], [labels[index] for index in kept])


def go(make: Callable[[], Head], plan: list[Step], seed: int, skip: str | None = None) -> Head:
    """A head after these steps, of which the samples of one class may be left out."""
    random, head = np.random.default_rng(seed), make()
    for kind, what in plan:
        if kind == "update":
            without(head, rows(random, what), what, skip)
        elif kind == "merge":
            other = make()
            without(other, rows(random, what), what, skip)
            head.merge(other)
        elif kind == "carry":
            before = random.normal(size=(what, WIDTH))
            after = before + 0.3 * random.normal(size=before.shape) + 1
            head.carry(before, after)
        elif kind == "look" and head.classes:
            head.scores(np.ones((2, WIDTH)))
        elif kind == "settle":
            head.settle()
        elif kind == "reload":
            head = from_state(head.state())
        elif kind == "remove" and what in head.classes:
            head.remove(what)
    return head


def kept(head: Head) -> dict[str, Array]:
    """All that the head knows, a row for each class where there are some, classes by name."""
    order = [head.classes.index(name) for name in sorted(head.classes)]
    return {
        name: array[order] if name.rpartition(".")[2] in PER_CLASS and len(array) == len(order) else array
        for name, array in head.state().arrays.items()
    }


PER_CLASS = ("counts", "means", "sums", "own_scatters", "own_grams", "learned_means", "scatters")


def assert_same(found: Head, wanted: Head) -> None:
    """Equal to 1e-9 of what the arrays hold."""
    assert sorted(found.classes) == sorted(wanted.classes)
    if not wanted.classes:
        return
    right = kept(wanted)
    for name, array in kept(found).items():
        scale = np.abs(right[name]).max(initial=0)
        np.testing.assert_allclose(array, right[name], rtol=RTOL, atol=RTOL * scale, err_msg=name)
    probes = np.random.default_rng(0).normal(size=(9, WIDTH))
    columns = [wanted.classes.index(name) for name in found.classes]
    scores = wanted.scores(probes)[:, columns]
    np.testing.assert_allclose(found.scores(probes), scores, rtol=1e-6, atol=1e-6 * np.abs(scores).max())


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=60, deadline=None)
@given(plan=steps, seed=seeds)
def test_a_removed_class_was_never_there(name: str, plan: list[Step], seed: int) -> None:
    """After any updates, merges and moves, other classes that went, looks and saving between them."""

    make = partial(HEADS[name], True)
    plan = [("update", ["a", "gone"]), *plan]
    found, wanted = go(make, plan, seed), go(make, plan, seed, skip="gone")
    assert found.removes_exactly("gone")
    found.remove("gone")
    assert_same(found, wanted)
    assert_same(from_state(found.state()), wanted)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=30, deadline=None)
@given(plan=steps, seed=seeds)
def test_to_keep_classes_apart_changes_no_score(name: str, plan: list[Step], seed: int) -> None:
    """As long as none goes."""
    plan = [("update", ["a", "b", "c"]), *(step for step in plan if step[0] != "remove")]
    apart, pooled = (go(partial(HEADS[name], removable), plan, seed) for removable in (True, False))
    assert apart.classes == pooled.classes
    probes = np.random.default_rng(0).normal(size=(9, WIDTH))
    scores = pooled.scores(probes)
    np.testing.assert_allclose(apart.scores(probes), scores, rtol=1e-6, atol=1e-6 * np.abs(scores).max())


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=30, deadline=None)
@given(plan=steps, more=steps, seed=seeds)
def test_a_removable_head_comes_back_to_the_bit(
    name: str, plan: list[Step], more: list[Step], seed: int
) -> None:
    head = go(partial(HEADS[name], True), [("update", ["a", "b"]), *plan], seed)
    head.settle()
    again = from_state(head.state())
    for one in (head, again):
        random = np.random.default_rng(seed)
        for kind, what in more:
            if kind == "update":
                one.update(rows(random, what), what)
            elif kind == "remove" and what in one.classes:
                one.remove(what)
    assert head.classes == again.classes
    for key, array in head.state().arrays.items():
        np.testing.assert_array_equal(array, again.state().arrays[key], err_msg=key)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=30, deadline=None)
@given(plan=steps, seed=seeds)
def test_classes_known_before_go_as_before_and_new_ones_exactly(
    name: str, plan: list[Step], seed: int
) -> None:
    first = [("update", ["a", "b", "b", "old"]), ("remove", "b")]
    plan = [*plan, ("update", ["gone", "old", "gone", "a"])]
    pooled = go(partial(HEADS[name], False), first, seed)
    before = pooled.state()
    opened = pooled.to_removable()
    assert opened.options == HEADS[name](True).options
    assert not opened.removes_exactly("old")
    for key, array in pooled.state().arrays.items():  # it is a copy, and the head stays as it was
        np.testing.assert_array_equal(array, before.arrays[key])

    plan = [step for step in plan if step[0] in ("update", "carry", "look", "settle", "reload")]
    heads = [
        go(partial(from_state, state), plan, seed, skip)
        for state, skip in ((opened.state(), None), (opened.state(), "gone"), (before, "gone"))
    ]
    assert heads[0].removes_exactly("gone")
    heads[0].remove("gone")
    assert_same(heads[0], heads[1])
    probes = np.random.default_rng(0).normal(size=(9, WIDTH))
    for label in (None, "old"):  # and where it is not exact, it is the pooled form to rounding
        if label:
            for head in heads:
                head.remove(label)
        scores = heads[2].scores(probes)
        columns = [heads[2].classes.index(one) for one in heads[0].classes]
        np.testing.assert_allclose(
            heads[0].scores(probes), scores[:, columns], rtol=1e-6, atol=1e-6 * np.abs(scores).max()
        )


def test_what_was_not_kept_apart_in_one_of_two_heads_is_not_in_both() -> None:
    known = LDA()
    known.update(np.eye(6), list("aabbcc"))
    one, other = known.to_removable(), LDA(removable=True)
    other.update(np.eye(6)[::-1], list("aaddee"))
    one.update(np.eye(6), list("bbffff"))
    for first, second in ((one, other), (other, one)):
        merged = from_state(first.state())
        merged.merge(second)
        exact = {label for label in merged.classes if merged.removes_exactly(label)}
        assert exact == {"d", "e", "f"}
        assert merged.state().arrays["removable"].sum() == 3


@pytest.mark.parametrize("name", MORE)
def test_what_it_costs_is_what_the_documentation_says(name: str) -> None:
    head, plain = (HEADS[name](removable) for removable in (True, False))
    x = rows(np.random.default_rng(0), list("abcde"))
    for one in (head, plain):
        one.update(x, list("abcde"))
        assert one.nbytes == sum(array.nbytes for array in one.state().arrays.values())
    more = sum(4 * width * (width + 1) + 8 for width in MORE[name])
    assert head.nbytes - plain.nbytes == 5 * more
    head.remove("b")
    plain.remove("b")
    assert head.nbytes - plain.nbytes == 4 * more
    assert plain.to_removable().nbytes == plain.nbytes + 4 * 8 * len(MORE[name])


def test_nothing_but_rounding_is_no_scatter() -> None:
    """What is left has none, and is told apart by the nearest mean, as if the class had never been."""
    head, never = LDA(removable=True), LDA(removable=True)
    for one in (head, never):
        one.update(np.eye(3) / 3, ["a", "b", "c"])
    head.update(1e6 * np.random.default_rng(0).normal(size=(50, 3)), ["gone"] * 50)
    head.remove("gone")
    probes = np.random.default_rng(1).normal(size=(9, 3))
    np.testing.assert_array_equal(head.scores(probes), never.scores(probes))


@pytest.mark.parametrize("make", [Prototypes, FeCAM])
def test_what_shares_nothing_is_removable_as_it_is(make: Callable[[], Head]) -> None:
    head = make()
    head.update(np.eye(3), ["a", "b", "a"])
    again = head.to_removable()
    assert again is not head
    assert head.removes_exactly("a")
    again.remove("a")
    assert head.classes == ("a", "b")


@pytest.mark.parametrize(
    "head",
    [
        StreamingLDA(),
        HeldOutRidge(),
        Linear(),
        Aggregate([2, 1], [LDA(), HeldOutRidge()]),
        SharedAggregate([1, 1], [Ridge(projection=4)] * 2),
    ],
    ids=lambda head: head.kind,
)
def test_heads_that_cannot_say_so(head: Head) -> None:
    with pytest.raises(ValueError, match=r"cannot remove a class exactly; .* removable=True"):
        head.to_removable()


def test_a_class_is_pooled_by_default_and_no_option_says_so() -> None:
    for head in (LDA(), Ridge(), EvidenceLDA(), Aggregate([2, 1], [LDA(removable=True), LDA()])):
        head.update(np.eye(3), ["a", "b", "a"])
        assert not head.removes_exactly("a")
        with pytest.raises(ValueError, match="'z'"):
            head.removes_exactly("z")
    assert "removable" not in LDA().options | Ridge().options | EvidenceLDA().options


def test_settings_and_states_that_make_no_sense_are_refused() -> None:
    for make in (LDA, Ridge, EvidenceLDA):
        with pytest.raises(ValueError, match="removable is 1; give True or False"):
            make(removable=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without removable=True"):
        SharedAggregate([1, 1], [Ridge(projection=4, removable=True)] * 2)
    head = LDA(removable=True)
    head.update(np.eye(3), ["a", "b", "a"])
    for flags in ([1, 0], [2, 0], [0, 0]):
        state = head.state()
        state.arrays["removable"][:] = flags
        with pytest.raises(
            ValueError, match=r"own_scatters holds the sums of 2 classes, and removable says \d"
        ):
            from_state(state)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="raise", under="ignore"):
        yield
