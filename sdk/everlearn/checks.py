"""Numbers as users give them, numpy's among them, as the plain Python numbers that are stored."""

import math
import operator
from numbers import Real

import numpy as np


def whole(name: str, value: object, least: int = 1) -> int:
    """Give a whole number as an ``int``.

    Args:
        name: of the argument, for the message.
        value: anything that Python takes for an index, such as ``3``, ``np.int64(3)``; no bool.
        least: the smallest that is allowed.

    Raises:
        ValueError: for anything else, and below ``least``.

    >>> whole("seed", np.int64(7), least=0)
    7
    """
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def real(name: str, value: object, below: float = math.inf) -> float:
    """Give a real number of at least 0 as a ``float``.

    Args:
        name: of the argument, for the message.
        value: a number, numpy's or Python's; no bool, and no text.
        below: what it must be less than.

    Raises:
        ValueError: for anything else, NaN among it, and out of range.

    >>> real("momentum", np.float32(0.5), below=1.0)
    0.5
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number larger than any float
        number = math.inf
    if not 0 <= number < below:
        raise ValueError(f"{name} must be at least 0 and below {below}, got {value!r}")
    return number


def flag(name: str, value: object) -> bool:
    """Give True or False as a ``bool``; ``ValueError`` for anything but Python's and numpy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)
