"""A linear classifier that goes on learning by gradient descent: the head that forgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.heads.base import Head
from everlearn_runtime.heads.checks import check_labels
from everlearn_runtime.heads.growing import PerClass
from everlearn_runtime.heads.statistics import Solution
from everlearn_runtime.heads.sums import Joined, group_sums

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
    usual_temperature: ClassVar[float] = 0.02
    exact: ClassVar[bool] = False
    carries: ClassVar[bool] = False
    _weights = PerClass[np.float64]()
    _bias = PerClass[np.float64]()

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
        self,
        features: ArrayLike,
        labels: Sequence[str],
        *,
        classes: Sequence[str],
        weights: ArrayLike,
        bias: ArrayLike,
    ) -> None:
        """Count labelled features as :meth:`update` does, but take over what was trained elsewhere.

        Args:
            features, labels: as in :meth:`update`.
            classes: whose the rows of ``weights`` are, in any order: those that the head knows, and
                those of ``labels``, each once.
            weights: (C, F).
            bias: (C,).

        Raises:
            ValueError: As in :meth:`update`, or classes and shapes that do not fit.
        """
        rows, names = self.check(features, labels)
        given = {name: row for row, name in enumerate(check_labels(classes))}
        wanted = list(dict.fromkeys((*self.classes, *names)))
        if len(given) != len(classes) or set(given) != set(wanted):
            raise ValueError(
                f"the rows are of {list(classes)}; give one for each class that the head knows or is "
                f"taught: {wanted}"
            )
        new, offsets = np.array(weights, np.float64), np.array(bias, np.float64)
        if new.shape != (len(given), rows.shape[1]) or offsets.shape != (len(given),):
            raise ValueError(
                f"weights {new.shape} and bias {offsets.shape}; "
                f"expected ({len(given)}, {rows.shape[1]}) and ({len(given)},)"
            )
        if not (np.isfinite(new).all() and np.isfinite(offsets).all()):
            raise ValueError("weights or bias hold NaN or infinite values")
        order = [given[name] for name in wanted]
        new, offsets = new[order], offsets[order]
        self._set_width(rows.shape[1])
        found, counts, sums = group_sums(rows, np.array(self._places(names), dtype=np.intp))
        self._keep(self._join(found, counts, sums / counts[:, None]))
        self._weights, self._bias = new, offsets
        self._solution = None

    def _check_merge(self, other: Head) -> None:
        """Refuse: what gradient descent has learned does not add."""
        raise ValueError(
            "linear heads are trained by gradient descent and cannot be merged; take LDA or Ridge"
        )

    def _solve(self) -> Solution:
        return self._weights.T, self._bias, 1

    def _start_shared(self, width: int) -> None:
        self._weights = np.zeros((0, width))

    def _learn_shared(
        self,
        rows: NDArray[np.float64],
        means: NDArray[np.float64],
        codes: NDArray[np.intp],
        joined: Joined,
    ) -> None:
        step = self._rate / (
            len(rows) * max(float((rows**2).sum(axis=1).mean()), float(np.finfo(np.float32).tiny))
        )
        descend = _descend_by_scores if 2 * len(rows) < rows.shape[1] else _descend
        weights, bias = descend(rows, codes, self._weights, self._bias, step, self._steps)
        # In place, for what is set as a whole has no room for new classes.
        self._weights[:], self._bias[:] = weights, bias

    def _shared_arrays(self) -> dict[str, NDArray[Any]]:
        return {"weights": self._weights.copy(), "bias": self._bias.copy()}

    def _shared_shapes(self, classes: int, width: int) -> dict[str, tuple[int, ...]]:
        return {"weights": (classes, width), "bias": (classes,)}

    def _restore_shared(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._weights, self._bias = arrays["weights"], arrays["bias"]


Trained = tuple[NDArray[np.float64], NDArray[np.float64]]


def _error(scores: NDArray[np.float64], codes: NDArray[np.intp]) -> NDArray[np.float64]:
    """The softmax of scores (B, C) less one-hot targets: the gradient of the cross-entropy in the scores."""
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    error: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
    error[np.arange(len(codes)), codes] -= 1
    return error


def _descend(
    rows: NDArray[np.float64],
    codes: NDArray[np.intp],
    weights: NDArray[np.float64],
    bias: NDArray[np.float64],
    step: float,
    steps: int,
) -> Trained:
    """Weights (C, F) and bias (C,) after some steps on rows (B, F) of the classes at these places."""
    weights, bias = weights.copy(), bias.copy()
    for _ in range(steps):
        error = _error(rows @ weights.T + bias, codes)
        weights -= step * error.T @ rows
        bias -= step * error.sum(axis=0)
    return weights, bias


def _descend_by_scores(
    rows: NDArray[np.float64],
    codes: NDArray[np.intp],
    weights: NDArray[np.float64],
    bias: NDArray[np.float64],
    step: float,
    steps: int,
) -> Trained:
    """The same, for few rows.

    A step moves the weights by the errors times the rows, and so the scores of the rows by their
    inner products (B, B) times the errors. So the weights are read once, at the start, and move by
    the sum of all errors in the end: B (F + steps B) C products in place of steps B F C.
    """
    scores, products = rows @ weights.T + bias, rows @ rows.T + 1  # the 1 is the bias's
    total = np.zeros_like(scores)
    for _ in range(steps):
        error = _error(scores, codes)
        total -= step * error
        scores -= step * products @ error
    moved: NDArray[np.float64] = total.T @ rows
    moved += weights
    return moved, bias + total.sum(axis=0)
