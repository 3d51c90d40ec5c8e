"""Compare with reference numbers, and remember how far each group of them was missed.

`LARGEST` holds the largest error of each group; `table()` prints it, and so does
`pytest -v tests/fidelity` at its end.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Oracle = dict[str, NDArray[Any]]

LARGEST: dict[str, tuple[float, int]] = {}
"""Largest absolute error of each group, and how many numbers were compared."""


def read(name: str) -> Oracle:
    """All arrays of a file of reference numbers, from the folder EVERLEARN_ORACLES where it is set."""
    folder = os.environ.get("EVERLEARN_ORACLES") or Path(__file__).parents[1] / "data" / "oracles"
    with np.load(Path(folder) / name) as stored:
        return {key: stored[key] for key in stored.files}


def close(group: str, got: Any, expected: NDArray[Any], atol: float = 1e-9) -> None:
    """Hold numbers to `atol`, and what is stored as float32 to its rounding on top."""
    value = np.asarray(got.detach().numpy() if isinstance(got, Tensor) else got, dtype=np.float64)
    assert value.shape == expected.shape, f"{group}: {value.shape} is not {expected.shape}"
    error, many = np.abs(value - expected), LARGEST.get(group, (0.0, 0))
    LARGEST[group] = max(many[0], float(error.max(initial=0))), many[1] + error.size
    rounding = 2.0**-24 * np.abs(expected) if expected.dtype == np.float32 else 0.0
    assert (error <= atol + rounding).all(), f"{group}: off by up to {error.max():.3g}, allowed {atol:g}"


def table() -> str:
    """What has been compared so far, a line for each group."""
    width = max(map(len, LARGEST), default=0)
    return "\n".join(
        f"{group:<{width}}  {error:8.1e}  over {count} numbers"
        for group, (error, count) in sorted(LARGEST.items())
    )
