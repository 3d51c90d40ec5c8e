"""Several learners, each on its own features, weighted for every sample by how sure they are."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads.base import Head
from everlearn_runtime.heads.classes import Classes
from everlearn_runtime.heads.drift import Drift, side_by_side
from everlearn_runtime.heads.registry import HeadState, make, own_kind
from everlearn_runtime.heads.sums import Joined

if TYPE_CHECKING:
    from typing_extensions import Self


class Aggregate(Head):
    """One head for each feature section; the surer of them counts for more.

    With z_i the scores of head i times its sharpness, and H_i the entropy of softmax(z_i),

        scores = sum_i a_i z_i,    (a_1, ..., a_k) = softmax(-gamma [H_1, ..., H_k])

    for every sample on its own, from its features alone: no test label is ever looked at. Each
    head keeps statistics of its own, of its own section, and all that changes them (update,
    remove, merge, carry) reaches every head; the order of the classes is one and the same object's in
    all of them. It is exact where all its heads are.

    Args:
        sections: widths of the sections, in order; they add up to the feature width.
        heads: one for each section, without classes yet; or ``{"kind": ..., "options": ...}``.
        gamma: how much surer counts; at 0 all heads count alike.
        sharpness: factor of the scores before the softmax, one for all heads or one for each. It
            works as an inverse temperature: ridge scores lie within 0 and 1, of which a softmax
            alone would make nearly the same entropy for everything.

    Raises:
        ValueError: Arguments that make no sense, or do not go together.

    Source: SAFE, arXiv 2411.02175, section 4.3 (aggregation of the slow and the fast learner).

    >>> from everlearn_runtime.heads import LDA
    >>> head = Aggregate([1, 1], [LDA(), LDA()])
    >>> head.update(np.array([[0.0, 0.0], [0.2, 0.0], [1.0, 0.0], [1.2, 0.1]]), ["a", "a", "b", "b"])
    >>> head.predict(np.array([[1.1, 0.0]]))
    ['b']
    """

    kind: ClassVar[str] = "aggregate"
    _sharpness: tuple[float, ...]

    def __init__(
        self,
        sections: Sequence[int],
        heads: Sequence[Head | Mapping[str, Any]],
        gamma: float = 1.0,
        sharpness: float | Sequence[float] = 10.0,
    ) -> None:
        super().__init__()
        if any(type(width) is not int or width < 1 for width in sections) or len(sections) < 2:
            raise ValueError(f"sections is {sections!r}; give two or more widths, for example [192, 192]")
        if len(heads) != len(sections):
            raise ValueError(f"{len(heads)} heads for {len(sections)} sections; give one each")
        self._sections = list(sections)
        self._heads = [_made(head) for head in heads]
        for head, width in zip(self._heads, sections, strict=True):
            head._check_width(width)
            head._take_names(self._classes)
        self.sharpness = sharpness
        self._gamma = float(gamma)
        if not 0 <= self._gamma < np.inf:
            raise ValueError(f"gamma is {gamma!r}; give a number of at least 0")
        if not all(head.exact for head in self._heads):
            self.exact = False  # type: ignore[misc]  # the whole is what its parts are
        if not all(head.carries for head in self._heads):
            self.carries = False  # type: ignore[misc]

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {
            "sections": self._sections,
            "heads": [{"kind": own_kind(type(head)), "options": head.options} for head in self._heads],
            "gamma": self._gamma,
            "sharpness": list(self._sharpness),
        }

    @classmethod
    def read_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out that nothing is shared; what shares is `SharedAggregate` now."""
        return {name: value for name, value in options.items() if (name, value) != ("shared", False)}

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads, one for each section; to be read, not changed."""
        return tuple(self._heads)

    @property
    def sharpness(self) -> tuple[float, ...]:
        """Factor of each head's scores; set it to one number for all, or one for each."""
        return self._sharpness

    @sharpness.setter
    def sharpness(self, sharpness: float | Sequence[float]) -> None:
        each = [sharpness] * len(self._heads) if isinstance(sharpness, (int, float)) else sharpness
        if len(each) != len(self._heads) or not all(0 < value < np.inf for value in each):
            raise ValueError(f"sharpness is {sharpness!r}; give a positive number, or one for each section")
        self._sharpness = tuple(float(value) for value in each)

    @property
    def answers_soon(self) -> bool:
        """See `Head`: where all its heads do."""
        return all(head.answers_soon for head in self._heads)

    def removes_exactly(self, label: str) -> bool:
        """See `Head`: where all its heads do."""
        return self.exact and all(head.removes_exactly(label) for head in self._heads)

    def to_removable(self) -> Self:
        """See `Head`: with all its heads so, each at its own cost."""
        if not self.exact:
            return super().to_removable()
        heads = [head.to_removable() for head in self._heads]
        made = copy.deepcopy(self)
        made._heads = heads
        made._take_names(made._classes)
        return made

    def _score(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        each = [
            sharpness * head.scores(rows[:, columns])
            for (head, columns), sharpness in zip(self._parts(), self._sharpness, strict=True)
        ]
        scores, _ = aggregate(np.stack(each), self._gamma)
        return scores

    def _distances(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of the sections' own."""
        each = [head.distances(rows[:, columns]) for head, columns in self._parts()]
        return np.asarray(sum(each), dtype=np.float64)

    def _parts(self) -> Iterator[tuple[Head, slice]]:
        """Each head, and the columns that it sees."""
        start = 0
        for head, width in zip(self._heads, self._sections, strict=True):
            yield head, slice(start, start + width)
            start += width

    def _check_width(self, width: int) -> None:
        if sum(self._sections) != width:
            raise ValueError(
                f"features are {width} wide; the sections {self._sections} make {sum(self._sections)}"
            )

    def _start_shared(self, width: int) -> None:
        for head, own in zip(self._heads, self._sections, strict=True):
            head._set_width(own)

    def _grow_shared(self, new: int) -> None:
        for head in self._heads:
            head._make_room()

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        names = [self._classes[code] for code in codes.tolist()]
        for head, columns in self._parts():
            head.update(rows[:, columns], names)

    def _take_names(self, classes: Classes) -> None:
        super()._take_names(classes)
        for head in self._heads:
            head._take_names(classes)

    def _check_merge(self, other: Head) -> None:
        super()._check_merge(other)
        assert isinstance(other, Aggregate)
        for head, another in zip(self._heads, other._heads, strict=True):
            head._check_merge(another)

    def _merge_shared(self, other: Aggregate, joined: Joined) -> None:
        for head, another in zip(self._heads, other._heads, strict=True):
            head.merge(another)
        self._take_names(self._classes)  # a merged head is a copy, its names too

    def _drift(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> Drift:
        return side_by_side(
            [head._drift(before[:, columns], after[:, columns]) for head, columns in self._parts()]
        )

    def _carry_shared(self, before: NDArray[np.float64], after: NDArray[np.float64], drift: Drift) -> None:
        for head, columns in self._parts():
            head._move(before[:, columns], after[:, columns], drift.part(columns))

    def _settle_shared(self) -> None:
        for head in self._heads:
            head.settle()

    def _remove_shared(self, place: int) -> None:
        for head in self._heads:
            head._catch_up()
        for head in self._heads:
            head._drop_rows(place)

    def _shared_nbytes(self) -> int:
        return sum(head.nbytes for head in self._heads)

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        return {
            f"{place}.{name}": array
            for place, head in enumerate(self._heads)
            for name, array in head.state().arrays.items()
        }

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for place, (head, section) in enumerate(zip(self._heads, self._sections, strict=True)):
            own = section if width else 0
            arrays = {"counts": (classes,), "means": (classes, own), **head._shared_shapes(classes, own)}
            shapes |= {f"{place}.{name}": shape for name, shape in arrays.items()}
        return shapes

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for place, head in enumerate(self._heads):
            own = {
                name.removeprefix(f"{place}."): array
                for name, array in arrays.items()
                if name.startswith(f"{place}.")
            }
            state = HeadState(head.kind, self.classes, head.options, own)
            self._heads[place] = type(head).from_state(state)
        self._take_names(self._classes)


def aggregate(scores: NDArray[np.float64], gamma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight several learners' scores by how little entropy their softmax has.

    Args:
        scores: (k, B, C), of k learners.
        gamma: see `Aggregate`.

    Returns:
        The weighted sum (B, C), and the weights (k, B), which add up to 1.

    >>> both, weights = aggregate(np.array([[[9.0, 0.0]], [[0.0, 0.0]]]), gamma=100.0)
    >>> weights.round(3).tolist(), both.round(3).tolist()
    ([[1.0], [0.0]], [[9.0, 0.0]])
    """
    weights = _softmax(-gamma * entropy(scores), axis=0)
    return (weights[:, :, None] * scores).sum(axis=0), weights


def entropy(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """-sum_c p_c log(p_c + 1e-9) of p, the softmax over the last axis: (..., C) to (...).

    >>> entropy(np.zeros((1, 2))).round(4)
    array([0.6931])
    """
    chances = _softmax(scores, axis=-1)
    total: NDArray[np.float64] = -(chances * np.log(chances + 1e-9)).sum(axis=-1)
    return total


def _softmax(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(values - values.max(axis=axis, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=axis, keepdims=True)
    return shares


def _made(head: Head | Mapping[str, Any]) -> Head:
    if isinstance(head, Head):
        if head.classes:
            raise ValueError(
                f"a {head.kind} head that already knows {len(head.classes)} classes; give a new one"
            )
        return copy.deepcopy(head)
    if set(head) != {"kind", "options"} or not isinstance(head["kind"], str):
        raise ValueError(f"{dict(head)!r} is no head; give one, or its kind and its options")
    return make(head["kind"], head["options"])
