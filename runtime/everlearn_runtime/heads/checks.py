"""What heads accept: features, labels, and the arrays of a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.arrays import as_array, magnitude

# Squares of larger numbers would overflow, and no network that works gives any.
LARGEST = float(np.finfo(np.float32).max)
# What statistics of such features come to. A mean is no larger than they are, but for rounding; a
# sum of squares and products over 2^40 samples, random projections included, stays below 2^64.
LARGEST_MEAN = 2 * LARGEST
LARGEST_SUM = LARGEST**2 * 2.0**64
MOST_SAMPLES = 1 << 40
MOST_LABELS = 1 << 24


# Arrays that earlier versions did not keep: zero is what they would have held, unless a class had gone.
ADDED_LATER = ("background", "held_out")


def check_rows(features: ArrayLike) -> NDArray[np.float64]:
    """A float64 copy of features (B, F), C-contiguous.

    Raises:
        ValueError: No matrix of real numbers, an empty one, or one with NaN, infinite or larger
            numbers than float32 holds.
    """
    given = as_array(features, "features")
    if given.ndim != 2 or given.dtype.kind not in "fiu":
        raise ValueError(
            f"features are {given.dtype} of shape {given.shape}; give real numbers (batch, width)"
        )
    if given.size == 0:
        raise ValueError(f"features have shape {given.shape}; give at least one row and one column")
    rows: NDArray[np.float64] = given.astype(np.float64, order="C")
    # The sum of squares, NaN included, clears nearly all features with one look at each.
    if not magnitude(rows) <= LARGEST**2 and not (rows.max() <= LARGEST and rows.min() >= -LARGEST):
        raise ValueError(
            "features hold NaN, infinite or unusably large values; check the images and the graph"
        )
    return rows


def check_labels(labels: Sequence[str]) -> list[str]:
    """Class names as a list of plain ``str``.

    Raises:
        ValueError: Something else than a sequence of non-empty ``str`` that UTF-8 can hold. A set or
            a dict has no order by which its names could go with samples; an iterator may never end.
    """
    if isinstance(labels, (str, bytes)):
        raise ValueError(
            f"labels is one {type(labels).__name__}, {labels!r}; give a list with one label per sample"
        )
    ordered = not isinstance(labels, (Set, Mapping)) and hasattr(labels, "__getitem__")
    try:
        count = len(labels) if ordered else -1
        names = list(labels) if 0 <= count <= MOST_LABELS else []
    except MemoryError:
        raise
    except Exception:
        if type(labels) in (list, tuple):  # which raise nothing: it is a signal handler's
            raise
        count = -1
    if count < 0:
        kind = type(labels).__name__
        raise ValueError(f"labels is of type {kind}; give a list of str, one label per sample")
    if count > MOST_LABELS:
        raise ValueError(f"{count:,} labels at once; give at most {MOST_LABELS:,}")
    if not names:
        raise ValueError("no labels; give one label per sample")
    return [check_label(name) for name in names]


def check_label(label: object) -> str:
    """One class name as a plain ``str``; raises like :func:`check_labels`."""
    # What it holds, not what a subclass shows: an enum's member shows its own name in place of its value.
    name = str.__str__(label) if isinstance(label, str) else ""
    if not name.strip():
        raise ValueError(f"label {label!r} is not a non-empty str; classes are names, for example 'mug'")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"label {name!r} is not valid Unicode text") from None
    return name


def check_arrays(
    arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[Any]]:
    """Copies of a state's arrays, after checking names, shapes, dtypes and magnitudes.

    ``counts``, ``seen`` and ``removable`` are int64, the rest is float64; of a name with dots the last
    part counts. A length of -1 in a shape stands for any.

    Raises:
        ValueError: The arrays are not what a head of these shapes keeps, or hold numbers that no
            features can have led to.
    """
    added = {
        name: np.zeros(shape)
        for name, shape in shapes.items()
        if name not in arrays and name.rpartition(".")[2] in ADDED_LATER
    }
    arrays = {**arrays, **added}
    if set(arrays) != set(shapes):
        raise ValueError(f"the state holds the arrays {sorted(arrays)}; expected {sorted(shapes)}")
    checked = {}
    for name, shape in shapes.items():
        array, kind = np.asarray(arrays[name]), name.rpartition(".")[2]
        whole = kind in ("counts", "seen", "removable")
        dtype = np.int64 if whole else np.float64
        fits = array.ndim == len(shape) and all(
            wanted in (-1, length) for wanted, length in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            raise ValueError(
                f"{name} is {array.dtype} of shape {array.shape}; expected {np.dtype(dtype)} of shape {shape}"
            )
        least, most = (0, MOST_SAMPLES) if whole else (-LARGEST_SUM, LARGEST_SUM)
        if kind.endswith("means"):
            least, most = -LARGEST_MEAN, LARGEST_MEAN
        if array.size and not (array.min() >= least and array.max() <= most):  # nor NaN
            raise ValueError(f"{name} holds NaN or values outside of {least:.3g} to {most:.3g}")
        checked[name] = np.array(array, order="C")
    return checked
