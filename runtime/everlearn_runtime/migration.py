"""From one model to the next: what a bundle says of the one that it replaces, and what follows.

A device's head is the old bundle's and what the device has learned since. Only the second is carried
over: the new bundle's own head speaks for what the old bundle knew. All are sums, so that the new
head is the new bundle's, merged with the difference of the two old ones, moved by a map from the
old graph's features to the new one's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from everlearn_runtime.heads import Head, HeadState, from_state
from everlearn_runtime.heads.checks import check_arrays
from everlearn_runtime.heads.drift import Drift
from everlearn_runtime.heads.transfer import Pair

FIELDS = ("bundle", "model", "head", "classes", "images", "explained", "agreement")
PAIR = ("before", "after")  # names of the arrays of features by both graphs
OLD = "old."  # before the names of the old head's arrays


@dataclass(frozen=True)
class Carried:
    """What came of a device's head.

    Args:
        head: In the new model's features.
        learned: Samples that the device had learned itself, by class.
        forgotten: The old bundle's classes that the device had forgotten; the new head has none of
            the new bundle's samples of them.
    """

    head: Head
    learned: Mapping[str, int]
    forgotten: tuple[str, ...]


@dataclass(frozen=True)
class Migrated:
    """What was carried over to a new model, and how good the map is that did it.

    Args:
        kept: The old state, as it was; it goes with the old bundle.
        learned: Samples that the device had learned itself, by class: what was carried.
        forgotten: The old bundle's classes that the device had forgotten, and has not now either.
        images: How many the map was fitted on.
        explained: Share of the variance of the new features that the map explains, on images that
            it was not fitted on: 1 is all, 0 as good as their mean.
        agreement: Share of such images that the old bundle's head, carried, puts into the class that it
            had put them into by their old features; None if it knew no class.
    """

    kept: Path
    learned: Mapping[str, int]
    forgotten: tuple[str, ...]
    images: int
    explained: float
    agreement: float | None


@dataclass(frozen=True)
class Replaced:
    """The bundle that another one replaces, as the other one has it.

    Args:
        bundle: Its id.
        model: sha256 of its graph and head, which states name.
        state: Of its head.
        drift: From its features (F) to the new graph's (G): ``linear`` (F, G).
        images: How many this was fitted on.
        explained: See :class:`Migrated`.
        agreement: Likewise.
        pair: Features of those images by both graphs, (images, F) and (images, G), where the head
            ``expands``.
    """

    bundle: str
    model: str
    state: HeadState
    drift: Drift
    images: int
    explained: float
    agreement: float | None
    pair: Pair | None = None

    def head(self) -> Head:
        """The old bundle's head, fresh.

        Raises:
            ValueError: Its arrays do not fit together.
        """
        return from_state(self.state)

    def moved(self, own: Head, like: Head) -> Head:
        """What a head of the old graph knows, in the new one's features; see `Head.moved`."""
        return own.moved(self.drift, like, self.pair if own.expands else None)

    def says(self) -> dict[str, Any]:
        """What stands in the manifest."""
        return {
            "bundle": self.bundle,
            "model": self.model,
            "head": {"kind": self.state.kind, "options": self.state.options},
            "classes": list(self.state.classes),
            "images": self.images,
            "explained": self.explained,
            "agreement": self.agreement,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What stands in the file of the map."""
        pair = {} if self.pair is None else dict(zip(PAIR, self.pair, strict=True))
        old = {OLD + name: array for name, array in self.state.arrays.items()}
        return {**self.drift._asdict(), **pair, **old}

    @classmethod
    def read(cls, says: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], width: int) -> Replaced:
        """The reverse of :meth:`says` and :meth:`arrays`.

        Args:
            says: Checked by :func:`check_says`.
            arrays: As they were read.
            width: G.

        Raises:
            ValueError: They do not fit together.
        """
        old = {name[len(OLD) :]: array for name, array in arrays.items() if name.startswith(OLD)}
        rest = {name: array for name, array in arrays.items() if not name.startswith(OLD)}
        rows = rest["linear"].shape[0] if "linear" in rest and rest["linear"].ndim == 2 else 0
        shapes: dict[str, tuple[int, ...]] = {
            "linear": (rows, width),
            "offset": (width,),
            "left_over": (width, width),
        }
        if PAIR[0] in rest:
            shapes |= {PAIR[0]: (says["images"], rows), PAIR[1]: (says["images"], width)}
        found = check_arrays(rest, shapes)
        pair = (found.pop(PAIR[0]), found.pop(PAIR[1])) if PAIR[0] in rest else None
        state = HeadState(says["head"]["kind"], tuple(says["classes"]), says["head"]["options"], old)
        replaced = cls(
            says["bundle"],
            says["model"],
            state,
            Drift(**found),
            says["images"],
            float(says["explained"]),
            None if says["agreement"] is None else float(says["agreement"]),
            pair,
        )
        head = replaced.head()
        head.check_movable()
        if head.expands != (pair is not None):
            raise ValueError(
                "the features by both graphs go with a head that has random features, and only so"
            )
        if head.width not in (None, rows):
            raise ValueError(f"the map is of {rows} features, the old head of {head.width}")
        return replaced


def carry_onto(onto: Head, own: Head, forgotten: tuple[str, ...], device: Head) -> Carried:
    """Merge what a device has learned by itself into a head that its model came with.

    Args:
        onto: That head, which is changed.
        own: What the device has learned, in the same features.
        forgotten: Classes that the device had forgotten; what ``onto`` knows of them goes.
        device: All that the device knows.
    """
    for name in forgotten:
        if name in onto.classes:
            onto.remove(name)
    onto.merge(own)
    onto.settle()
    learned = dict(zip(own.classes, map(int, own.counts), strict=True))
    return Carried(onto, learned, tuple(name for name in forgotten if name not in device.classes))


def check_says(says: Any) -> None:
    """Raise a ValueError if this is not what :meth:`Replaced.says` gives."""
    if not isinstance(says, dict) or set(says) != set(FIELDS):
        raise ValueError(f"expected the fields {', '.join(FIELDS)}")
    head, classes = says["head"], says["classes"]
    sound = (
        all(isinstance(says[name], str) for name in ("bundle", "model"))
        and isinstance(head, dict)
        and set(head) == {"kind", "options"}
        and isinstance(head["kind"], str)
        and isinstance(head["options"], dict)
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and type(says["images"]) is int
        and says["images"] > 0
        and _is_number(says["explained"])
        and (says["agreement"] is None or _is_number(says["agreement"]))
    )
    if not sound:
        raise ValueError("a field has the wrong type")


def _is_number(value: object) -> bool:
    return type(value) is float and math.isfinite(value)
