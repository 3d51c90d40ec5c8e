"""Arrays from whatever a caller gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.products import square_sum


def as_array(given: object, what: str) -> NDArray[Any]:
    """Make an array without a copy; what goes wrong in that is the caller's mistake.

    Args:
        given: Anything; an object may bring code of its own (``__array__``), which may raise.
        what: What it is, in the plural, for the message.

    Raises:
        ValueError: It cannot become one array.
    """
    try:
        return np.asarray(given)
    except Exception as error:
        raise ValueError(f"{what} are not one array ({type(error).__name__}: {error})") from error


def all_finite(array: NDArray[np.floating[Any]]) -> bool:
    """Whether an array holds neither NaN nor infinity.

    The sum of its squares tells, unless that overflows; after a graph has run, when nothing is in the
    processor's caches any more, it takes half the time of looking at each number.
    """
    return math.isfinite(square_sum(array)) or bool(np.isfinite(array).all())
