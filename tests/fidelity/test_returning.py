"""The comparisons of `test_heads.py`, on a record in which classes return in later tasks.

The record is made here, by the releases' rule written out: what is known of a class is of the rows
of the newest task that brought it. Ridge adds up, there as here.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import FeCAM, Head, Prototypes

from . import compare, test_heads

Array = NDArray[np.float64]

CLASSES_OF_TASKS = ((0, 1, 2), (1, 3, 4), (0, 4, 5))
WIDTH, CLASSES, TESTS, EACH = 6, 6, 25, 9
GRID = 10.0 ** np.arange(-8, 9)
RELEASED = "_float32_as_released"


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def distance(x: Array, mean: Array, correlations: Array) -> Array:
    return np.asarray([(row - mean) @ np.linalg.pinv(correlations) @ (row - mean) for row in x])


def shrunk(covariance: Array, diagonal: float, off_diagonal: float) -> Array:
    apart = ~np.eye(len(covariance), dtype=bool)
    more = np.where(apart, off_diagonal * covariance[apart].mean(), diagonal * np.diag(covariance).mean())
    return np.asarray(covariance + more)


def record(seed: int) -> dict[str, NDArray[Any]]:
    """What `test_heads.py` reads of cosine prototypes, nearest class means, FeCAM and ridge."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(classes, EACH) for classes in CLASSES_OF_TASKS])
    tasks = np.repeat(range(len(CLASSES_OF_TASKS)), [EACH * len(classes) for classes in CLASSES_OF_TASKS])
    centres = random.normal(size=(CLASSES, WIDTH))
    train = (centres[labels] + random.normal(size=(len(labels), WIDTH)) + tasks[:, None]).astype(np.float32)
    test = random.normal(size=(TESTS, WIDTH)).astype(np.float32)
    x, probes = train.astype(np.float64), test.astype(np.float64)

    found: dict[str, list[Any]] = {}
    means, units, covariances = np.zeros((CLASSES, WIDTH)), np.zeros((CLASSES, WIDTH)), {}
    for task, classes in enumerate(CLASSES_OF_TASKS):
        for label in classes:
            rows = x[(labels == label) & (tasks == task)]
            means[label], units[label] = rows.mean(axis=0), unit(rows).mean(axis=0)
            covariances[label] = np.cov(unit(rows).T)
        seen = sorted(covariances)
        scores = np.full((TESTS, CLASSES), np.nan)
        scores[:, seen] = unit(probes) @ unit(means[seen]).T
        found.setdefault("cosine_prototypes_after_task", []).append(means.copy())
        found.setdefault("cosine_scores_after_task", []).append(scores)
        found.setdefault("cosine_scores_after_task" + RELEASED, []).append(scores)
        found.setdefault("cosine_predictions_after_task", []).append(np.nanargmax(scores, axis=1))
        distances = np.linalg.norm(unit(probes)[:, None] - units[seen], axis=2)
        found.setdefault("ncm_l2_predictions_after_task", []).append(distances.argmin(axis=1))
        for name, diagonal, off_diagonal in (("fecam_l2", 1, 0), ("fecam_l2_alpha10", 10, 10)):
            correlations = []
            for label in seen:
                matrix = shrunk(covariances[label], diagonal, off_diagonal)
                correlations.append(matrix / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix))))
            own = zip(units[seen], correlations, strict=True)
            theirs = np.stack([distance(unit(probes), mean, matrix) for mean, matrix in own], axis=1)
            found.setdefault(f"{name}_predictions_after_task", []).append(theirs.argmin(axis=1))
            last: dict[str, Any] = {
                "distances": theirs,
                "distances" + RELEASED: theirs,
                "correlations": correlations,
            }
            found |= {f"{name}_{what}": list(value) for what, value in last.items()}
    found["ncm_l2_distances"], found["ncm_l2_class_means"] = list(distances), list(units)
    found["fecam_l2_class_means"] = list(units)
    found["fecam_l2_class_covariances"] = [covariances[label] for label in range(CLASSES)]
    return {
        "train_features": train,
        "train_labels": labels,
        "train_task": tasks,
        "test_features": test,
        "task_in_which_class_first_comes": np.array(
            [min(t for t, classes in enumerate(CLASSES_OF_TASKS) if c in classes) for c in range(CLASSES)]
        ),
        **ridge(x, probes, labels, tasks, random),
        **{name: np.array(value) for name, value in found.items()},
    }


def ridge(
    x: Array, probes: Array, labels: NDArray[Any], tasks: NDArray[Any], random: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Ridge on the features as they are, lambda from the last fifth of the newest task."""
    order = np.concatenate([random.permutation(np.flatnonzero(tasks == t)) for t in np.unique(tasks)])
    gram, sums = np.zeros((WIDTH, WIDTH)), np.zeros((WIDTH, CLASSES))
    found: dict[str, list[Any]] = {}
    for task in np.unique(tasks):
        rows = order[tasks[order] == task]
        h, y, first = x[rows], np.eye(CLASSES)[labels[rows]], int(0.8 * len(rows))
        gram, sums = gram + h.T @ h, sums + h.T @ y
        errors = []
        for strength in GRID:
            system = h[:first].T @ h[:first] + strength * np.eye(WIDTH)
            fitted = np.linalg.solve(system, h[:first].T @ y[:first])
            errors.append(((h[first:] @ fitted - y[first:]) ** 2).mean())
        chosen = GRID[int(np.argmin(errors))]
        weights = np.linalg.solve(gram + chosen * np.eye(WIDTH), sums)
        seen = np.unique(labels[tasks <= task])
        scores = np.full((TESTS, CLASSES), np.nan)
        scores[:, seen] = probes @ weights[:, seen]
        for what, value in {
            "ridge_G_gram_after_task": gram,
            "ridge_Q_feature_by_label_after_task": sums,
            "ridge_heldout_start_in_task": first,
            "ridge_heldout_mse_of_each_lambda": errors,
            "ridge_heldout_mse_of_each_lambda" + RELEASED: errors,
            "ridge_lambda_after_task": chosen,
            "ridge_lambda_after_task" + RELEASED: chosen,
            "ridge_weights_after_task": weights.T,
            "ridge_scores_after_task": scores,
            "ridge_scores_after_task" + RELEASED: scores,
            "ridge_predictions_after_task": np.nanargmax(scores, axis=1),
        }.items():
            found.setdefault(what, []).append(value)
    plus_minus = 2 * np.eye(CLASSES)[labels] - 1
    theirs = np.linalg.solve(gram + chosen * np.eye(WIDTH), x.T @ plus_minus)
    return {
        "lambda_grid": GRID,
        "ridge_sample_order": order,
        "sklearn_ridge_classifier_on_ridge_features_weights": theirs.T,
        "sklearn_ridge_classifier_on_ridge_features_test_scores": probes @ theirs,
        **{name: np.array(value) for name, value in found.items()},
    }


@pytest.fixture
def comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`test_heads.py` on a record of this file's, which does not count as numbers of a release."""
    np.savez(tmp_path / "heads_released.npz", allow_pickle=False, **record(0))
    monkeypatch.setenv("EVERLEARN_ORACLES", str(tmp_path))
    monkeypatch.setattr(compare, "LARGEST", {})
    spec = test_heads.__spec__
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_newest_task_replaces_what_was_known(comparisons: ModuleType) -> None:
    comparisons.test_cosine_prototypes()
    comparisons.test_nearest_class_mean_is_fecam_without_covariance()
    for group in ("FeCAM", "FeCAM, a = 10"):
        comparisons.test_fecam(group)


def test_ridge_adds_up(comparisons: ModuleType) -> None:
    comparisons.test_ridge_with_a_hold_out("ridge")


@pytest.mark.parametrize("make", [Prototypes, FeCAM])
def test_by_default_a_class_that_returns_is_one_of_all_its_samples(
    make: type[Head], comparisons: ModuleType
) -> None:
    pooled, at_once = make(), make()
    for rows in comparisons.by_task():
        comparisons.learn(pooled, rows)
    comparisons.learn(at_once, np.arange(len(comparisons.X)))
    compare.close("pooled", comparisons.scores(pooled), comparisons.scores(at_once))
    with pytest.raises(AssertionError, match="off by up to"):
        compare.close(
            "pooled", comparisons.means(pooled), comparisons.after("cosine_prototypes_after_task", -1)
        )
