"""A look at numbers finds NaN and infinity in every kind and number of them, and nothing is warned of."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime.arrays import FEW, all_finite, magnitude

KINDS = (np.float16, np.float32, np.float64)
NUMBERS = (1, FEW, FEW + 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found(kind: type, number: int, bad: float) -> None:
    numbers: NDArray[np.floating[Any]] = np.ones(number, dtype=kind)
    assert all_finite(numbers)
    numbers[-1] = bad
    assert not all_finite(numbers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", NUMBERS)
def test_the_largest_numbers_are_finite_though_their_squares_are_not(kind: type, number: int) -> None:
    assert all_finite(np.full(number, np.finfo(kind).max, dtype=kind))


@pytest.mark.parametrize("shape", [(3, 5), (2, FEW), (0,), (4, 0)])
def test_the_magnitude_is_the_sum_of_squares_whatever_the_order_in_memory(shape: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(0).normal(size=shape)
    for given in (numbers, np.asfortranarray(numbers), numbers[..., ::-1]):
        assert magnitude(given) == pytest.approx(float((numbers**2).sum()), rel=1e-12)
