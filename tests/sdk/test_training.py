"""The settings of training, and numbers as users give them."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from everlearn.checks import flag, real, whole
from everlearn.training import Training


def test_numbers_of_numpy_are_kept_as_plain_ones() -> None:
    given: dict[str, Any] = {
        "epochs": np.int64(3),
        "batch_size": np.uint8(8),
        "lr": np.float32(0.5),
        "momentum": np.float64(0.25),
        "weight_decay": 0,
        "carry": np.False_,
    }
    training = Training(**given)
    plain = Training(epochs=3, batch_size=8, lr=0.5, momentum=0.25, weight_decay=0.0, carry=False)
    assert training == plain
    for name in given:
        assert type(getattr(training, name)) is type(getattr(plain, name)), name


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": np.int64(0)}, "epochs must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number .* got True"),
        ({"epochs": np.True_}, "epochs must be a whole number"),
        ({"batch_size": 1.0}, r"batch_size must be a whole number .* got 1\.0"),
        ({"batch_size": np.float64(2)}, "batch_size must be a whole number"),
        ({"batch_size": "8"}, "batch_size must be a whole number .* got '8'"),
        ({"batch_size": [8]}, "batch_size must be a whole number"),
        ({"batch_size": None}, "batch_size must be a whole number"),
        ({"lr": -0.1}, r"lr must be at least 0 and below inf, got -0\.1"),
        ({"lr": np.float32("nan")}, "lr must be at least 0"),
        ({"lr": float("inf")}, "lr must be at least 0 and below inf, got inf"),
        ({"lr": "0.1"}, r"lr must be at least 0 .* got '0\.1'"),
        ({"lr": True}, "lr must be at least 0 .* got True"),
        ({"lr": 1j}, "lr must be at least 0 .* got 1j"),
        ({"lr": 10**400}, "lr must be at least 0"),
        ({"momentum": 1}, r"momentum must be at least 0 and below 1\.0, got 1"),
        ({"weight_decay": None}, "weight_decay must be at least 0 .* got None"),
        ({"carry": 1}, "carry must be True or False, got 1"),
        ({"carry": "no"}, "carry must be True or False, got 'no'"),
        ({"optimizer": "lion"}, "optimizer must be 'sgd' or 'adam', got 'lion'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Training(**setting)


def test_checked_numbers_are_plain() -> None:
    for value in (0, np.int64(0), np.uint8(0), np.array(0)):
        assert type(whole("seed", value, least=0)) is int
    for number in (2, np.int8(2), np.float16(2), Fraction(2)):
        assert real("lr", number) == 2.0
        assert type(real("lr", number)) is float
    assert flag("carry", np.True_) is True
