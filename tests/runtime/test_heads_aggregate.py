"""A head of heads: each on its own section, weighted by how sure it is of a sample."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn_runtime import (
    LDA,
    Aggregate,
    EdgeLearner,
    FeCAM,
    Head,
    HeadState,
    Linear,
    Prototypes,
    Ridge,
    from_state,
)
from everlearn_runtime.heads import SharedAggregate
from everlearn_runtime.heads.aggregate import aggregate

from .conftest import MakeBundle, MakeImages


def test_a_certain_learner_outweighs_an_uncertain_one() -> None:
    scores = np.array([[[9.0, 0.0, 0.0]], [[0.1, 0.2, 0.0]]])
    p = np.exp(scores[:, 0]) / np.exp(scores[:, 0]).sum(1, keepdims=True)
    entropies = -(p * np.log(p + 1e-9)).sum(1)
    for gamma in (0.0, 1.0, 100.0):
        both, weights = aggregate(scores, gamma)
        expected = np.exp(-gamma * entropies) / np.exp(-gamma * entropies).sum()
        np.testing.assert_allclose(weights[:, 0], expected)
        np.testing.assert_allclose(both[0], expected @ scores[:, 0])
    assert weights[0, 0] > 0.999


def test_each_learner_has_statistics_of_its_own() -> None:
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(30, 8)), list("abc" * 10)
    ridges = [Ridge(0.1, projection=20, seed=2) for _ in range(2)]
    head = Aggregate([4, 4], ridges)
    head.update(features, labels)
    for part, columns in zip(head.heads, (slice(0, 4), slice(4, 8)), strict=True):
        alone = Ridge(0.1, projection=20, seed=2)
        alone.update(features[:, columns], labels)
        for name, array in alone.state().arrays.items():
            np.testing.assert_array_equal(part.state().arrays[name], array)
    each = [
        10 * part.scores(features[:, s]) for part, s in zip(head.heads, (slice(4), slice(4, 8)), strict=True)
    ]
    np.testing.assert_allclose(head.scores(features), aggregate(np.stack(each), 1.0)[0])


def test_shared_statistics_hold_both_learners_as_released() -> None:
    random = np.random.default_rng(0)
    batches = [(random.normal(size=(30, 8)), list("abc" * 10)) for _ in range(2)]
    ridge = Ridge(0.1, projection=20)
    head, alone = SharedAggregate([4, 4], [ridge, ridge]), Ridge(0.1, projection=20)
    for features, labels in batches:
        head.update(features, labels)
        for place in (1, 0):  # fast first: slow's ridge has seen all, fast's all but slow's newest
            alone.update(features[:, 4 * place : 4 * place + 4], labels)
            arrays = head.heads[place].state().arrays
            np.testing.assert_allclose(arrays["gram"], alone.state().arrays["gram"])
            np.testing.assert_allclose(arrays["sums"], alone.state().arrays["sums"])
    assert not head.exact
    assert head.counts.tolist() == [20, 20, 20]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sections": [4]},
        {"sections": [4, 0]},
        {"heads": [LDA()]},
        {"heads": [LDA(), {"kind": "oracle", "options": {}}]},
        {"gamma": -1.0},
        {"sharpness": 0.0},
        {"sharpness": [1.0, 2.0, 3.0]},
    ],
)
def test_wrong_arguments_of_the_aggregate_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give|need"):
        Aggregate(**{"sections": [4, 4], "heads": [LDA(), LDA()], **wrong})


@pytest.mark.parametrize(("sections", "heads"), [([4, 4], [LDA()] * 2), ([4, 3], [Ridge(projection=8)] * 2)])
def test_statistics_of_heads_that_differ_cannot_be_shared(sections: list[int], heads: list[Head]) -> None:
    with pytest.raises(ValueError, match="shared statistics need equally wide sections"):
        SharedAggregate(sections, heads)


def test_a_head_that_knows_classes_is_no_part() -> None:
    taught = LDA()
    taught.update(np.eye(4), list("abcd"))
    with pytest.raises(ValueError, match="already knows 4 classes; give a new one"):
        Aggregate([4, 4], [taught, LDA()])


def test_a_device_learns_forgets_and_comes_back_with_it(
    make_bundle: MakeBundle, make_images: MakeImages, tmp_path: Path
) -> None:
    head = Aggregate([4, 2], [Ridge(projection=30), LDA()], gamma=2.0, sharpness=[10.0, 1.0])
    bundle, state = make_bundle(head=head), tmp_path / "device.db"
    names = ("mug", "pen", "cup")
    assert {file.name for file in bundle.iterdir()} == {"manifest.json", "features.onnx", "head.safetensors"}
    with EdgeLearner.open(bundle, state=state, threads=1) as edge:
        for name in names:
            edge.learn(make_images(name, 6), [name] * 6)
        edge.forget("pen")
        edge.learn(make_images("pen", 5, seed=1), ["pen"] * 5)
        before = edge.predict(make_images("cup", seed=2))
        assert edge.counts == {"mug": 6, "cup": 6, "pen": 5}
        for name in names:
            assert edge.predict(make_images(name, seed=2)).labels == [name] * 4
    with EdgeLearner.open(bundle, state=state, threads=1) as edge:
        again = edge.predict(make_images("cup", seed=2))
        assert again.classes == before.classes
        np.testing.assert_array_equal(again.scores, before.scores)


def parts() -> list[Aggregate]:
    """Heads of which one part at least cannot be merged, at the top and further down."""
    return [
        Aggregate([2, 2], [LDA(), Linear()]),
        Aggregate([2, 2], [Linear(), Prototypes()]),
        Aggregate([2, 2], [Aggregate([1, 1], [LDA(), Linear()]), LDA()]),
    ]


@pytest.mark.parametrize("head", parts(), ids=["second", "first", "nested"])
def test_a_merge_that_fails_leaves_both_heads_as_they_were(head: Aggregate) -> None:
    other = from_state(head.state())
    x = np.random.default_rng(0).normal(size=(12, 4))
    head.update(x, list("abc" * 4))
    other.update(x[::-1], list("cad" * 4))
    before = [(one.state(), one.scores(x)) for one in (head, other)]
    with pytest.raises(ValueError, match="cannot be merged"):
        head.merge(other)
    for one, (state, scores) in zip((head, other), before, strict=True):
        found = one.state()
        assert found.classes == state.classes
        for name, array in state.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array)
        np.testing.assert_array_equal(one.scores(x), scores)
    head.update(x[:4], list("wxyz"))
    assert head.scores(x).shape == (12, 7)


def test_all_parts_know_the_classes_of_the_whole() -> None:
    """One object has their order, before and after all that can happen to it."""
    x = np.random.default_rng(0).normal(size=(12, 4))
    head = Aggregate([2, 2], [Aggregate([1, 1], [LDA(), Prototypes()]), Ridge(0.1)])
    other = from_state(head.state())
    assert isinstance(other, Aggregate)
    other.update(x, list("fed" * 4))

    def check(head: Aggregate) -> None:
        for part in head.heads:
            assert part._classes is head._classes
            assert part.classes == head.classes
            assert len(part.counts) == len(head.counts) == len(head.classes)
            np.testing.assert_array_equal(part.counts, head.counts)
            if isinstance(part, Aggregate):
                check(part)

    acts: list[Callable[[], None]] = [
        lambda: head.update(x, list("abc" * 4)),
        lambda: head.update(x[:1], ["d"]),
        lambda: head.remove("b"),
        lambda: head.merge(other),
        lambda: head.update(x[:3], list("bga")),
        lambda: head.carry(x, x + 0.1),
    ]
    for act in acts:
        act()
        check(head)
    for again in (from_state(head.state()), copy.deepcopy(head)):
        assert isinstance(again, Aggregate)
        check(again)
        again.update(x[:1], ["new"])
        check(again)
        assert "new" not in head.classes
    assert head.classes == ("a", "c", "d", "f", "e", "b", "g")


def test_parts_have_parts_and_come_back() -> None:
    x = np.random.default_rng(0).normal(size=(12, 4))
    head = Aggregate([2, 2], [Aggregate([1, 1], [LDA(), Prototypes()]), Ridge(0.1)])
    head.update(x, list("abc" * 4))
    again = from_state(head.state())
    assert again.options == head.options
    np.testing.assert_array_equal(again.scores(x), head.scores(x))


def test_a_state_from_before_shared_statistics_were_a_head_of_their_own_loads() -> None:
    x = np.random.default_rng(0).normal(size=(12, 4))
    head = Aggregate([2, 2], [FeCAM(), LDA()])
    head.update(x, list("abc" * 4))
    state = head.state()
    options = {**state.options, "shared": False}
    options["heads"][0]["options"]["variant"] = "vit"
    again = from_state(HeadState(state.kind, state.classes, options, state.arrays))
    np.testing.assert_array_equal(again.scores(x), head.scores(x))
    for wrong in ({**options, "shared": True}, {**options, "heads": [{"kind": [], "options": {}}] * 2}):
        with pytest.raises(ValueError, match=r"wrong options for head .aggregate|is no head"):
            from_state(HeadState(state.kind, state.classes, wrong, state.arrays))
