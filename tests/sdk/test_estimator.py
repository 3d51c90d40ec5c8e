"""Heads as scikit-learn's estimators, by scikit-learn's own checks."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from everlearn.choices import HEADS
from everlearn.estimator import HeadClassifier
from everlearn_runtime.heads import Head, HeldOutRidge, Prototypes, Ridge

NARROW: list[Head] = [
    Ridge(projection=30),
    HeldOutRidge(True, projection=30),
]  # in place of those on 2,000 random features
PLAIN: list[str] = [name for name in HEADS if name not in ("random-ridge", "held-out-ridge")]


CHECKED = [*map(HeadClassifier, PLAIN), *map(HeadClassifier, NARROW)]


@parametrize_with_checks(CHECKED)  # type: ignore[untyped-decorator]
def test_scikit_learns_own_checks(estimator: HeadClassifier, check: Any) -> None:
    check(estimator)  # none is expected to fail


@pytest.fixture(scope="module")
def samples() -> tuple[Any, Any]:
    """Digits by their names, shuffled."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[:600]
    return features[order] / 16, np.array([f"digit {label}" for label in labels])[order]


@pytest.mark.parametrize("head", PLAIN)
def test_learning_in_parts_is_learning_at_once(head: str, samples: tuple[Any, Any]) -> None:
    features, labels = samples
    whole, parts = HeadClassifier(head).fit(features[:400], labels[:400]), HeadClassifier(head)
    order = np.argsort(labels[:400], kind="stable")  # classes arrive one after the other
    for part in np.array_split(order, 7):
        parts.partial_fit(features[part], labels[part])
    assert parts.classes_.tolist() == whole.classes_.tolist() == sorted(set(labels))
    near = parts.decision_function(features[400:]), whole.decision_function(features[400:])
    assert np.allclose(*near, rtol=1e-5, atol=1e-6 * np.abs(near[1]).max())
    assert whole.score(features[400:], labels[400:]) > 0.85


def test_it_answers_as_the_head_does(samples: tuple[Any, Any]) -> None:
    features, labels = samples
    head = Prototypes()
    learned = HeadClassifier(head).fit(features[:400], labels[:400])
    assert head.classes == ()  # the one that was given stays as it is
    head.update(features[:400], labels[:400].tolist())
    assert learned.predict(features[400:]).tolist() == head.predict(features[400:])
    shares = learned.predict_proba(features[400:])
    expected = head.probabilities(head.scores(features[400:]))
    columns = [head.classes.index(name) for name in learned.classes_]
    assert np.allclose(shares, expected[:, columns], rtol=1e-12)


def test_in_pipelines_grids_and_folds(samples: tuple[Any, Any]) -> None:
    features, labels = samples
    pipeline = make_pipeline(StandardScaler(), HeadClassifier("prototypes"))
    assert cross_val_score(pipeline, features, labels, cv=3).min() > 0.8
    grid = GridSearchCV(HeadClassifier(), {"head": ["prototypes", "lda"]}, cv=3).fit(features, labels)
    assert grid.best_params_ == {"head": "lda"}
    learned = HeadClassifier("ridge", random_state=3).fit(features, labels)
    again = clone(learned)
    assert not hasattr(again, "head_")
    assert again.get_params() == {"head": "ridge", "random_state": 3}


def test_mistakes_are_told(samples: tuple[Any, Any]) -> None:
    features, labels = samples
    with pytest.raises(ValueError, match="no head is named 'ldaa'; take one of prototypes, lda, "):
        HeadClassifier("ldaa").fit(features, labels)
    learned = HeadClassifier("lda").partial_fit(features[:50], labels[:50], classes=np.unique(labels))
    with pytest.raises(ValueError, match=r"y has labels that are not among classes: \['digit 1'"):
        learned.partial_fit(features, labels, classes=["digit 0"])
    assert learned.head_.counts.sum() == 50
    with pytest.raises(ValueError, match="give one that knows no class yet"):
        HeadClassifier(learned.head_).fit(features, labels)
