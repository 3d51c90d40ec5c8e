"""Arrays from whatever a caller gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.products import square_sum

# The squares of so many numbers BLAS adds up in the thread that asks.
FEW = 8192


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
        if type(given) is np.ndarray:  # which raises nothing: it is a signal handler's
            raise
        raise ValueError(f"{what} are not one array ({type(error).__name__}: {error})") from error


def magnitude(array: NDArray[np.floating[Any]]) -> float:
    """The sum of the squares of an array's numbers, NaN or infinite where one of them is, or it overflows.

    For a look at numbers, not for statistics: of a few BLAS adds them up, in another order and in a quarter
    of the time once nothing is in the processor's caches after a graph has run. Of what BLAS offers, `vdot`
    alone does not warn of an overflow.
    """
    return float(np.vdot(array, array)) if array.size <= FEW else square_sum(array)


def all_finite(array: NDArray[np.floating[Any]]) -> bool:
    """Whether an array holds neither NaN nor infinity.

    The sum of its squares tells, unless that overflows, in half the time of looking at each number.
    """
    return math.isfinite(magnitude(array)) or bool(np.isfinite(array).all())
