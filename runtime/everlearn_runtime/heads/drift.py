"""How features have moved: an affine map, from the same images before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
# Ridges relative to the largest eigenvalue, to as good as plain least squares.
STRENGTHS = (*(10.0**exponent for exponent in range(0, -9, -1)), EPS**2)
# Errors that differ by less are equal.
TIE = 1e-6


class Drift(NamedTuple):
    """Features h (F,) have become ``h @ linear + offset``, and what that leaves over.

    Attributes:
        linear: (F, F).
        offset: (F,).
        left_over: the second moments of what the map misses (F, F), of one image.
    """

    linear: Array
    offset: Array
    left_over: Array

    def move(self, rows: Array) -> Array:
        """Features (B, F) as they are now."""
        moved: Array = rows @ self.linear + self.offset
        return moved

    def part(self, section: slice) -> Drift:
        """Of a section of the features that moves on its own."""
        return Drift(self.linear[section, section], self.offset[section], self.left_over[section, section])


def affine_drift(before: Array, after: Array) -> Drift:
    """The map by which features (B, F) float64 of the same images have moved.

    With both centred, H and M for the features before and their movement,

        linear = I + (H'H + s I)^-1 H'M,   offset: so that the mean goes where it went,

    ridge regression of the movement: directions which the rows say nothing about go along with the
    mean. s comes from leaving out one image at a time: of a grid from infinity to as good as zero,
    and no movement at all before it, the first for which the maps fitted without an image miss that
    image, in the mean of the squares, by no more than the best do and its standard error (Breiman et
    al. 1984). For what is carried lies further off than these images, and the fewer there are, the
    less their own errors tell. One decomposition H = U S V' answers for every s (Allen 1974): with
    W = s / (S^2 + s) and Z = U'M, image i is missed by

        e_i = (M - U U'M + U W Z)_i / (1 - 1/B - |u_i|^2 + u_i' W u_i).

    Images that took no part in the fit are missed as these are, so what the map leaves over is the
    moments of e_i. An affine change is found to rounding from F + 2 images in general position. One
    image alone says nothing that another one could confirm, and moves nothing.

    >>> before = np.array([[1.0, 0.0], [2.0, 0.0], [5.0, 0.0]])
    >>> affine_drift(before, 2 * before + 1).move(np.array([[4.0, 7.0]])).round(6)
    array([[9., 8.]])
    """
    rows, width = before.shape
    movement = after - before
    if rows == 1 or not movement.any():
        return still(width)
    centre, common = before.mean(axis=0), movement.mean(axis=0)
    spread, rest = before - centre, movement - common
    left, values, right = directions(spread, np.abs(before).max())
    along = left.T @ rest
    # Where the directions are as many as the rows leave, these are zero, and would be found as rounding.
    full = len(values) == rows - 1
    outside = np.zeros_like(rest) if full else rest - left @ along
    free = np.zeros(rows) if full else np.maximum(1 - 1 / rows - (left**2).sum(axis=1), rows * EPS)

    def missed(shrunk: Array | None) -> Array:
        """Each image's error by the map fitted without it; None for no movement at all."""
        if shrunk is None:
            return movement
        misses: Array = (outside + (left * shrunk) @ along) / (free + left**2 @ shrunk)[:, None]
        return misses

    trials = [None, np.ones(len(values))]  # no movement, a common shift, and ever weaker ridges
    if len(values):
        trials += [1 / (1 + values**2 / (strength * values.max() ** 2)) for strength in STRENGTHS]
    errors = np.stack([(missed(shrunk) ** 2).sum(axis=1) for shrunk in trials])
    total, best = errors.sum(axis=1), int(errors.sum(axis=1).argmin())
    doubt = TIE * total[best] + np.sqrt(rows) * errors[best].std(ddof=1)
    shrunk = trials[int(np.flatnonzero(total <= total[best] + doubt)[0])]

    misses = missed(shrunk)
    left_over = misses.T @ misses / rows
    if shrunk is None:
        return still(width)._replace(left_over=left_over)
    linear = np.eye(width) + right @ (((1 - shrunk) / values)[:, None] * along)
    return Drift(linear, centre + common - centre @ linear, left_over)


def still(width: int) -> Drift:
    """No movement."""
    return Drift(np.eye(width), np.zeros(width), np.zeros((width, width)))


def side_by_side(parts: Sequence[Drift]) -> Drift:
    """The drift of features in sections, each of which has one of its own."""
    width = sum(len(part.offset) for part in parts)
    linear, left_over = np.zeros((2, width, width))
    start = 0
    for part in parts:
        own = slice(start, start := start + len(part.offset))
        linear[own, own], left_over[own, own] = part.linear, part.left_over
    return Drift(linear, np.concatenate([part.offset for part in parts]), left_over)


def directions(spread: Array, size: float) -> tuple[Array, Array, Array]:
    """The singular value decomposition of rows (B, F), less what is only rounding.

    By the eigenvectors of the smaller of the two products: several times faster than the
    decomposition itself, and exact enough down to a millionth of the largest singular value.

    Args:
        spread: The rows.
        size: Of the numbers of whose rounding they may consist.

    Returns:
        U (B, r), S (r,) and V (F, r).
    """
    rows, width = spread.shape
    wide = rows < width
    squares, vectors = np.linalg.eigh(spread @ spread.T if wide else spread.T @ spread)
    smallest = EPS * max(rows, width)
    real = squares > max(smallest * squares[-1], (smallest * size) ** 2)
    vectors = vectors[:, real]
    others = spread.T @ vectors if wide else spread @ vectors
    values = np.linalg.norm(others, axis=0)
    others = others / values
    return (vectors, values, others) if wide else (others, values, vectors)
