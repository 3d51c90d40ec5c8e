"""Whitened cosine, and LDA by the number of images, against formulas that are written out here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlearn_runtime import LDA, Head, HeadState, WhitenedCosine, from_state

from .test_heads import WIDTH, learned, make_samples
from .test_heads_distances import class_means, within
from .test_heads_exact import ladder

Array = NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)
shares = st.sampled_from(["auto", 1e-3, 0.1, 1.0])
corrections = st.sampled_from([0.0, 0.7, 1.0])


def by_number(scatter: Array, free: int) -> float:
    """The shrinkage of this scatter with so many degrees of freedom."""
    power, square, width = (scatter**2).sum(), np.trace(scatter) ** 2, len(scatter)
    oas = min(1.0, (power + square) / ((free + 1) * (power - square / width)))
    return float(max(1e-3, np.sqrt(oas * (width / (width + free)) ** 1.5)))


def covariance(x: Array, y: list[str], shrinkage: float | str, n: int | None = None) -> tuple[Array, Array]:
    """The shrunk covariance, and the plain one, with the ridge on its ladder."""
    scatter, free = within(x, y), len(x) - len(set(y))
    plain = scatter / (n or free)
    if isinstance(shrinkage, str):
        share = by_number(scatter, free)
        ridge = ladder(share / (1 - share) * float(np.trace(scatter))) / WIDTH
        return (1 - share) * (scatter + ridge * np.eye(WIDTH)) / free, scatter / free
    ridge = shrinkage * ladder(float(np.trace(scatter))) / WIDTH
    return (1 - shrinkage) * plain + ridge / (n or free) * np.eye(WIDTH), scatter / free


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n=st.integers(12, 120), shrinkage=shares, correction=corrections)
def test_the_cosine_is_the_formula(seed: int, n: int, shrinkage: float | str, correction: float) -> None:
    (x, y), probes = make_samples(seed, n), make_samples(seed + 1, 9)[0]
    head = learned(lambda: WhitenedCosine(shrinkage, correction), (x, y))
    means, (shrunk, plain) = class_means(x, y, head.classes), covariance(x, y, shrinkage)
    precision = np.linalg.inv(shrunk)
    apart, gaps = means - means.mean(axis=0), probes - means.mean(axis=0)
    squares = np.einsum("cf,fg,cg->c", apart, precision, apart)
    noise = np.trace(precision @ plain) / np.array([y.count(name) for name in head.classes])
    squares = np.maximum(squares - correction * noise, squares / 10)
    lengths = np.sqrt(np.einsum("bf,fg,bg->b", gaps, precision, gaps))
    wanted = gaps @ precision @ apart.T / np.sqrt(squares) / lengths[:, None]
    np.testing.assert_allclose(head.scores(probes), wanted, rtol=1e-8, atol=1e-8)
    assert np.abs(wanted).max() <= np.sqrt(10) + 1e-9
    if correction == 0:
        assert np.abs(head.scores(probes)).max() <= 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n=st.integers(12, 120), shrinkage=shares, correction=corrections)
def test_lda_is_the_formula(seed: int, n: int, shrinkage: float | str, correction: float) -> None:
    (x, y), probes = make_samples(seed, n), make_samples(seed + 1, 9)[0]
    head = learned(lambda: LDA(shrinkage, correction=correction), (x, y))
    means = class_means(x, y, head.classes)
    shrunk, plain = covariance(x, y, shrinkage, n if isinstance(shrinkage, float) else None)
    precision = np.linalg.inv(shrunk)
    noise = np.trace(precision @ plain) / np.array([y.count(name) for name in head.classes])
    squares = np.einsum("cf,fg,cg->c", means, precision, means)
    wanted = probes @ precision @ means.T - squares / 2 + correction * noise / 2
    np.testing.assert_allclose(head.scores(probes), wanted, rtol=1e-8, atol=1e-8 * np.abs(wanted).max())


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_what_all_features_have_in_common_does_not_matter(offset: float) -> None:
    (x, y), probes = make_samples(0, 90), make_samples(1, 50)[0]
    near, far = learned(WhitenedCosine, (x, y)), learned(WhitenedCosine, (x + offset, y))
    np.testing.assert_allclose(far.scores(probes + offset), near.scores(probes), rtol=1e-4, atol=1e-4)


def test_the_only_class_scores_zero() -> None:
    head = learned(WhitenedCosine, (make_samples(0, 9)[0], ["a"] * 9))
    np.testing.assert_array_equal(head.scores(np.ones((2, WIDTH))), np.zeros((2, 1)))


def test_the_centre_scores_zero() -> None:
    x = np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)])
    head = learned(WhitenedCosine, (x, ["a"] * WIDTH + ["b"] * WIDTH))
    np.testing.assert_array_equal(head.scores(np.zeros((1, WIDTH))), np.zeros((1, 2)))


def test_one_image_a_class_is_the_plain_cosine_to_the_centred_means() -> None:
    x, probes = make_samples(0, 4)[0], make_samples(1, 9)[0]
    head = learned(WhitenedCosine, (x, list("abcd")))
    apart, gaps = x - x.mean(axis=0), probes - x.mean(axis=0)
    wanted = gaps @ apart.T / np.linalg.norm(gaps, axis=1)[:, None] / np.linalg.norm(apart, axis=1)
    np.testing.assert_allclose(head.scores(probes), wanted, rtol=1e-10)


def test_classes_with_the_same_mean_score_the_same() -> None:
    x, y = make_samples(0, 60)
    twin = ["twin" if name == "a" else "other" for name in y if name in "ab"]
    rows = x[[name in "ab" for name in y]]
    head = learned(
        WhitenedCosine, (x, y), (rows[[name == "twin" for name in twin]], ["twin"] * twin.count("twin"))
    )
    scores = head.scores(make_samples(1, 9)[0])
    first, second = head.classes.index("a"), head.classes.index("twin")
    np.testing.assert_allclose(scores[:, first], scores[:, second], rtol=1e-9)


def test_one_feature_is_enough() -> None:
    head = WhitenedCosine()
    head.update(np.array([[0.0], [0.1], [1.0], [1.1]]), ["a", "a", "b", "b"])
    assert head.predict(np.array([[-3.0], [9.0]])) == ["a", "b"]


def few_and_many(head: Head) -> tuple[float, float]:
    """How often classes of 100 images, and one of 3, are found, in many dimensions."""
    random = np.random.default_rng(0)
    centres = 0.35 * random.normal(size=(10, 60))

    def rows(label: int, n: int) -> Array:
        return np.asarray(centres[label] + random.normal(size=(n, 60)))

    for label in range(10):
        head.update(rows(label, 3 if label == 9 else 100), [str(label)] * (3 if label == 9 else 100))
    found = [np.mean(np.array(head.predict(rows(label, 300))) == str(label)) for label in range(10)]
    return float(np.mean(found[:9])), float(found[9])


@pytest.mark.parametrize("make", [WhitenedCosine, LDA])
def test_the_correction_finds_a_class_of_few_images(make: type[WhitenedCosine | LDA]) -> None:
    without, corrected = few_and_many(make(correction=0.0)), few_and_many(make(correction=1.0))
    assert corrected[1] > without[1] + 0.1
    assert corrected[0] > without[0] - 0.15


def test_lda_as_it_was_is_written_as_it_was() -> None:
    """So that runtimes that do not know the new options read it, and old states are the same head."""
    assert LDA().options == {"shrinkage": 0.01}
    state = learned(LDA, make_samples(0, 40)).state()
    old = from_state(HeadState("lda", state.classes, {"shrinkage": 0.01}, state.arrays))
    assert old.options == LDA(0.01, correction=0.0).options
