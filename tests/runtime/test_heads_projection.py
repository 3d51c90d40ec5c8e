"""Heads with random features beside the features: the same head, given both from outside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlearn_runtime import LDA, BalancedRidge, Head, HeadState, WhitenedCosine, from_state
from everlearn_runtime.heads.drift import affine_drift

from .test_heads import WIDTH, make_samples
from .test_heads_exact import hidden

Array = NDArray[np.float64]
COUNT = 12
MAKE: dict[str, Callable[..., Head]] = {
    "lda": lambda **random: LDA(0.1, **random),
    "lda by number": lambda **random: LDA("auto", correction=0.7, **random),
    "whitened cosine": WhitenedCosine,
    "ridge balanced": BalancedRidge,
    "ridge with intercept": lambda **random: BalancedRidge(0.1, balanced=False, **random),
}


def both(rows: Array, seed: int) -> Array:
    """Features, and random ones behind them."""
    return np.concatenate([rows, 0.5 * hidden(rows, COUNT, seed) / np.sqrt(rows.shape[1])], axis=1)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 90), size=st.integers(1, 60), removed=st.booleans())
@pytest.mark.parametrize("name", MAKE)
def test_the_head_is_that_of_both(name: str, seed: int, n: int, size: int, removed: bool) -> None:
    (x, y), probes = make_samples(seed, n), make_samples(seed + 1, 7)[0]
    found, plain = MAKE[name](projection=COUNT, seed=seed), MAKE[name]()
    for start in range(0, n, size):
        part = slice(start, start + size)
        found.update(x[part], y[part])
        plain.update(both(x[part], seed), y[part])
    if removed and len(found.classes) > 1:
        for head in (found, plain):
            head.remove(y[0])
    assert found.classes == plain.classes
    assert found.width == WIDTH
    np.testing.assert_allclose(found.prototypes, plain.prototypes[:, :WIDTH], rtol=1e-12)
    for asked, wanted in (
        (found.scores(probes), plain.scores(both(probes, seed))),
        (found.distances(probes), plain.distances(both(probes, seed))),
    ):
        np.testing.assert_allclose(asked, wanted, rtol=1e-7, atol=1e-8 * max(1.0, np.abs(wanted).max()))


def test_it_tells_apart_what_no_plane_does() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 2))
    y = ["same" if a * b > 0 else "other" for a, b in x]
    right = []
    for head in (LDA(), LDA(projection=60)):
        head.update(x[:300], y[:300])
        right.append(np.mean(np.array(head.predict(x[300:])) == np.array(y[300:])))
    assert right[0] < 0.7
    assert right[1] > 0.85


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(2, 40))
def test_both_are_carried_each_by_a_map_of_its_own(seed: int, images: int) -> None:
    (x, y), random = make_samples(seed, 40), np.random.default_rng(seed)
    before = random.normal(size=(images, WIDTH))
    after = before + 0.3 * random.normal(size=before.shape) + 1
    head = LDA(0.1, projection=COUNT, seed=3)
    head.update(x, y)
    start = head.state().arrays
    head.carry(before, after)
    found = head.state().arrays
    drift, outer = affine_drift(both(before, 3), both(after, 3)), affine_drift(before, after)
    means = np.concatenate([start["means"], start["projected_means"]], axis=1)
    np.testing.assert_allclose(found["means"], outer.move(start["means"]), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        found["projected_means"], drift.move(means)[:, WIDTH:], rtol=1e-9, atol=1e-9 * np.abs(means).max()
    )
    width = WIDTH + COUNT
    matrices = []
    for arrays in (start, found):
        lower = np.zeros((width, width))
        lower[np.tril_indices(width)] = arrays["scatter"]
        matrices.append(lower + np.tril(lower, -1).T)
    linear = drift.linear.copy()
    linear[:, :WIDTH] = 0
    linear[:WIDTH, :WIDTH] = outer.linear
    gain = matrices[1] - linear.T @ matrices[0] @ linear
    scale = np.abs(matrices[1]).max()
    assert np.linalg.eigvalsh(gain).min() > -1e-9 * scale


def test_an_affine_change_of_the_features_is_carried_exactly() -> None:
    (x, y), random = make_samples(0, 40), np.random.default_rng(0)
    linear, before = random.normal(size=(WIDTH, WIDTH)), random.normal(size=(12, WIDTH))
    head, wanted = LDA(projection=COUNT), LDA()
    head.update(x, y)
    wanted.update(x @ linear + 1, y)
    head.carry(before, before @ linear + 1)
    found, right = head.state().arrays, wanted.state().arrays
    np.testing.assert_allclose(found["means"], right["means"], rtol=1e-8)
    scatter = right["scatter"]  # the part of the features comes first in what is packed
    np.testing.assert_allclose(
        found["scatter"][: len(scatter)], scatter, rtol=1e-8, atol=1e-9 * np.abs(scatter).max()
    )


def test_features_that_one_image_says_have_moved_stay() -> None:
    x, y = make_samples(0, 40)
    head = WhitenedCosine(projection=COUNT)
    head.update(x, y)
    scores = head.scores(x)
    head.carry(x[:1], x[:1] + 1)
    np.testing.assert_allclose(head.scores(x), scores, rtol=1e-12)


@pytest.mark.parametrize("name", MAKE)
def test_it_comes_back_to_the_bit_and_counts_its_bytes(name: str) -> None:
    head = MAKE[name](projection=COUNT, seed=5)
    head.update(*make_samples(0, 50))
    head.settle()
    state, probes = head.state(), make_samples(1, 9)[0]
    assert head.nbytes == sum(array.nbytes for array in state.arrays.values())
    again = from_state(state)
    assert again.options == head.options
    assert again.options["projection"] == COUNT
    for one in (head, again):
        for row, label in zip(*make_samples(2, 30), strict=True):
            one.update(row[None], [label])
    np.testing.assert_array_equal(again.scores(probes), head.scores(probes))


def test_without_a_projection_it_is_written_as_it_was() -> None:
    for head in (LDA(), WhitenedCosine(), BalancedRidge()):
        head.update(*make_samples(0, 30))
        assert not {"projection", "seed"} & set(head.options)
        assert "projected_means" not in head.state().arrays


def test_a_state_whose_random_means_do_not_fit_is_refused() -> None:
    head = LDA(projection=COUNT)
    head.update(*make_samples(0, 30))
    state = head.state()
    arrays = {**state.arrays, "projected_means": state.arrays["projected_means"][:, 1:]}
    with pytest.raises(ValueError, match="projected_means"):
        from_state(HeadState(state.kind, state.classes, state.options, arrays))


@pytest.mark.parametrize("name", MAKE)
def test_random_features_cannot_be_moved_by_a_map_of_the_features_alone(name: str) -> None:
    head = MAKE[name](projection=COUNT)
    head.update(*make_samples(0, 30))
    with pytest.raises(ValueError, match="takes some images' features by both models"):
        head.moved(affine_drift(np.eye(WIDTH), 2 * np.eye(WIDTH)), head)
