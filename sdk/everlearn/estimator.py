"""Heads as scikit-learn's estimators: for pipelines, cross-validation and grids on features of any origin.

    from sklearn.model_selection import cross_val_score
    from everlearn.estimator import HeadClassifier

    cross_val_score(HeadClassifier("ridge"), features, labels)

Unlike most estimators this one learns on: ``partial_fit`` takes classes that it has never heard of, and with
heads that are ``exact`` it gives what ``fit`` on all samples together would have given, but for rounding. All
of scikit-learn's checks of estimators pass, none is excepted; there are no sample weights.
"""

import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from everlearn.choices import HEADS
from everlearn_runtime.heads import Head


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A head as a classifier of scikit-learn.

    Args:
        head: a name among `everlearn.choices.HEADS`, or a head that knows nothing yet, which is copied.
        random_state: a whole number, the seed of random features, where the head of this name has any.

    Attributes:
        head_: the head that has learned. Its classes are the positions of labels in the order of their
            arrival, as text.
        classes_: the labels seen so far, sorted.
        n_features_in_: F.

    >>> features, labels = np.array([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.2]]), [0, 0, 1, 1]
    >>> learned = HeadClassifier("prototypes").fit(features, labels)
    >>> learned.partial_fit([[2.0, 2.0]], [7]).predict([[1.9, 2.1], [0.0, 1.0]])
    array([7, 0])
    """

    head_: Head
    classes_: NDArray[Any]
    _arrived: NDArray[Any]  # labels in the order of the head's classes
    _columns: NDArray[np.intp]  # of the head's scores, in the order of classes_

    def __init__(self, head: str | Head = "lda", *, random_state: int = 0) -> None:
        self.head = head
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "HeadClassifier":  # noqa: N803
        """Learn samples, and nothing else.

        Args:
            X: features (N, F), real numbers.
            y: N labels, of any type that scikit-learn takes.

        Raises:
            ValueError: no such features or labels, or no such head.
        """
        return self._learn(X, y, None, reset=True)

    def partial_fit(
        self,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        classes: ArrayLike | None = None,
    ) -> "HeadClassifier":
        """Learn more samples, of old and new classes alike.

        Args:
            X, y: as in `fit`.
            classes: that may come; none need be named, but if they are, others are refused.

        Raises:
            ValueError: as in `fit`, or another number of features than before, or a label that is not among
                ``classes``.
        """
        return self._learn(X, y, classes, reset=not hasattr(self, "head_"))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Scores (N, C) in the order of ``classes_``; of two classes (N,), positive for the second."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Probabilities (N, C) in the order of ``classes_``, see `Head.probabilities`; not calibrated."""
        scores = self._scores(X)
        return self.head_.probabilities(scores)

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """The best label of each row."""
        scores = self._scores(X)
        labels: NDArray[Any] = self.classes_[scores.argmax(axis=1)]
        return labels

    def _learn(
        self,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        classes: ArrayLike | None,
        *,
        reset: bool,
    ) -> "HeadClassifier":
        rows, labels = validate_data(self, X, y, dtype=np.float64, reset=reset)
        check_classification_targets(labels)
        known: NDArray[Any] = np.array([], dtype=labels.dtype) if reset else self._arrived
        if classes is not None and (odd := np.setdiff1d(labels, np.asarray(classes))).size:
            raise ValueError(f"y has labels that are not among classes: {odd[:5].tolist()}")
        new = [label for label in dict.fromkeys(labels.tolist()) if label not in set(known.tolist())]
        arrived = np.concatenate([known, np.asarray(new, dtype=labels.dtype)]) if new else known
        place = {label: str(number) for number, label in enumerate(arrived.tolist())}
        head: Head = self._fresh() if reset else self.head_
        head.update(rows, [place[label] for label in labels.tolist()])
        self.head_, self._arrived = head, arrived
        self.classes_, self._columns = np.unique(arrived, return_index=True)
        return self

    def _fresh(self) -> Head:
        if isinstance(self.head, Head):
            if self.head.classes:
                raise ValueError(f"head is {self.head!r}; give one that knows no class yet")
            return copy.deepcopy(self.head)
        if self.head not in HEADS:
            raise ValueError(f"no head is named {self.head!r}; take one of {', '.join(HEADS)}, or a head")
        return HEADS[self.head](self.random_state)

    def _scores(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        scores: NDArray[np.float64] = self.head_.scores(rows)[:, self._columns]
        return scores
