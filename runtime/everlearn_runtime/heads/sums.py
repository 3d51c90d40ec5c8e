"""Rows of features, groups of them, and how their means are joined."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.products import product

# So many samples are joined to their classes faster in a loop than all at once.
FEW = 3


class Joined(NamedTuple):
    """What joining groups of samples into classes does.

    Attributes:
        places: of the classes (k,).
        counts: of their samples before (k,).
        means: theirs before (k, F).
        between: rows (at most k, F), one for each class that had samples, whose outer products
            are what the within-class scatter gains by the joining: n1 n2 / (n1 + n2) of the outer
            product of the difference of means (Chan, Golub and LeVeque 1983, eq. 2.1).
        counts_after: of their samples with the new ones (k,).
        means_after: theirs with the new ones (k, F).
    """

    places: NDArray[np.intp]
    counts: NDArray[np.int64]
    means: NDArray[np.float64]
    between: NDArray[np.float64]
    counts_after: NDArray[np.int64]
    means_after: NDArray[np.float64]


def join(
    places: NDArray[np.intp],
    before: NDArray[np.int64],
    means_before: NDArray[np.float64],
    counts: NDArray[np.int64],
    means: NDArray[np.float64],
) -> Joined:
    """Join groups of samples into classes, one group each.

    Args:
        places: of the classes (k,), each once.
        before: how many samples they have (k,).
        means_before: theirs (k, F).
        counts: how many samples come to them (k,).
        means: of those (k, F).
    """
    gap = means - means_before
    share = counts / (before + counts)
    scaled = np.sqrt(before * share)[:, None] * gap
    between = scaled if before.all() else scaled[before > 0]
    return Joined(places, before, means_before, between, before + counts, means_before + share[:, None] * gap)


def join_each(
    counts: NDArray[np.int64], means: NDArray[np.float64], rows: NDArray[np.float64], places: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Join samples into their classes, one after the other, to the bit as each alone.

    Args:
        counts: samples of all classes (C,); written.
        means: theirs (C, F); written.
        rows: the samples (B, F).
        places: of their classes.

    Returns:
        Each sample less the mean of its class's earlier samples, (B, F), and their number, (B,).
    """
    gaps, earlier = np.empty_like(rows), np.empty(len(rows), dtype=np.int64)
    rest = list(range(len(rows)))
    if len(rows) > FEW:
        turns = turn_of_each(places)
        order, sizes = np.argsort(turns, kind="stable"), np.bincount(turns)
        codes, done = np.array(places), 0
        for size in sizes[sizes > FEW].tolist():  # of a turn's classes no two are the same
            now = order[done : done + size]
            done += size
            own = codes[now]
            earlier[now] = before = counts[own]
            counts[own] = before + 1
            mean = means[own]
            gap = rows[now] - mean
            gaps[now] = gap
            gap *= (1 / (before + 1))[:, None]
            mean += gap
            means[own] = mean
        rest = order[done:].tolist()
    for index in rest:  # the same arithmetic, with less ado
        place = places[index]
        earlier[index] = count = int(counts[place])
        counts[place] = count + 1
        mean = means[place]
        mean += np.subtract(rows[index], mean, out=gaps[index]) * (1 / (count + 1))
    return gaps, earlier


def turn_of_each(places: list[int]) -> list[int]:
    """How many samples of the same class come before each.

    >>> turn_of_each([4, 7, 4, 4])
    [0, 0, 1, 2]
    """
    seen: dict[int, int] = {}
    turns = []
    for place in places:
        turn = seen.get(place, 0)
        seen[place] = turn + 1
        turns.append(turn)
    return turns


def group_sums(
    rows: NDArray[np.float64], places: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.float64]]:
    """Sum the rows (B, F) of each group.

    Returns the places that occur, ascending (k,), how often (k,), and the sums (k, F).
    """
    order = np.argsort(places, kind="stable")
    found, starts, counts = np.unique(places[order], return_index=True, return_counts=True)
    return found, counts, np.add.reduceat(rows[order], starts, axis=0)


def groups(places: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The numbers of the rows of each group, in their order; the groups by place, ascending.

    >>> groups(np.array([7, 3, 7]))
    [array([1]), array([0, 2])]
    """
    order = np.argsort(places, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(places[order])) + 1)


def squared_distances(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared Euclidean distances of rows (B, F) to centres (C, F), (B, C).

    >>> squared_distances(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0], [3.0, 3.0]]))
    array([[25.,  1.]])
    """
    middle = centres.mean(axis=0)  # so that what all have in common cancels before it is squared
    left, right = rows - middle, centres - middle
    distances: NDArray[np.float64] = product(left, right.T)
    distances *= -2
    distances += (left**2).sum(axis=1)[:, None]
    distances += (right**2).sum(axis=1)
    np.maximum(distances, 0.0, out=distances)
    return distances


def unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (B, F) brought to length one; a row of zeros stays."""
    # Scaled first, so that squaring neither overflows nor vanishes.
    scaled = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: NDArray[np.float64] = scaled / np.where(norm == 0, 1.0, norm)
    return unit
