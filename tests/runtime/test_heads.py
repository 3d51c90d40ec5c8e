"""What every head promises, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    HeadState,
    HeldOutRidge,
    Prototypes,
    Ridge,
    StreamingLDA,
    WhitenedCosine,
    from_state,
)
from everlearn_runtime.bundle import dump_arrays, load_arrays
from everlearn_runtime.heads.gram import FOLD_ROWS, GramSum

WIDTH = 5
HEADS: dict[str, Callable[[], Head]] = {
    "prototypes": Prototypes,
    "prototypes in sections": lambda: Prototypes(sections=[2, 3], weights=[0.3, 0.1]),
    "lda": LDA,
    "lda removable": lambda: LDA(removable=True),
    "ridge removable": lambda: Ridge(1e-3, projection=16, removable=True),
    "lda with evidence": lambda: EvidenceLDA(tasks=1),
    "lda by number": lambda: LDA("auto", correction=0.7),
    "whitened cosine": WhitenedCosine,
    "whitened cosine removable": lambda: WhitenedCosine(0.1, 0.0, removable=True),
    "lda 1e-4": lambda: LDA(shrinkage=1e-4),
    "ridge balanced": BalancedRidge,
    "ridge with intercept": lambda: BalancedRidge(0.01, balanced=False),
    "ridge gcv": Ridge,
    "ridge 0.1": lambda: Ridge(regularisation=0.1),
    "ridge projected": lambda: Ridge(projection=16, seed=3),
    "ridge projected 1e-3": lambda: Ridge(regularisation=1e-3, projection=16),
    "lda random": lambda: LDA(0.1, projection=12, seed=3),
    "whitened cosine random": lambda: WhitenedCosine(projection=12),
    "whitened cosine random removable": lambda: WhitenedCosine(0.1, projection=12, removable=True),
    "ridge balanced random": lambda: BalancedRidge(projection=12, seed=1),
    "streaming lda": StreamingLDA,
    "streaming lda base": lambda: StreamingLDA(covariance="base"),
    "streaming lda fixed": lambda: StreamingLDA(covariance="fixed"),
    "ridge held out": HeldOutRidge,
    "ridge held out remembering": lambda: HeldOutRidge(remember=True, projection=64, grid=(1, 8)),
    "fecam": FeCAM,
    "fecam released": lambda: FeCAM(pooling=0, correction=0),
    "aggregate": lambda: Aggregate([3, 2], [LDA(), Ridge(1e-2, projection=16)]),
    "aggregate of lda": lambda: Aggregate([3, 2], [LDA(), LDA(0.1)], gamma=5.0, sharpness=[1.0, 0.9]),
}
EXACT = {name: new for name, new in HEADS.items() if new().exact}
Samples = tuple[NDArray[np.float64], list[str]]


@pytest.fixture(params=HEADS, ids=str)
def new(request: pytest.FixtureRequest) -> Callable[[], Head]:
    return HEADS[request.param]


def make_samples(seed: int, n: int, classes: int = 4) -> Samples:
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=n)
    centres = np.random.default_rng(99).normal(size=(26, WIDTH))
    features = 3 + centres[labels] + 0.5 * random.normal(size=(n, WIDTH))
    return features, ["abcdefghijklmnopqrstuvwxyz"[label] for label in labels]


def learned(new: Callable[[], Head], *batches: Samples) -> Head:
    head = new()
    for features, labels in batches:
        head.update(features, labels)
    return head


def assert_same(found: Head, wanted: Head, rtol: float = 1e-9) -> None:
    """Equal statistics and scores, class by class."""
    assert set(found.classes) == set(wanted.classes)
    order = [found.classes.index(name) for name in wanted.classes]
    np.testing.assert_array_equal(found.counts[order], wanted.counts)
    np.testing.assert_allclose(found.prototypes[order], wanted.prototypes, rtol=rtol)
    probe = make_samples(1234, 20)[0]
    expected = wanted.scores(probe)
    np.testing.assert_allclose(
        found.scores(probe)[:, order], expected, rtol=rtol, atol=rtol * np.abs(expected).max()
    )


def snapshot(head: Head) -> tuple[Any, ...]:
    state = head.state()
    return (
        state.classes,
        json.dumps(state.options),
        {name: array.tobytes() for name, array in state.arrays.items()},
    )


sizes = st.lists(st.integers(1, 90), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=sizes, data=st.data())
@pytest.mark.parametrize("name", EXACT)
def test_the_cut_into_batches_and_the_order_do_not_matter(
    name: str, seed: int, sizes: list[int], data: st.DataObject
) -> None:
    features, labels = make_samples(seed, sum(sizes))
    order = np.random.default_rng(data.draw(st.integers(0, 1000))).permutation(len(labels))
    shuffled = HEADS[name]()
    start = 0
    for size in sizes:
        part = order[start : start + size]
        shuffled.update(features[part], [labels[row] for row in part])
        start += size
    assert_same(shuffled, learned(HEADS[name], (features, labels)))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.tuples(st.integers(1, 90), st.integers(1, 90)))
@pytest.mark.parametrize("name", EXACT)
def test_merging_is_having_seen_both(name: str, seed: int, sizes: tuple[int, int]) -> None:
    first, second = make_samples(seed, sizes[0]), make_samples(seed + 1, sizes[1])
    merged, other = learned(HEADS[name], first), learned(HEADS[name], second)
    before = snapshot(other)
    merged.merge(other)
    assert_same(merged, learned(HEADS[name], first, second))
    assert snapshot(other) == before


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 150))
@pytest.mark.parametrize("name", HEADS)
def test_a_state_survives_json_and_safetensors_to_the_bit(name: str, seed: int, n: int) -> None:
    head = learned(HEADS[name], make_samples(seed, n))
    state = head.state()
    text = json.loads(json.dumps({"kind": state.kind, "classes": state.classes, "options": state.options}))
    arrays = load_arrays(dump_arrays(state.arrays))
    again = from_state(HeadState(text["kind"], tuple(text["classes"]), text["options"], arrays))
    assert type(again) is type(head)
    assert snapshot(again) == snapshot(head)
    assert again.nbytes == head.nbytes == sum(array.nbytes for array in state.arrays.values())
    more = make_samples(seed + 1, 10)
    head.update(*more)
    again.update(*more)
    assert_same(again, head)


def test_looking_changes_nothing(new: Callable[[], Head]) -> None:
    quiet, watched = new(), new()
    for seed in range(30):
        batch = make_samples(seed, 3)
        quiet.update(*batch)
        watched.update(*batch)
        watched.scores(batch[0])
        watched.state()
    assert snapshot(watched) == snapshot(quiet)


@pytest.mark.parametrize("classes", [1, 4, 26])
def test_looking_between_single_samples_changes_no_bit(new: Callable[[], Head], classes: int) -> None:
    features, labels = make_samples(0, 300, classes)
    labels[100:140] = [labels[0]] * 40
    quiet, watched = new(), new()
    for number, (row, label) in enumerate(zip(features, labels, strict=True)):
        for head in (quiet, watched):
            head.update(row[None], [label])
        if number % 7 == 0:
            watched.scores(features[:1])
        if number % 11 == 0:
            assert watched.counts.sum() == number + 1
        if number % 13 == 0:
            watched.state()
    assert snapshot(watched) == snapshot(quiet)


def test_rows_do_not_pile_up() -> None:
    gram = GramSum(WIDTH)
    rows = make_samples(0, 1000)[0]
    for row in rows:
        gram.add(row[None])
        assert sum(map(len, gram._pending)) < FOLD_ROWS
    np.testing.assert_allclose(gram.value(), rows.T @ rows, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    asked=st.lists(st.booleans(), min_size=8, max_size=8),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_the_power_of_a_sum_is_that_of_its_entries(
    seed: int, sizes: list[int], asked: list[bool], scale: float
) -> None:
    """Whoever asked when, whatever waits to be folded in, and after all that changes the sum at once."""
    random, gram, quiet = np.random.default_rng(seed), GramSum(3), GramSum(3)
    total = np.zeros((3, 3))
    for size, ask in zip(sizes, asked, strict=False):
        rows = scale * random.normal(size=(size, 3))
        gram.add(rows)
        quiet.add(rows)
        total += rows.T @ rows
        if ask:
            assert gram.power == pytest.approx((total**2).sum(), rel=1e-10)
    for each in (gram, quiet):
        assert each.power == pytest.approx((total**2).sum(), rel=1e-10)
    other = GramSum(3)
    other.add(scale * random.normal(size=(5, 3)))
    linear = random.normal(size=(3, 4))
    for change in (
        gram.fold,
        lambda: gram.merge(other),
        lambda: gram.scale(0.5),
        lambda: gram.transform(linear, scale**2),
    ):
        change()
        assert gram.power == pytest.approx((gram.value() ** 2).sum(), rel=1e-10)
    again = GramSum.from_packed(gram.packed(), 4)
    assert again.power == pytest.approx(gram.power, rel=1e-12)


def test_a_head_does_not_hold_on_to_the_callers_array(new: Callable[[], Head]) -> None:
    features, labels = make_samples(0, 6)
    head = learned(new, (features.copy(), labels))
    aliased = learned(new, (features, labels))
    features[:] = 0
    assert snapshot(aliased) == snapshot(head)
    aliased.prototypes[:] = 7
    aliased.counts[:] = 7
    assert snapshot(aliased) == snapshot(head)


def test_it_classifies(new: Callable[[], Head]) -> None:
    head = learned(new, make_samples(0, 200))
    features, labels = make_samples(1, 200)
    assert np.mean(np.array(head.predict(features)) == labels) > 0.8


def test_classes_come_in_the_order_of_first_appearance(new: Callable[[], Head]) -> None:
    head = learned(new, (np.eye(WIDTH)[:3], ["pen", "mug", "pen"]), (np.eye(WIDTH)[3:], ["axe", "mug"]))
    assert head.classes == ("pen", "mug", "axe")
    assert head.counts.tolist() == [2, 2, 1]
    assert head.scores(np.eye(WIDTH)).shape == (WIDTH, 3)
    assert head.width == WIDTH


def test_a_removed_class_is_gone_and_can_come_back(new: Callable[[], Head]) -> None:
    head = learned(new, make_samples(0, 60))
    rest = [name for name in head.classes if name != "b"]
    means = {name: mean for name, mean in zip(head.classes, head.prototypes, strict=True) if name != "b"}
    head.remove("b")
    assert list(head.classes) == rest
    assert head.scores(np.ones((2, WIDTH))).shape == (2, 3)
    for name, mean in zip(head.classes, head.prototypes, strict=True):
        np.testing.assert_array_equal(mean, means[name])
    head.update(np.ones((1, WIDTH)), ["b"])
    assert list(head.classes) == [*rest, "b"]
    np.testing.assert_array_equal(head.prototypes[-1], np.ones(WIDTH))


def test_a_settled_head_and_its_copy_go_on_to_the_same_bits(new: Callable[[], Head]) -> None:
    head = learned(new, make_samples(0, 20))
    head.settle()
    copy = from_state(head.state())
    for seed in range(1, 12):  # long enough for rows to be worked in on the way
        for each in (head, copy):
            each.update(*make_samples(seed, 17))
    assert snapshot(copy) == snapshot(head)


def test_carrying_follows_the_features_where_they_go(new: Callable[[], Head]) -> None:
    """Features turn and stretch; the images that show it are of classes that the head never saw."""
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0] * random.uniform(0.5, 2, size=WIDTH)
    if isinstance(new(), Aggregate):  # whose sections come from networks that move apart from each other
        turn = np.zeros((WIDTH, WIDTH))
        for part in (slice(0, 3), slice(3, 5)):
            turn[part, part] = np.linalg.qr(random.normal(size=turn[part, part].shape))[0] * 1.5
    x, y = make_samples(0, 200)
    head, still = learned(new, (x, y)), learned(new, (x, y))
    others = 3 + 2 * random.normal(size=(400, WIDTH))
    head.carry(others, others @ turn)
    right = np.mean(np.array(head.predict(x @ turn)) == y)
    assert right > 0.6  # random features do not turn with what they are made of
    assert right > np.mean(np.array(still.predict(x @ turn)) == y) + 0.2
    assert head.counts.tolist() == still.counts.tolist()


def test_features_that_did_not_move_change_nothing(new: Callable[[], Head]) -> None:
    x, y = make_samples(0, 20)
    head = learned(new, (x, y))
    before = snapshot(head)
    head.carry(x[:7], x[:7])
    head.carry(x[:1], x[:1] + 1)  # one image alone, which no other confirms
    assert snapshot(head) == before
    fresh = new()
    fresh.carry(x, 2 * x)  # nothing learned, nothing to move
    assert snapshot(fresh) == snapshot(new())


def test_images_that_all_moved_alike_move_everything_alike(new: Callable[[], Head]) -> None:
    """They say nothing about any direction, but a shift is seen."""
    x, y = make_samples(0, 20)
    head = learned(new, (x, y))
    start = head.prototypes
    head.carry(np.zeros((3, WIDTH)), np.ones((3, WIDTH)))
    evidence = 1 if isinstance(head, EvidenceLDA) else 0  # it does not move
    np.testing.assert_allclose(head.prototypes[:, : WIDTH - evidence], start[:, : WIDTH - evidence] + 1)
    np.testing.assert_array_equal(head.prototypes[:, WIDTH - evidence :], start[:, WIDTH - evidence :])


@pytest.mark.parametrize("rows", [1, 2, 3, WIDTH, WIDTH + 1, WIDTH + 2, 200])
@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("constant", [0.0, 1e-9, 1.0])
def test_carrying_by_few_or_odd_images_breaks_nothing(
    new: Callable[[], Head], rows: int, offset: float, constant: float
) -> None:
    """Features that hardly vary, far from zero, of fewer images than features."""
    x, y = make_samples(0, 60)
    head = learned(new, (x, y))
    random = np.random.default_rng(rows)
    before = random.normal(size=(rows, WIDTH)) + offset
    before[:, 1] = offset + constant * random.normal(size=rows)
    after = 1.1 * before + 0.1 * random.normal(size=before.shape)
    head.carry(before, after)
    scores = head.scores(x)
    assert np.isfinite(scores).all()
    for array in head.state().arrays.values():
        assert np.isfinite(array).all()
    assert np.abs(head.prototypes[:, 0] - learned(new, (x, y)).prototypes[:, 0]).max() < 10 + 0.2 * offset
    from_state(head.state()).update(x, y)


def test_features_to_carry_must_be_of_the_same_images(new: Callable[[], Head]) -> None:
    x, y = make_samples(0, 20)
    head = learned(new, (x, y))
    before = snapshot(head)
    for old, after, message in (
        (x[:3], x[:4], r"shape \(3, \d+\) before and \(4, \d+\) after; give those of the same images"),
        (x[:3, :2], x[:3, :2], "features are 2 wide; this head has learned from width"),
        (x[:3], x[:3] * np.nan, "features hold NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            head.carry(old, after)
    assert snapshot(head) == before


def test_all_classes_can_be_removed(new: Callable[[], Head]) -> None:
    head = learned(new, make_samples(0, 20))
    for name in head.classes:
        head.remove(name)
    again = from_state(head.state())
    with pytest.raises(ValueError, match="no class yet"):
        again.scores(np.ones((1, WIDTH)))
    again.update(np.ones((1, WIDTH)), ["a"])
    assert again.predict(np.ones((1, WIDTH))) == ["a"]


def test_an_empty_head_can_be_kept_and_merged(new: Callable[[], Head]) -> None:
    empty = from_state(new().state())
    assert empty.width is None
    assert empty.classes == ()
    with pytest.raises(ValueError, match="no class yet"):
        empty.predict(np.ones((1, WIDTH)))
    full = learned(new, make_samples(0, 40))
    empty.merge(full)
    assert_same(empty, full)
    before = snapshot(full)
    full.merge(new())
    assert snapshot(full) == before


@pytest.mark.parametrize("new", EXACT.values(), ids=EXACT)
def test_merging_with_itself_doubles(new: Callable[[], Head]) -> None:
    head, samples = new(), make_samples(0, 40)
    head.update(*samples)
    head.merge(head)
    assert_same(head, learned(new, samples, samples))


def test_removing_and_merging_go_together(new: Callable[[], Head]) -> None:
    first, second = make_samples(0, 50), make_samples(1, 50)
    left, right = learned(new, first), learned(new, second)
    left.remove("a")
    right.remove("a")
    left.merge(right)
    assert "a" not in left.classes
    assert_same(from_state(left.state()), left, rtol=1e-12)


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        (np.full((1, WIDTH), np.nan), ["a"], "NaN"),
        (np.full((1, WIDTH), np.inf), ["a"], "infinite"),
        (np.full((1, WIDTH), 1e300), ["a"], "unusably large"),
        (np.ones((1, WIDTH + 1)), ["a"], "6 wide"),
        (np.ones((0, WIDTH)), [], "at least one row"),
        (np.ones(WIDTH), ["a"], "shape"),
        (np.ones((1, WIDTH), dtype=complex), ["a"], "complex"),
        (np.full((1, WIDTH), "x"), ["a"], "real numbers"),
        (np.ones((2, WIDTH)), ["a"], "1 labels for 2"),
        (np.ones((1, WIDTH)), [], "no labels"),
        (np.ones((1, WIDTH)), "a", "give a list"),
        (np.ones((1, WIDTH)), 3, "list of str"),
        (np.ones((1, WIDTH)), [3], "non-empty str"),
        (np.ones((1, WIDTH)), [""], "non-empty str"),
        (np.ones((1, WIDTH)), ["\ud800"], "Unicode"),
    ],
)
def test_a_bad_update_says_why_and_changes_nothing(
    new: Callable[[], Head], features: Any, labels: Any, says: str
) -> None:
    head = learned(new, make_samples(0, 10))
    before = snapshot(head)
    with pytest.raises(ValueError, match=says):
        head.update(features, labels)
    assert snapshot(head) == before
    empty = new()
    if says != "6 wide":
        with pytest.raises(ValueError, match=says):
            empty.update(features, labels)
        assert empty.width is None


def test_an_unknown_class_cannot_be_removed(new: Callable[[], Head]) -> None:
    head = learned(new, make_samples(0, 10))
    before = snapshot(head)
    with pytest.raises(ValueError, match="no class 'cup'"):
        head.remove("cup")
    assert snapshot(head) == before


def test_heads_that_do_not_fit_are_not_merged(new: Callable[[], Head]) -> None:
    head = learned(new, make_samples(0, 10))
    before = snapshot(head)
    wider = Prototypes() if head.kind != "prototypes" else LDA()
    with pytest.raises(ValueError, match="same kind"):
        head.merge(wider)
    assert snapshot(head) == before


def test_another_width_is_not_merged() -> None:
    head, other = learned(LDA, make_samples(0, 10)), LDA()
    other.update(np.ones((1, WIDTH + 1)), ["a"])
    with pytest.raises(ValueError, match="6 features"):
        head.merge(other)
    with pytest.raises(ValueError, match="same kind"):
        head.merge(LDA(shrinkage=0.5))


def test_a_state_that_does_not_fit_is_refused(new: Callable[[], Head]) -> None:
    state = learned(new, make_samples(0, 40)).state()
    arrays = state.arrays

    def refused(says: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=says):
            from_state(HeadState(**{**vars(state), **changes}))

    refused("unknown head", kind="oracle")
    refused("wrong options", options={"depth": 3})
    refused("twice", classes=("a", "a", "b", "c"))
    refused("shape", classes=("a", "b"))
    refused("class means", arrays={name: array for name, array in arrays.items() if name != "means"})
    refused("counts", arrays={**arrays, "counts": arrays["counts"].astype(np.int32)})
    refused("without samples", arrays={**arrays, "counts": arrays["counts"] * 0})
    refused("means", arrays={**arrays, "means": arrays["means"] * np.nan})
    refused("expected", arrays={**arrays, "more": np.ones(3)})
    huge = np.zeros((0, 10**8))
    if head_shares := set(arrays) - {"counts", "means"}:
        refused("shape", classes=(), arrays={**arrays, "counts": np.zeros(0, np.int64), "means": huge})
        for name in head_shares:
            refused(name, arrays={**arrays, name: arrays[name][:-1]})
    if seen := [name for name in arrays if name.endswith("seen")]:
        refused("has seen 1 samples", arrays={**arrays, seen[0]: np.array([1])})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Prototypes(sections=[]),
        lambda: Prototypes(sections=[0, 3]),
        lambda: Prototypes(sections=[1.5]),  # type: ignore[list-item]
        lambda: Prototypes(weights=[1.0]),
        lambda: Prototypes(sections=[2, 3], weights=[1.0]),
        lambda: Prototypes(sections=[2, 3], weights=[0, 0]),
        lambda: Prototypes(sections=[2, 3], weights=[1, np.nan]),
        lambda: LDA(shrinkage=0),
        lambda: LDA(shrinkage=1.1),
        lambda: LDA(shrinkage=np.nan),
        lambda: LDA("oas"),
        lambda: LDA(correction=1.5),
        lambda: WhitenedCosine(shrinkage=0),
        lambda: WhitenedCosine("oas"),
        lambda: WhitenedCosine(correction=-0.1),
        lambda: WhitenedCosine(correction=np.nan),
        lambda: BalancedRidge(0.0),
        lambda: BalancedRidge("gcv"),
        lambda: BalancedRidge(balanced=1),  # type: ignore[arg-type]
        lambda: StreamingLDA("auto"),  # type: ignore[arg-type]
        lambda: EvidenceLDA(tasks=0),
        lambda: EvidenceLDA(strength=-1),
        lambda: EvidenceLDA(margin=1.1),
        lambda: Ridge(regularisation=0),
        lambda: Ridge(regularisation="loo"),
        lambda: Ridge(projection=0),
        lambda: LDA(projection=0),
        lambda: WhitenedCosine(projection=12.0),  # type: ignore[arg-type]
        lambda: BalancedRidge(projection=12, seed=-1),
        lambda: LDA(seed=2**32),
        lambda: Ridge(seed=-1),
        lambda: StreamingLDA(covariance="pooled"),
        lambda: HeldOutRidge(remember=1),  # type: ignore[arg-type]
        lambda: HeldOutRidge(grid=(3, 1)),
        lambda: FeCAM(alpha1=0),
        lambda: FeCAM(pooling=-1),
        lambda: FeCAM(correction=1.5),
        lambda: FeCAM(alpha2=np.inf),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], Head]) -> None:
    with pytest.raises(ValueError, match=r"give|must|without"):
        make()


def test_sections_must_make_the_width() -> None:
    head = Prototypes(sections=[2, 2])
    with pytest.raises(ValueError, match="make 4"):
        head.update(np.ones((1, WIDTH)), ["a"])
    assert head.width is None
