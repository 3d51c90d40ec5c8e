"""How far a row lies from each class: each head against a formula that is written out here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlearn_runtime import (
    LDA,
    Aggregate,
    EvidenceLDA,
    FeCAM,
    Head,
    HeldOutRidge,
    Linear,
    Prototypes,
    Ridge,
    StreamingLDA,
    from_state,
)

from .test_heads import WIDTH, learned, make_samples, snapshot
from .test_heads_exact import ladder

Array = NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def class_means(x: Array, y: list[str], classes: tuple[str, ...]) -> Array:
    labels = np.array(y)
    return np.stack([x[labels == name].mean(axis=0) for name in classes])


def within(x: Array, y: list[str]) -> Array:
    """The pooled scatter within classes."""
    labels = np.array(y)
    centred = x - np.stack([x[labels == name].mean(axis=0) for name in y])
    return np.asarray(centred.T @ centred)


def euclidean(x: Array, y: list[str], probes: Array, classes: tuple[str, ...]) -> Array:
    gaps = probes[:, None] - class_means(x, y, classes)
    return np.asarray((gaps**2).sum(axis=2))


def mahalanobis(probes: Array, means: Array, covariance: Array) -> Array:
    gaps = probes[:, None] - means
    return np.asarray(np.einsum("bcf,fg,bcg->bc", gaps, np.linalg.inv(covariance), gaps))


@pytest.mark.parametrize("new", [Prototypes, Linear, Ridge, lambda: Ridge(1e-2, projection=16), HeldOutRidge])
def test_heads_without_a_scatter_give_the_euclidean_distance(new: Callable[[], Head]) -> None:
    x, y = make_samples(0, 40)
    head, probes = learned(new, (x, y)), make_samples(1, 7)[0]
    np.testing.assert_allclose(head.distances(probes), euclidean(x, y, probes, head.classes), rtol=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(12, 100), shrinkage=st.floats(1e-4, 1), offset=st.sampled_from([0, 1e4]))
def test_lda_gives_the_mahalanobis_distance(seed: int, n: int, shrinkage: float, offset: float) -> None:
    x, y = make_samples(seed, n)
    x, probes = x + offset, make_samples(seed + 1, 5)[0] + offset
    head = learned(lambda: LDA(shrinkage), (x, y))
    scatter, free = within(x, y), n - len(head.classes)
    size = ladder(float(np.trace(scatter)))
    covariance = ((1 - shrinkage) * scatter + shrinkage * size / WIDTH * np.eye(WIDTH)) / free
    wanted = mahalanobis(probes, class_means(x, y, head.classes), covariance)
    np.testing.assert_allclose(head.distances(probes), wanted, rtol=1e-5 if offset else 1e-8)


def test_evidence_is_no_part_of_the_distance() -> None:
    x, y = make_samples(0, 40)
    head, probes = learned(lambda: EvidenceLDA(tasks=1), (x, y)), make_samples(1, 7)[0]
    plain = learned(LDA, (x[:, :-1], y))
    np.testing.assert_allclose(head.distances(probes), plain.distances(probes[:, :-1]), rtol=1e-10)


def test_fecam_gives_its_own_distance() -> None:
    samples, probes = make_samples(0, 40), make_samples(1, 7)[0]
    head = learned(lambda: FeCAM(correction=0), samples)
    np.testing.assert_array_equal(head.distances(probes), -head.scores(probes))
    corrected = learned(FeCAM, samples)
    np.testing.assert_array_equal(corrected.distances(probes), head.distances(probes))


def test_an_aggregate_adds_up_its_sections() -> None:
    (x, y), probes = make_samples(0, 40), make_samples(1, 7)[0]
    head = learned(lambda: Aggregate([3, 2], [LDA(), Prototypes()]), (x, y))
    parts = learned(LDA, (x[:, :3], y)), learned(Prototypes, (x[:, 3:], y))
    wanted = parts[0].distances(probes[:, :3]) + parts[1].distances(probes[:, 3:])
    np.testing.assert_allclose(head.distances(probes), wanted, rtol=1e-10)


@pytest.mark.parametrize("new", [LDA, StreamingLDA, lambda: StreamingLDA(covariance="fixed")])
def test_the_distance_of_known_classes_stays_with_more_samples(new: Callable[[], Head]) -> None:
    """About the number of features, however many samples there are."""
    probes, labels = make_samples(1, 500)
    for n in (200, 20_000):
        head = learned(new, make_samples(0, 100), make_samples(2, n))
        own = head.distances(probes)[np.arange(500), [head.classes.index(name) for name in labels]]
        assert 0.8 * WIDTH < own.mean() < 1.2 * WIDTH


@pytest.mark.parametrize("new", [LDA, lambda: StreamingLDA(covariance="base")])
def test_a_sample_at_a_time_gives_the_same_distances(new: Callable[[], Head]) -> None:
    head, probes = learned(new, make_samples(0, 40)), make_samples(1, 3)[0]
    for row, name in zip(*make_samples(2, 100), strict=True):
        head.update(row[None], [name])
        anew = from_state(head.state())
        np.testing.assert_allclose(head.distances(probes), anew.distances(probes), rtol=1e-9)
        np.testing.assert_allclose(head.scores(probes), anew.scores(probes), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("new", [Prototypes, LDA, Ridge, FeCAM])
def test_asking_changes_nothing(new: Callable[[], Head]) -> None:
    head = learned(new, make_samples(0, 40))
    before = snapshot(head)
    distances = head.distances(make_samples(1, 3)[0])
    assert distances.shape == (3, 4)
    assert distances.dtype == np.float64
    assert (distances >= 0).all()
    assert snapshot(head) == before


def test_without_scatter_it_is_the_euclidean_distance() -> None:
    x, y = np.eye(WIDTH)[:2], ["a", "b"]
    head, probes = learned(LDA, (x, y)), make_samples(1, 3)[0]
    np.testing.assert_allclose(head.distances(probes), euclidean(x, y, probes, head.classes), rtol=1e-10)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="no class yet"):
        LDA().distances(np.ones((1, WIDTH)))
    with pytest.raises(ValueError, match="2 wide"):
        learned(LDA, make_samples(0, 9)).distances(np.ones((1, 2)))
