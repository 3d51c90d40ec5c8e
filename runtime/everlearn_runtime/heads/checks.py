"""What heads accept: features, labels, and the arrays of a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Squares of larger numbers would overflow, and no network that works gives any.
LARGEST = float(np.finfo(np.float32).max)


def check_rows(features: ArrayLike) -> NDArray[np.float64]:
    """A float64 copy of features (B, F), C-contiguous.

    Raises:
        ValueError: No matrix of real numbers, an empty one, or one with NaN, infinite or larger
            numbers than float32 holds.
    """
    given = np.asarray(features)
    if given.ndim != 2 or given.dtype.kind not in "fiu":
        raise ValueError(
            f"features are {given.dtype} of shape {given.shape}; give real numbers (batch, width)"
        )
    if given.size == 0:
        raise ValueError(f"features have shape {given.shape}; give at least one row and one column")
    rows: NDArray[np.float64] = given.astype(np.float64, order="C")
    # The sum of squares, NaN included, clears nearly all features with one look at each.
    if not np.vdot(rows, rows) <= LARGEST**2 and not (rows.max() <= LARGEST and rows.min() >= -LARGEST):
        raise ValueError(
            "features hold NaN, infinite or unusably large values; check the images and the graph"
        )
    return rows


def check_labels(labels: Sequence[str]) -> list[str]:
    """Class names as a list of plain ``str``.

    Raises:
        ValueError: Something else than a sequence of non-empty ``str`` that UTF-8 can hold.
    """
    if isinstance(labels, (str, bytes)):
        raise ValueError(
            f"labels is one {type(labels).__name__}, {labels!r}; give a list with one label per sample"
        )
    try:
        names = list(labels)
    except TypeError:
        raise ValueError(f"labels is {labels!r}; give a list of str") from None
    if not names:
        raise ValueError("no labels; give one label per sample")
    return [check_label(name) for name in names]


def check_label(label: object) -> str:
    """One class name as a plain ``str``; raises like :func:`check_labels`."""
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label {label!r} is not a non-empty str; classes are names, for example 'mug'")
    try:
        label.encode()
    except UnicodeEncodeError:
        raise ValueError(f"label {label!r} is not valid Unicode text") from None
    return str(label)


def check_arrays(
    arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[Any]]:
    """Copies of a state's arrays, after checking names, shapes, dtypes and that all is finite.

    ``counts`` and ``seen`` are int64, the rest is float64; of a name with dots the last part counts.

    Raises:
        ValueError: The arrays are not what a head of these shapes keeps.
    """
    if set(arrays) != set(shapes):
        raise ValueError(f"the state holds the arrays {sorted(arrays)}; expected {sorted(shapes)}")
    checked = {}
    for name, shape in shapes.items():
        array = np.asarray(arrays[name])
        dtype = np.int64 if name.rpartition(".")[2] in ("counts", "seen") else np.float64
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{name} is {array.dtype} of shape {array.shape}; expected {np.dtype(dtype)} of shape {shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values")
        checked[name] = np.array(array, order="C")
    return checked
