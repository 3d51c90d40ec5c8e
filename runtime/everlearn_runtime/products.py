"""Products and inverses of matrices that one thread computes, so that a graph's threads keep their cores.

The threads of BLAS go on looking for work for tens of milliseconds after each product, and so do those of a
graph after each run. Where both are at work in turn, each waits for the other: on two cores, a prediction of
16 images takes twice as long with a product of .1 ms that goes to two threads; and where the other core has
work of its own, that product takes 16 ms. So what a device computes beside a graph is cut into pieces that
BLAS leaves to the thread that asks. Where it is cut follows from the shapes alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Multiplications that BLAS does in one thread, in the matrix products and those with a vector of OpenBLAS,
# which numpy brings along.
PIECE = 1 << 18
# From here on, some tenth of a second, several threads save more than they cost.
LARGE = 1 << 29
# The rows and columns of the blocks of a matrix that is inverted.
BLOCK = 64


def square_sum(array: NDArray[np.floating[Any]]) -> float:
    """The sum of the squares of an array's numbers.

    Not by BLAS: from some 10,000 numbers on its threads wait milliseconds for those of a graph that has run.
    """
    numbers = array.ravel()
    return float(np.einsum("i,i->", numbers, numbers))


def row_products(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inner products of rows (n, M) with rows (n, M), (n,)."""
    products: NDArray[np.float64] = np.einsum("ij,ij->i", left, right)
    return products


def product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """``left @ right``, of (B, K) or (K,) and (K, N) or (K,), by one thread unless it is very large.

    >>> left, right = np.ones((700, 30)), np.ones((30, 800))
    >>> bool((product(left, right) == 30).all())
    True
    """
    inner = left.shape[-1]
    rows = len(left) if left.ndim == 2 else 1
    columns = right.shape[1] if right.ndim == 2 else 1
    if not PIECE < rows * inner * columns <= LARGE:
        found: NDArray[np.float64] = left @ right
        return found
    room = max(1, PIECE // inner)
    high = min(rows, max(math.isqrt(room), room // columns))
    wide = max(1, room // high)
    left_rows, right_columns = left.reshape(rows, inner), right.reshape(inner, columns)
    found = np.empty((rows, columns))
    for top in range(0, rows, high):
        for start in range(0, columns, wide):
            part = np.s_[top : top + high, start : start + wide]
            np.matmul(left_rows[part[0]], right_columns[:, part[1]], out=found[part])
    return found.reshape(*left.shape[:-1], *right.shape[1:])


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a symmetric positive definite matrix (M, M), by one thread up to some M = 800.

    By Cholesky's factor L, block by block, and its inverse: as near to the truth as LAPACK's general inverse,
    and as fast in one thread.

    Raises:
        numpy.linalg.LinAlgError: The matrix is singular.
    """
    width = len(matrix)
    if width**3 > LARGE:
        return np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    try:
        back = _inverse_factor(matrix)
    except np.linalg.LinAlgError:  # not positive definite, but for rounding
        return np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    found = np.empty_like(matrix)
    for start in range(0, width, BLOCK):
        own = slice(start, min(start + BLOCK, width))
        found[own, : own.stop] = product(back[start:, own].T, back[start:, : own.stop])
        found[:start, own] = found[own, :start].T
    return found


def _inverse_factor(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of the lower triangular L with L L' = the matrix."""
    factor, back = np.zeros_like(matrix), np.zeros_like(matrix)
    for start in range(0, len(matrix), BLOCK):
        own, below = slice(start, start + BLOCK), slice(start + BLOCK, None)
        column = matrix[start:, own] - product(factor[start:, :start], factor[own, :start].T)
        factor[own, own] = np.linalg.cholesky(column[:BLOCK])
        back[own, own] = np.linalg.inv(factor[own, own])
        factor[below, own] = product(column[BLOCK:], back[own, own].T)
        back[own, :start] = -product(back[own, own], product(factor[own, :start], back[:start, :start]))
    return back
