"""What every head is: statistics that add, and scores that follow from them in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.arrays import all_finite
from everlearn_runtime.heads.confidence import Confidence, Judgement, Look, Opinion, look_at, probabilities
from everlearn_runtime.heads.registry import register
from everlearn_runtime.heads.statistics import Solution
from everlearn_runtime.heads.sums import squared_distances
from everlearn_runtime.heads.transfer import Transferable
from everlearn_runtime.products import product


class Head(Transferable):
    """Class statistics on features, learned exactly and in any order.

    Every head keeps the number of samples and the mean feature of each class (means rather than
    sums: Chan's update of a mean is the one that also gives exact scatter). A batch update, the
    same samples one by one, in another order, or spread over two heads that are merged give the
    same statistics up to rounding, in every head that is ``exact``. A call that raises leaves the
    head as it was.

    A head does not lock: callers that share one between threads hold a lock of their own.

    A head of one's own is a subclass with a ``kind`` of its own, ``options`` and :meth:`_solve` or
    :meth:`_score`; what it keeps beside counts and means it works on in the hooks at the end of
    `ClassStatistics` (learning, merging, forgetting) and of `Transferable` (features that change). By
    being defined it is known to :func:`from_state`, and so to bundles, states and `Aggregate`, in
    every process that has imported it.

    Attributes:
        kind: its name in a :class:`HeadState`, of this class alone.
        exact: updates are sums: independent of the order and of the cut into batches, and
            mergeable. A head that cannot promise that says False, and its docstring why.
        carries: :meth:`carry` moves all that it scores by. A head whose weights were trained says False.
        usual_temperature: T of softmax(scores / T) for as long as too few images were judged: what others
            came to on the bundled backbone's features.
    """

    usual_temperature: ClassVar[float] = 1.0

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kind" in vars(cls):
            register(cls)

    def scores(self, features: ArrayLike) -> NDArray[np.float64]:
        """Score every class; the largest is the prediction.

        Args:
            features: (B, F), any real dtype.

        Returns:
            float64 (B, C), columns in the order of ``classes``.

        Raises:
            ValueError: The head knows no class, the features are not as in :meth:`update`, or its
                statistics contradict each other so that a score would not be finite.
        """
        return self._answer(features, self._score, "scores")

    def distances(self, features: ArrayLike) -> NDArray[np.float64]:
        """How far each row lies from each class: what tells the known from the unknown.

        Unlike a score, a distance compares a row with a class without a look at the other classes. It
        does not grow with the number of samples. Heads with a within-class scatter give the squared
        Mahalanobis distance to the class's mean, under the shrunk covariance that they score with,
        which lies about F for a row of the class; `FeCAM` under the class's own correlations. For all
        others it is the squared Euclidean distance to the class's mean.

        Args:
            features: (B, F), any real dtype.

        Returns:
            float64 (B, C), at least 0, columns in the order of ``classes``.

        Raises:
            ValueError: As in :meth:`scores`.
        """
        return self._answer(features, self._distances, "distances")

    def predict(self, features: ArrayLike) -> list[str]:
        """The best class of each row of features (B, F); raises like :meth:`scores`."""
        names = self.classes
        return [names[column] for column in self._answer(features, self._rank, "scores").argmax(axis=1)]

    @property
    def temperature(self) -> float:
        """T of softmax(scores / T): the judged images' own once they are enough, before the usual one."""
        return self._confidence.temperature if self._confidence.calibrated else self.usual_temperature

    def probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities (B, C) of scores (B, C) that this head gave, of images of classes that it knows.

        They are calibrated as far as `Confidence.calibrated` says so.
        """
        return probabilities(scores, self.temperature)

    def look(self, features: ArrayLike) -> Look:
        """How rows lie to the classes: how strange and how remote each is.

        Args:
            features: (B, F), any real dtype.

        Raises:
            ValueError: As in :meth:`scores`.
        """
        distances = self.distances(features)
        return look_at(distances, squared_distances(self._rows(features), self._means))

    def strangeness(self, features: ArrayLike) -> NDArray[np.float64]:
        """How little each row (B, F) is like any class, (B,), at least 0; raises like :meth:`scores`.

        Rows of known classes mostly give less than others, see
        :func:`~everlearn_runtime.heads.confidence.strangeness`.
        """
        return self.look(features).strangeness

    def opinion(self, features: ArrayLike, labels: Sequence[str]) -> Opinion:
        """What this head, as it is, thinks of labelled rows, before it learns them; nothing changes.

        Args:
            features: (B, F), any real dtype, which the head has not learned from.
            labels: B class names; rows of a class that is not known yet are left out.

        Raises:
            ValueError: As in :meth:`update`, or as in :meth:`scores` once a class is known.
        """
        rows, names = self.check(features, labels)
        known = np.array([index for index, name in enumerate(names) if name in self._classes], dtype=np.intp)
        truth = np.array([self._classes.place(names[index]) for index in known], dtype=np.intp)
        if not len(known):
            return Opinion(known, truth, np.zeros((0, len(self._classes))), Look(np.zeros(0), np.zeros(0)))
        return Opinion(known, truth, self.scores(rows[known]), self.look(rows[known]))

    def judge(self, features: ArrayLike, labels: Sequence[str]) -> Judgement | None:
        """The :meth:`opinion` of labelled rows as what :meth:`note` takes; None if no class is known."""
        return self.opinion(features, labels).judgement

    def calibrate(self, features: ArrayLike, labels: Sequence[str]) -> None:
        """Judge held-out rows, in place of whatever was judged before.

        Args:
            features: (B, F), any real dtype, which the head has not learned from.
            labels: B class names; rows of a class that is not known are left out.

        Raises:
            ValueError: As in :meth:`update`, or no class is known.
        """
        judgement = self.judge(features, labels)
        if judgement is None:
            raise ValueError(
                f"none of {len(labels)} rows to calibrate by is of a class that this head knows, of "
                f"{', '.join(map(repr, self.classes[:5])) or 'classes that it has learned'}"
            )
        self._confidence = Confidence()
        self.note(judgement)

    @property
    def answers_soon(self) -> bool:
        """Whether scores cost little now; after an update some heads solve at length before they answer."""
        return True

    def _answer(
        self,
        features: ArrayLike,
        answer: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        what: str,
    ) -> NDArray[np.float64]:
        """What is asked of checked rows, all samples having been worked in."""
        if not self._classes:
            raise ValueError("this head knows no class yet; update it with labelled features first")
        rows = self._rows(features)
        self._catch_up()
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = answer(rows)
        if not all_finite(found):
            raise ValueError(f"the head's statistics give {what} that are not finite; restore an older state")
        return found

    def _score(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (B, C) of checked features (B, F); a head whose scores are not linear overrides this."""
        if self._solution is None:
            self._solution = self._solve()
        weights, bias, factor = self._solution
        scores: NDArray[np.float64] = product(self._map(rows), weights)
        scores += bias
        scores *= factor
        return scores

    def _rank(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores (B, C), each row perhaps times a positive number, where that costs less."""
        return self._score(rows)

    def _distances(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distances (B, C) of checked features (B, F)."""
        return squared_distances(rows, self._means)

    def _solve(self) -> Solution:
        """Weights (M, C), bias (C,) and a factor, from the statistics alone."""
        raise NotImplementedError

    def _map(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Features (B, F) to what the weights multiply (B, M)."""
        return rows
