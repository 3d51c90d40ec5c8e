"""Random features: ReLU of random projections, drawn from a seed and never stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.products import product

# Single samples are projected so many at a time: see `RandomFeatures.each`.
SLOTS = 16


class RandomFeatures:
    """max(R' x, 0) with R (F, M) of independent N(0, 1) entries (RanPAC, arXiv 2307.02251, section 4).

    R is drawn anew from the seed where it is needed: the stream of ``np.random.RandomState`` is frozen
    (NEP 19).

    Args:
        count: M, the number of random features, at least 1.
        seed: of R, 0 to 2^32 - 1.
        scaled: divide by 2 sqrt(F), so that random features stand beside the features that they are made
            of, which a metric shrunk to the identity compares: over R the mean of their squares is an
            eighth of that of the F features. Of 1/4, 1/2 and 1 in place of the 1/2, held-out training
            images of Split Tiny-ImageNet-B were named best so.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(self, count: int, seed: int, scaled: bool = False) -> None:
        if type(count) is not int or count < 1:
            raise ValueError(f"projection is {count!r}; give None or a number of features, at least 1")
        self.count = count
        self.seed = check_seed(seed)
        self.scaled = scaled
        self.matrix: NDArray[np.float64] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """A head's options that make these features anew."""
        return {"projection": self.count, "seed": self.seed}

    def draw(self, width: int) -> NDArray[np.float64]:
        """R for features of this width, (F, M)."""
        return np.random.RandomState(self.seed).standard_normal((width, self.count))

    def of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The random features (B, M) of features (B, F)."""
        if self.matrix is None:
            self.matrix = self.draw(rows.shape[1])
        hidden: NDArray[np.float64] = np.maximum(product(rows, self.matrix), 0.0)
        if self.scaled:
            hidden *= 0.5 / np.sqrt(rows.shape[1])
        return hidden

    def of_each(self, rows: NDArray[np.float64], seen: int) -> NDArray[np.float64]:
        """Map single samples (B, F) that follow ``seen`` others, each to the same bits in any company.

        The product of a matrix and one row has to read the whole matrix and so takes several times
        a row's share of a product with many. But the last bits of a product depend on how many rows
        it has, and must not depend on how many happen to wait. So it always has as many: the sample
        that comes n-th stands in row n modulo SLOTS, and rows that are not needed are zero.
        """
        hidden, done = np.empty((len(rows), self.count)), 0
        while done < len(rows):
            first = (seen + done) % SLOTS
            size = min(SLOTS - first, len(rows) - done)
            block = np.zeros((SLOTS, rows.shape[1]))
            block[first : first + size] = rows[done : done + size]
            hidden[done : done + size] = self.of(block)[first : first + size]
            done += size
        return hidden


def random_features(projection: int | None, seed: int, scaled: bool = False) -> RandomFeatures | None:
    """Those that a head's options ask for; None for none.

    Raises:
        ValueError: As `RandomFeatures`; of the seed also where there is no projection.
    """
    check_seed(seed)
    return None if projection is None else RandomFeatures(projection, seed, scaled)


def check_seed(seed: int) -> int:
    """The seed, or a ValueError."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; give a whole number from 0 to 2^32 - 1")
    return seed
