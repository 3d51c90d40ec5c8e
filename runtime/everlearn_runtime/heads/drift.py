"""How features have moved: an affine map, from the same images before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
# The weakest ridge of the grid before as good as none: so many decades below the spread of the rows.
DECADES = 8


class Drift(NamedTuple):
    """Features h (F,) have become ``h @ linear + offset``, and what that leaves over.

    Attributes:
        linear: (F, F); (F, G) to another model's features.
        offset: (F,), or (G,).
        left_over: the second moments of what the map misses (F, F), or (G, G), of one image.
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

    Ridge regression of the movement M on H, the features before with one more that is constant and
    as long as they are in the mean of the squares,

        [linear - I; offset / constant] = (H'H + s I)^-1 H'M,

    so features that are unlike those of the images, or lie off all of them, move less. s comes from
    leaving out one image at a time: of a grid from the largest eigenvalue to as good as zero, and no
    movement at all before it, the first for which maps fitted without an image miss that image, in
    the mean of the squares, by no more than the best do and their standard error (Breiman et al.
    1984), for what is carried lies further off than these images. One decomposition
    H = U S V' answers for every s (Allen 1974): with W = s / (S^2 + s) and Z = U'M, image i is
    missed by

        e_i = (M - U U'M + U W Z)_i / (1 - |u_i|^2 + u_i' W u_i).

    An affine change is found to rounding from F + 2 images in general position. What a map leaves
    over of other images is as large as e_i; their moments are drawn to evenly spread ones by F / (B + F),
    since few images lie in few directions. One image alone says nothing that another one could
    confirm, and moves nothing.

    >>> before = np.array([[1.0, 0.0], [2.0, 1.0], [5.0, 0.0], [2.0, 2.0]])
    >>> affine_drift(before, 2 * before + 1).move(np.array([[4.0, 7.0]])).round(6)
    array([[ 9., 15.]])
    """
    return _drifted(before, after)[0]


def missed(before: Array, after: Array) -> Array:
    """How far each image is missed by an :func:`affine_drift` that was fitted without it, (B, F)."""
    return _drifted(before, after)[1]


def _drifted(before: Array, after: Array) -> tuple[Drift, Array]:
    """The drift, and how far each image is missed by the one that was fitted without it (B, F)."""
    rows, width = before.shape
    movement = after - before
    if rows == 1 or not movement.any():
        return still(width), movement
    constant = float(np.sqrt((before**2).sum(axis=1).mean())) or 1.0
    given = np.concatenate([before, np.full((rows, 1), constant)], axis=1)
    misses, gain = _regressed(given, movement)
    left_over = _left_over(misses)
    if gain is None:
        return still(width)._replace(left_over=left_over), misses
    return Drift(np.eye(width) + gain[:-1], constant * gain[-1], left_over), misses


def drift_with_more(before: Array, after: Array, before_more: Array, after_more: Array) -> Drift:
    """The drift of features and of what else is made of them, where only the former is to be affine.

    Args:
        before, after: Features of the same images (B, F).
        before_more, after_more: The same with others behind them, (B, F + M).

    Returns:
        For F + M features: the first F move as by :func:`affine_drift` of themselves, the others by a map
        of all.
    """
    width, all_width = before.shape[1], before_more.shape[1]
    if len(before) == 1:
        return still(all_width)
    (front, front_misses), (whole, misses) = _drifted(before, after), _drifted(before_more, after_more)
    linear, offset, misses = whole.linear.copy(), whole.offset.copy(), misses.copy()
    linear[:, :width] = 0
    linear[:width, :width], offset[:width], misses[:, :width] = front.linear, front.offset, front_misses
    left_over, share = misses.T @ misses, len(misses) / (len(misses) + all_width)
    for part in (slice(width), slice(width, None)):  # what one misses is not spread over the other
        own = np.diag(left_over)[part].mean()
        left_over[part, part][np.diag_indices(len(offset[part]))] += (1 / share - 1) * own
    return Drift(linear, offset, share / len(misses) * left_over)


def map_with_more(front: Drift, before: Array, after: Array) -> Drift:
    """The map of features and of what else is made of them to another model's.

    Args:
        front: That of the features alone, F to G.
        before, after: Features of the same images with others behind them, (B, F + M) and (B, G + N).

    Returns:
        The first G follow ``front``, the others a map of all.
    """
    width, end = front.linear.shape
    whole, _ = affine_map(before, after)
    linear, offset, left_over = whole.linear.copy(), whole.offset.copy(), whole.left_over.copy()
    linear[:width, :end], linear[width:, :end], offset[:end] = front.linear, 0, front.offset
    left_over[:end], left_over[:, :end], left_over[:end, :end] = 0, 0, front.left_over
    return Drift(linear, offset, left_over)


def affine_map(before: Array, after: Array) -> tuple[Drift, Array]:
    """The map from some images' features (B, F) to what another model gives for them (B, G).

    As :func:`affine_drift`, but for models that need have nothing in common: ridge regression of
    ``after`` on ``before``, both less their means, so that what is unlike these images comes nearer
    to the mean. Of that and, where F = G, the drift, whichever misses images that it was not fitted
    on by less, in the mean of the squares.

    Returns:
        The map, with ``linear`` (F, G); and how far each image is missed by the map that was fitted
        without it, (B, G).

    Raises:
        ValueError: Fewer than two images, or not as many before as after.

    >>> before = np.array([[0.0], [1.0], [3.0], [4.0]])
    >>> drift, misses = affine_map(before, np.concatenate([before + 1, 3 * before], axis=1))
    >>> drift.linear.round(6), drift.offset.round(6)
    (array([[1., 3.]]), array([1., 0.]))
    """
    rows = len(before)
    if rows != len(after) or rows < 2:
        raise ValueError(
            f"features of {rows} images before and {len(after)} after; give two or more, the same"
        )
    centre, level = before.mean(axis=0), after.mean(axis=0)
    misses, gain = _regressed(before - centre, after - level, centred=True)
    linear = np.zeros((before.shape[1], after.shape[1])) if gain is None else gain
    found = Drift(linear, level - centre @ linear, _left_over(misses))
    if before.shape == after.shape:
        drift, own = _drifted(before, after)
        if (own**2).sum() <= (misses**2).sum():
            return drift, own
    return found, misses


def _regressed(given: Array, target: Array, *, centred: bool = False) -> tuple[Array, Array | None]:
    """Ridge regression of a target (B, G) on what is given (B, H), see :func:`affine_drift`.

    Args:
        given, target: One row an image.
        centred: The mean of all rows was taken off both; an image that is left out is in it no more.

    Returns:
        How far each image is missed without it (B, G), and the map (H, G), None for none at all.
    """
    rows, lost = len(given), 1 / len(given) if centred else 0.0
    if not given.any():
        return target / (1 - lost), None
    left, values, right = directions(given)
    squares = values**2
    along = left.T @ target
    # Where the directions are as many as the rows, both are zero, and would be found as rounding.
    full = len(values) == rows - centred
    outside = np.zeros_like(target) if full else target - left @ along
    free = np.zeros(rows) if full else np.maximum(1 - lost - (left**2).sum(axis=1), rows * EPS)

    def missed(ridge: float) -> Array:
        """Each image's error by the map fitted without it."""
        if np.isinf(ridge):
            return target / (1 - lost)
        shrunk = ridge / (squares + ridge)
        misses: Array = (outside + (left * shrunk) @ along) / (free + left**2 @ shrunk)[:, None]
        return misses

    ridges = [np.inf, *strengths(squares)]
    errors = np.stack([(missed(ridge) ** 2).sum(axis=1) for ridge in ridges])
    totals = errors.sum(axis=1)
    best = int(totals.argmin())
    doubt = np.sqrt(rows) * errors[best].std(ddof=1) + 1e-6 * totals[best]
    ridge = ridges[int(np.flatnonzero(totals <= totals[best] + doubt)[0])]
    if np.isinf(ridge):
        return missed(ridge), None
    gain = right @ ((values / (squares + ridge))[:, None] * along)
    rest = given.T @ (target - given @ gain) - ridge * gain  # zero but for what rounding has left
    gain += right @ ((right.T @ rest) / (squares + ridge)[:, None])
    return missed(ridge), gain


def _left_over(misses: Array) -> Array:
    """The second moments of what a map misses, from images it was not fitted on (B, F)."""
    rows, width = misses.shape
    share = rows / (rows + width)
    left_over: Array = share / rows * misses.T @ misses
    left_over[np.diag_indices(width)] += (1 - share) * (misses**2).sum() / rows / width
    return left_over


def strengths(squares: Array) -> list[float]:
    """A ridge a decade, strongest first, for eigenvalues in ascending order; the last is as good as none.

    The largest eigenvalue is mostly what all rows have in common. The next one says how they differ.
    """
    largest, spread = squares[-1], squares[-2:][0]
    decades = DECADES + int(np.ceil(np.log10(largest / spread)))
    return [*(largest * 10.0**-decade for decade in range(decades + 1)), EPS**2 * largest]


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


def directions(rows: Array) -> tuple[Array, Array, Array]:
    """The singular value decomposition of rows (B, F), less what is only rounding.

    By the eigenvectors of the smaller of the two products: several times faster than the
    decomposition itself, and exact enough down to a millionth of the largest singular value.

    Returns:
        U (B, r), S (r,) ascending, and V (F, r).
    """
    count, width = rows.shape
    wide = count < width
    squares, vectors = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    vectors = vectors[:, squares > EPS * max(count, width) * squares[-1]]
    others = rows.T @ vectors if wide else rows @ vectors
    values = np.linalg.norm(others, axis=0)
    others = others / values
    return (vectors, values, others) if wide else (others, values, vectors)
