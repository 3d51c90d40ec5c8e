"""A linear classifier that goes on learning by gradient descent: the head that forgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.heads.base import Head, Joined, Solution

if TYPE_CHECKING:
    from collections.abc import Sequence


class Linear(Head):
    """Scores W x + b, trained by gradient descent on the cross-entropy of whatever comes.

    What most people do first, and a baseline only: each update fits the batch at hand, so classes
    that are not in it are forgotten, the result depends on the order, and heads cannot be merged.
    A new class starts at zero. A step is ``rate`` over the mean squared length of the rows, so
    that it does not depend on the scale of the features.

    Args:
        rate: of the descent.
        steps: for each update, all rows in each.

    Raises:
        ValueError: An argument out of range.

    >>> head = Linear()
    >>> head.update(np.eye(2), ["a", "b"])
    >>> head.predict(np.eye(2))
    ['a', 'b']
    """

    kind: ClassVar[str] = "linear"
    exact: ClassVar[bool] = False

    def __init__(self, rate: float = 1.0, steps: int = 20) -> None:
        super().__init__()
        if not 0 < rate < np.inf:
            raise ValueError(f"rate is {rate!r}; give a positive number")
        if type(steps) is not int or steps < 1:
            raise ValueError(f"steps is {steps!r}; give a whole number of at least 1")
        self._rate = float(rate)
        self._steps = steps
        self._weights = np.zeros((0, 0))
        self._bias = np.zeros(0)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON."""
        return {"rate": self._rate, "steps": self._steps}

    def learn_as(
        self, features: ArrayLike, labels: Sequence[str], weights: ArrayLike, bias: ArrayLike
    ) -> None:
        """Count labelled features as :meth:`update` does, but take over what was trained elsewhere.

        Args:
            features, labels: as in :meth:`update`.
            weights: (C, F), rows in the order of ``classes`` as it is with these labels.
            bias: (C,).

        Raises:
            ValueError: As in :meth:`update`, or shapes that do not fit.
        """
        rows, names = self.check(features, labels)
        count = len(dict.fromkeys((*self.classes, *names)))
        new, offsets = np.array(weights, np.float64, order="C"), np.array(bias, np.float64)
        if new.shape != (count, rows.shape[1]) or offsets.shape != (count,):
            raise ValueError(
                f"weights {new.shape} and bias {offsets.shape}; "
                f"expected ({count}, {rows.shape[1]}) and ({count},)"
            )
        if not (np.isfinite(new).all() and np.isfinite(offsets).all()):
            raise ValueError("weights or bias hold NaN or infinite values")
        self.update(rows, names)
        self._weights, self._bias = new, offsets

    def merge(self, other: Head) -> NoReturn:
        """Refuse: what gradient descent has learned does not add.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "linear heads are trained by gradient descent and cannot be merged; take LDA or Ridge"
        )

    def _solve(self) -> Solution:
        return self._weights.T, self._bias, 1

    def _start_shared(self, width: int) -> None:
        self._weights = np.zeros((0, width))

    def _grow_shared(self, new: int) -> None:
        self._weights = np.concatenate([self._weights, np.zeros((new, self._weights.shape[1]))])
        self._bias = np.concatenate([self._bias, np.zeros(new)])

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        targets = np.eye(len(self._bias))[codes]
        step = self._rate / (len(rows) * max(float((rows**2).sum(axis=1).mean()), np.finfo(np.float32).tiny))
        weights, bias = self._weights.copy(), self._bias.copy()
        for _ in range(self._steps):
            scores = rows @ weights.T + bias
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            error = odds / odds.sum(axis=1, keepdims=True) - targets
            weights -= step * error.T @ rows
            bias -= step * error.sum(axis=0)
        self._weights, self._bias = weights, bias

    def _remove_shared(self, place: int) -> None:
        self._weights = np.delete(self._weights, place, axis=0)
        self._bias = np.delete(self._bias, place)

    def _shared_nbytes(self) -> int:
        return self._weights.nbytes + self._bias.nbytes

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        return {"weights": self._weights.copy(), "bias": self._bias.copy()}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return {"weights": (classes, width), "bias": (classes,)}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._weights, self._bias = arrays["weights"], arrays["bias"]
