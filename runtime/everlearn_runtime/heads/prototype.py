"""Class means compared by cosine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Head
from everlearn_runtime.heads.statistics import Solution
from everlearn_runtime.heads.sums import unit_rows

if TYPE_CHECKING:
    from typing_extensions import Self


class Prototypes(Head):
    """Section-weighted cosine to class means: logit_c = sum_s m_s cos(z[s], w_c[s]).

    With several sections (NTK-CL, arXiv 2407.17120, section 5: pretrained, averaged and current
    features side by side) each is compared on its own and weighted. One section over the whole
    width is the plain cosine prototype classifier. The mean is of features that were not
    normalised; a section of zeros has cosine 0. ``remove`` is exact: nothing is shared.

    A class that returns has the mean of all its samples. In SimpleCIL's and RanPAC's released code
    those of the newest task replace the earlier ones; ``remove`` before the update does the same.

    Args:
        sections: Widths of the sections, in order; their sum is the feature width. None: one.
        weights: One weight m_s per section; None: all 1.

    Raises:
        ValueError: Sections or weights that make no sense.

    >>> head = Prototypes(sections=[2, 1], weights=[0.3, 0.1])
    >>> head.update(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]), ["mug", "pen"])
    >>> head.scores(np.array([[5.0, 0.0, 1.0]])).round(3)
    array([[ 0.4, -0.1]])
    """

    kind: ClassVar[str] = "prototypes"
    usual_temperature: ClassVar[float] = 0.05

    def __init__(self, sections: Sequence[int] | None = None, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if sections is None and weights is not None:
            raise ValueError("weights without sections; give sections=[...] of the same length")
        if sections is not None and any(not isinstance(width, (int, np.integer)) for width in sections):
            raise ValueError(f"sections is {sections!r}; give whole numbers, for example [192, 192]")
        self._sections = None if sections is None else [int(width) for width in sections]
        self._weights = None if weights is None else [float(weight) for weight in weights]
        if self._sections is not None and (not self._sections or min(self._sections) < 1):
            raise ValueError(f"sections is {sections!r}; give widths of at least 1, for example [192, 192]")
        if self._sections is not None and self._weights is not None:
            if len(self._weights) != len(self._sections):
                raise ValueError(
                    f"{len(self._weights)} weights for {len(self._sections)} sections; give one each"
                )
            if not np.isfinite(self._weights).all() or not any(self._weights):
                raise ValueError(f"weights is {weights!r}; give finite numbers, not all zero")

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {"sections": self._sections, "weights": self._weights}

    def removes_exactly(self, label: str) -> bool:
        """See `Head`: all that is kept is kept for each class alone."""
        self._classes.place(label)
        return True

    def to_removable(self) -> Self:
        """See `Head`: it is so as it is."""
        return copy.deepcopy(self)

    @property
    def movable(self) -> bool:
        """Yes: means."""
        return True

    def _check_width(self, width: int) -> None:
        if self._sections is not None and sum(self._sections) != width:
            raise ValueError(
                f"features are {width} wide; the sections {self._sections} make {sum(self._sections)}"
            )

    def _map(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        unit = np.empty_like(rows)
        start = 0
        for width in self._sections or [rows.shape[1]]:
            unit[:, start : start + width] = unit_rows(rows[:, start : start + width])
            start += width
        return unit

    def _solve(self) -> Solution:
        sections = self._sections or [self._means.shape[1]]
        weights = np.repeat(self._weights or np.ones(len(sections)), sections)
        return (self._map(self._means) * weights).T, np.zeros(len(self._means)), 1
