"""Balanced ridge against a formula that is written out here, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier

from everlearn_runtime import BalancedRidge, Ridge

from .test_heads import WIDTH, learned, make_samples
from .test_heads_distances import class_means, within
from .test_heads_exact import ladder
from .test_heads_whitened import by_number

Array = NDArray[np.float64]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(12, 120),
    regularisation=st.sampled_from(["auto", 1e-3, 0.1]),
)
def test_balanced_is_the_formula(seed: int, n: int, regularisation: float | str) -> None:
    (x, y), probes = make_samples(seed, n), make_samples(seed + 1, 9)[0]
    head = learned(lambda: BalancedRidge(regularisation), (x, y))
    means, scatter, classes = class_means(x, y, head.classes), within(x, y), len(set(y))
    trace = float(np.trace(scatter))
    if isinstance(regularisation, str):
        share = by_number(scatter, n - classes)
        strength = ladder(share / (1 - share) * trace) / WIDTH
    else:
        strength = regularisation * ladder(trace) / WIDTH
    apart, gaps = means - means.mean(axis=0), probes - means.mean(axis=0)
    gram = scatter + n / classes * apart.T @ apart + strength * np.eye(WIDTH)
    wanted = gaps @ np.linalg.solve(gram, n / classes * apart.T) + 1 / classes
    np.testing.assert_allclose(head.scores(probes), wanted, rtol=1e-8, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(12, 120))
def test_without_balance_it_is_ridge_regression_with_an_intercept(seed: int, n: int) -> None:
    (x, y), probes = make_samples(seed, n), make_samples(seed + 1, 9)[0]
    head = learned(lambda: BalancedRidge(0.01, balanced=False), (x, y))
    strength = 0.01 * ladder(float(np.trace(within(x, y)))) / WIDTH
    targets = np.array([[float(name == label) for name in head.classes] for label in y])
    centred, level = x - x.mean(axis=0), targets.mean(axis=0)
    weights = np.linalg.solve(centred.T @ centred + strength * np.eye(WIDTH), centred.T @ (targets - level))
    wanted = (probes - x.mean(axis=0)) @ weights + level
    np.testing.assert_allclose(head.scores(probes), wanted, rtol=1e-8, atol=1e-8)


def uneven(n: int, offset: float) -> tuple[Array, list[str], Array, NDArray[np.str_]]:
    """2,000 samples of one class and three of each of seven others, and many of each to ask about."""
    random = np.random.default_rng(0)
    centres = 1.5 * random.normal(size=(8, 24))
    labels = np.repeat(np.arange(8), [2000, *[3] * 7])
    asked = np.repeat(np.arange(8), n)
    x = centres[labels] + random.normal(size=(len(labels), 24)) + offset
    probes = centres[asked] + random.normal(size=(len(asked), 24)) + offset
    return x, [str(label) for label in labels], probes, asked.astype(str)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e5])
def test_classes_of_three_images_beside_one_of_thousands_are_found(offset: float) -> None:
    x, y, probes, truth = uneven(100, offset)
    head = learned(BalancedRidge, (x, y))
    right = float(np.mean(np.array(head.predict(probes)) == truth))
    near = x - offset, probes - offset  # scikit-learn loses digits far from zero
    reference = RidgeClassifier(class_weight="balanced").fit(near[0], y)
    assert right > float(np.mean(reference.predict(near[1]) == truth)) - 0.02
    assert right > float(np.mean(np.array(learned(Ridge, (x, y)).predict(probes)) == truth)) + 0.2
