"""Learners that all work on one sum of statistics, as in SAFE's released code."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.aggregate import Aggregate
from everlearn_runtime.heads.base import Head
from everlearn_runtime.heads.sums import Joined


class SharedAggregate(Aggregate):
    """`Aggregate` as SAFE was released: to compare with it. `Aggregate` itself keeps the heads apart.

    By a mistake of the release, all heads work on one sum of statistics, to which the last head
    adds first. So a head also regresses on the features of the other sections, and what it knows
    depends on the order of updates: it is not ``exact``, and merging adds up two such results.

    It stands here, and not beside the method that needs it, because a device has to know the head
    of a bundle, and has nothing else of everlearn than this package.

    Args:
        sections: widths of the sections, all the same.
        heads: one for each section, all alike and with a projection.
        gamma: see `Aggregate`.
        sharpness: see `Aggregate`.

    Raises:
        ValueError: Arguments that make no sense, or do not go together.

    Source: SAFE's released code (MIFA-Lab/SAFE, commit c043ce3).
    """

    kind: ClassVar[str] = "shared_aggregate"
    exact: ClassVar[bool] = False

    def __init__(
        self,
        sections: Sequence[int],
        heads: Sequence[Head | Mapping[str, Any]],
        gamma: float = 1.0,
        sharpness: float | Sequence[float] = 10.0,
    ) -> None:
        super().__init__(sections, heads, gamma, sharpness)
        made = self.options["heads"]
        alike = all(one == made[0] for one in made) and len(set(sections)) == 1
        if not alike or not made[0]["options"].get("projection"):
            raise ValueError(
                "shared statistics need equally wide sections and heads that are alike, each with a "
                f"projection; got sections {list(sections)} and heads {made}"
            )
        if made[0]["options"].get("removable"):
            raise ValueError("shared statistics cannot be taken apart; give heads without removable=True")

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        names = [self._classes[code] for code in codes.tolist()]
        same = {id(self._classes): self._classes}
        for place, (_, columns) in reversed(list(enumerate(self._parts()))):
            # Go on from whatever the head before it made of the sums.
            head = copy.deepcopy(self._heads[(place + 1) % len(self._heads)], dict(same))
            head.update(rows[:, columns], names)
            self._heads[place] = head
