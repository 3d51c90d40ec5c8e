"""What a head has learned since it was an earlier one, taken out of all its sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlearn_runtime.heads import (
    LDA,
    BalancedRidge,
    EvidenceLDA,
    Head,
    HeldOutRidge,
    Prototypes,
    Ridge,
    StreamingLDA,
    WhitenedCosine,
    from_state,
)

WIDTH = 5
HEADS: dict[str, Callable[..., Head]] = {
    "lda": LDA,
    "lda_auto": lambda **options: LDA("auto", **options),
    "whitened_cosine": WhitenedCosine,
    "balanced_ridge": BalancedRidge,
    "ridge": Ridge,
}
OPTIONS: list[dict[str, int | bool]] = [
    {},
    {"removable": True},
    {"projection": 12, "seed": 3},
    {"projection": 12, "removable": True},
]


def same(found: Head, wanted: Head) -> None:
    """The same sums to nine digits, whatever the order of the classes."""
    order = [found.classes.index(name) for name in wanted.classes]
    assert len(order) == len(found.classes)
    assert found.counts[order].tolist() == wanted.counts.tolist()
    mine, theirs = found.state().arrays, wanted.state().arrays
    assert set(mine) == set(theirs)
    for name in ("means", "sums", "projected_means", "removable"):
        if name in theirs:
            np.testing.assert_allclose(mine[name][order], theirs[name], rtol=1e-9, atol=1e-9)
    for name in ("gram", "scatter", "seen", "background"):
        if name in theirs:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-9, atol=1e-9)
    for name in ("own_grams", "own_scatters"):
        if name in theirs and mine["removable"].all():
            np.testing.assert_allclose(mine[name][order], theirs[name], rtol=1e-9, atol=1e-9)
    rows = np.random.default_rng(0).normal(size=(20, WIDTH))
    right = wanted.scores(rows)
    np.testing.assert_allclose(
        found.scores(rows)[:, order], right, rtol=1e-6, atol=1e-8 * np.abs(right).max()
    )


def samples(draw: np.random.Generator, labels: str) -> tuple[NDArray[np.float64], list[str]]:
    rows = draw.normal(size=(len(labels), WIDTH)) + np.array([[ord(label) - 97.0] for label in labels])
    return rows, [*labels]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_merged_into_the_earlier_head_it_gives_the_later_one(
    name: str, options: dict[str, int | bool]
) -> None:
    draw = np.random.default_rng(3)
    base = HEADS[name](**options)
    base.update(*samples(draw, "abcde" * 6))
    later = from_state(base.state())
    later.remove("b")
    later.update(*samples(draw, "afaafffb"))
    for label in "aabf":  # one by one
        later.update(*samples(draw, label))
    before = base.state().arrays
    since = later.since(base)
    assert dict(zip(since.classes, since.counts.tolist(), strict=True)) == {"a": 5, "f": 5, "b": 2}
    again = from_state(base.state())
    again.remove("b")
    again.merge(from_state(since.state()))
    same(again, later)
    for key, array in base.state().arrays.items():
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_it_is_a_head_that_has_seen_these_samples_alone(name: str, options: dict[str, int | bool]) -> None:
    draw = np.random.default_rng(4)
    head = HEADS[name](**options)
    head.update(*samples(draw, "abc" * 5))
    base = from_state(head.state())
    alone = HEADS[name](**options)
    for batch in ("abdd", "d", "eea"):
        more = samples(draw, batch)
        head.update(*more)
        alone.update(*more)
    same(head.since(base), alone)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    name=st.sampled_from(sorted(HEADS)),
    options=st.sampled_from(OPTIONS),
    earlier=st.text("abc", min_size=2, max_size=12),
    later=st.text("abcd", min_size=1, max_size=12),
    gone=st.sampled_from(["", "a", "ab"]),
)
def test_whatever_was_learned_and_forgotten(
    seed: int, name: str, options: dict[str, int | bool], earlier: str, later: str, gone: str
) -> None:
    draw = np.random.default_rng(seed)
    base = HEADS[name](**options)
    base.update(*samples(draw, earlier))
    head = from_state(base.state())
    gone = "".join(label for label in gone if label in head.classes)
    for label in gone:
        head.remove(label)
    kept = head.classes
    head.update(*samples(draw, later))
    assert head.kept(base, gone) == kept
    again = from_state(base.state())
    for label in base.classes:
        if label not in kept:
            again.remove(label)
    again.merge(head.since(base, gone))
    same(again, head)


def test_of_a_head_made_removable_later() -> None:
    draw = np.random.default_rng(5)
    first = LDA()
    first.update(*samples(draw, "abab"))
    base = first.to_removable()
    base.update(*samples(draw, "cc"))
    later = from_state(base.state())
    later.update(*samples(draw, "abccd"))
    since = later.since(base)
    assert [since.removes_exactly(name) for name in since.classes] == [False, False, True, True]
    again = from_state(base.state())
    again.merge(since)
    same(again, later)
    again.remove("c")
    later.remove("c")
    same(again, later)


@pytest.mark.parametrize("head", [StreamingLDA(), EvidenceLDA(), HeldOutRidge()], ids=lambda h: h.kind)
def test_heads_that_do_not_split_say_so(head: Head) -> None:
    assert not head.splits
    with pytest.raises(ValueError, match="more than sums of features"):
        head.since(head)
    assert Prototypes().splits
