"""The heads against what released classifiers on frozen features computed.

What the arrays are stands in `tests/data/oracles/heads_released.md`. All sizes are read from the
file, so that others of its layout can be put in its place (see `compare.read`).

Not reproduced:
- `slda_*_precision_*`: a head gives no precision matrix; its scores, which are, rest on it.
- `fecam_common_*`: one covariance for all classes that holds the scatter between a task's classes
  and is mixed by numbers of classes. `LDA` is the exact head with one covariance.
- `sklearn_lda_uniform_priors_*`: its covariance weights classes alike, `LDA` samples.
- `fecam_*_covariances_shrunk_*`, `fecam_l2_shrunk_covariances`: a head gives the covariances, by its
  scatters, and the correlations after shrinking.
- columns of classes that have not come yet: a head has none. Where the release scores them 0, the
  test puts the zeros in.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import LDA, FeCAM, Head, HeldOutRidge, Prototypes, StreamingLDA, from_state

from .compare import close, read
from .fecam_forms import AvalancheFeCAM, PilotFeCAM, ResNetFeCAM, released_fecam

Array = NDArray[np.float64]

ORACLE = read("heads_released.npz")
X, TEST = (ORACLE[f"{part}_features"].astype(np.float64) for part in ("train", "test"))
LABELS, TASK = ORACLE["train_labels"].astype(int), ORACLE["train_task"]
WIDTH, TASKS, CLASSES = X.shape[1], int(TASK.max()) + 1, int(LABELS.max()) + 1
SEEN = [int((ORACLE["task_in_which_class_first_comes"] <= task).sum()) for task in range(TASKS)]
RELEASED = "_float32_as_released"


def learn(head: Head, rows: NDArray[Any], features: Array = X) -> None:
    """One update with these rows of the training features."""
    head.update(features[rows], [str(label) for label in LABELS[rows]])


def forget(head: Head, rows: NDArray[Any]) -> None:
    """Forget the classes of a task that is to come, if they return in it.

    In the releases the newest task replaces what is known of its classes; ours adds to that.
    """
    for label in sorted({str(label) for label in LABELS[rows]} & set(head.classes)):
        head.remove(label)


def by_task(order: NDArray[Any] | None = None) -> list[NDArray[Any]]:
    """Rows of each task, in the order in which they came."""
    given = np.arange(len(X)) if order is None else order.astype(int)
    return [given[TASK[given] == task] for task in range(TASKS)]


def order(head: Head) -> NDArray[np.intp]:
    """Places of the classes by their numbers, which is the order of their tasks."""
    return np.argsort([int(name) for name in head.classes])


def scores(head: Head, features: Array = TEST) -> Array:
    return np.asarray(head.scores(features)[:, order(head)])


def means(head: Head) -> Array:
    return np.asarray(head.prototypes[order(head)])


def counts(head: Head) -> Array:
    return np.asarray(head.counts[order(head)], dtype=np.float64)


def weights(head: Head, width: int) -> Array:
    """(C, M) of a head whose scores are linear."""
    return np.asarray((scores(head, np.eye(width)) - scores(head, np.zeros((1, width)))).T)


def after(name: str, task: int) -> NDArray[Any]:
    """An array's value after a task, the columns (or rows) of seen classes only."""
    value = ORACLE[name][task]
    if "scores" in name:
        return np.asarray(value[:, : SEEN[task]])
    by_class = any(part in name for part in ("prototypes", "means", "counts", "weights"))
    return np.asarray(value[: SEEN[task]] if by_class else value)


def unpacked(packed: Array, width: int = WIDTH) -> Array:
    """The symmetric matrix of a packed lower triangle."""
    matrix = np.zeros((width, width))
    matrix[np.tril_indices(width)] = packed
    full: Array = matrix + np.tril(matrix, -1).T
    return full


def predicted(group: str, found: Array, name: str, task: int) -> None:
    """Hold the best of the seen classes to be those of the record."""
    close(group, found.argmax(axis=1), ORACLE[name][task].astype(np.float64))


def test_cosine_prototypes() -> None:
    head = Prototypes()
    for task, rows in enumerate(by_task()):
        forget(head, rows)
        learn(head, rows)
        found = scores(head)
        close("cosine: prototypes", means(head), after("cosine_prototypes_after_task", task))
        close("cosine: scores", found, after("cosine_scores_after_task", task))
        close("cosine: scores, float32", found, after("cosine_scores_after_task" + RELEASED, task), 1e-4)
        predicted("cosine: predictions", found, "cosine_predictions_after_task", task)


def test_nearest_class_mean_is_fecam_without_covariance() -> None:
    head = released_fecam(alpha1=1e18)
    for task, rows in enumerate(by_task()):
        forget(head, rows)
        learn(head, rows)
        predicted("NCM: predictions", scores(head), "ncm_l2_predictions_after_task", task)
    close("NCM: distances", np.sqrt(-scores(head)), ORACLE["ncm_l2_distances"])
    close("NCM: means", head.state().arrays["learned_means"][order(head)], ORACLE["ncm_l2_class_means"])


# --- LDA


def covariance(head: LDA) -> Array:
    """Of all samples; all of them are of classes that the head still knows."""
    return np.asarray(unpacked(head.state().arrays["scatter"]) / head.counts.sum())


def test_the_exact_lda_is_the_batch_solution() -> None:
    """Its own ridge is relative to the trace; here it is brought to the one of the record."""
    shrinkage = 1e-4
    for task in range(TASKS):
        given = np.concatenate(by_task()[: task + 1])
        statistics = LDA()
        learn(statistics, given)
        head, scale = with_ridge(statistics, shrinkage, len(given) * shrinkage)
        learn(head, given)
        close("batch LDA: means", means(head), after("batch_lda_class_means_after_task", task))
        close(
            "batch LDA: covariance", covariance(head), after("batch_lda_pooled_covariance_after_task", task)
        )
        close("batch LDA: scores", scale * scores(head), after("batch_lda_scores_after_task", task))


def with_ridge(learned: LDA, shrinkage: float, ridge: float) -> tuple[LDA, float]:
    """An LDA that solves with (1 - shrinkage) S + ridge I for the scatter S, and the scale of its scores.

    It has to learn the same samples as the one given.
    """
    trace = float(np.trace(unpacked(learned.state().arrays["scatter"])))
    own = float(np.exp(np.round(np.log(trace), 1))) / WIDTH  # what its shrinkage is relative to
    ratio = ridge / (1 - shrinkage) / own
    head = LDA(ratio / (1 + ratio))
    return head, (1 / (1 + ratio)) / (1 - shrinkage)


def test_lda_with_priors_is_scikit_learns() -> None:
    shrinkage, rows, name = 1e-4, np.arange(len(X)), "sklearn_lda_empirical_priors"
    learned = LDA()
    learn(learned, rows)
    found = covariance(learned)
    variance = float(np.trace(found)) / WIDTH
    shrunk = (1 - shrinkage) * found + shrinkage * variance * np.eye(WIDTH)
    close("scikit-learn LDA: covariance", shrunk, ORACLE[f"{name}_covariance"])
    head, scale = with_ridge(learned, shrinkage, shrinkage * variance * len(X))
    learn(head, rows)
    prior = np.log(np.bincount(LABELS) / len(X))
    bias = scale * scores(head, np.zeros((1, WIDTH)))[0] + prior
    close("scikit-learn LDA: weights", scale * weights(head, WIDTH), ORACLE[f"{name}_weights"])
    close("scikit-learn LDA: intercepts", bias, ORACLE[f"{name}_intercepts"])
    close("scikit-learn LDA: scores", scale * scores(head) + prior, ORACLE[f"{name}_test_scores"])


def widened(found: Array) -> Array:
    """With the zeros that the release has for classes to come."""
    return np.pad(found, ((0, 0), (0, CLASSES - found.shape[1])))


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_streaming_lda(size: int) -> None:
    head = StreamingLDA()
    for task, rows in enumerate(by_task(ORACLE["slda_stream_order"])):
        for start in range(0, len(rows), size):
            learn(head, rows[start : start + size])
        found = scores(head)
        close("SLDA: means", means(head), after("slda_stream_class_means_after_task", task))
        close("SLDA: counts", counts(head), after("slda_stream_class_counts_after_task", task))
        close("SLDA: covariance", covariance(head), after("slda_stream_covariance_after_task", task))
        close("SLDA: scores", found, after("slda_stream_scores_after_task", task))
        close(
            "SLDA: covariance, float32",
            covariance(head),
            after("slda_stream_covariance_after_task" + RELEASED, task),
            1e-4,
        )
        close("SLDA: scores, float32", found, after("slda_stream_scores_after_task" + RELEASED, task), 1e-4)
        predicted("SLDA: predictions", found, "slda_stream_predictions_seen_classes_after_task", task)
        predicted(
            "SLDA: predictions, all columns",
            widened(found),
            "slda_stream_predictions_all_columns_after_task",
            task,
        )


def test_streaming_lda_sample_by_sample() -> None:
    head, traces, first = StreamingLDA(), [], []
    for count, row in enumerate(ORACLE["slda_stream_order"].astype(int), 1):
        learn(head, np.array([row]))
        traces.append(np.trace(covariance(head)))
        if count in (1, 2, 3, 5, 10):
            first.append(covariance(head))
    close("SLDA: traces", traces, ORACLE["slda_stream_covariance_trace_after_sample"])
    close(
        "SLDA: first covariances",
        np.stack(first),
        ORACLE["slda_stream_covariance_after_first_1_2_3_5_10_samples"],
    )


def test_streaming_lda_class_by_class() -> None:
    head = StreamingLDA()
    learn(head, ORACLE["slda_by_class_order"].astype(int))
    close("SLDA by class: means", means(head), ORACLE["slda_by_class_class_means_after_all"])
    close("SLDA by class: covariance", covariance(head), ORACLE["slda_by_class_covariance_after_all"])
    close("SLDA by class: scores", scores(head), ORACLE["slda_by_class_scores_after_all"])


@pytest.mark.parametrize("name", ["base", "base_fixed_covariance"])
def test_streaming_lda_from_a_base(name: str) -> None:
    """The release rounds the covariance of the base to float32, hence 2e-6."""
    streams = name == "base"
    group, head = f"SLDA {name.replace('_', ' ')}", StreamingLDA(covariance="base" if streams else "fixed")
    for task, rows in enumerate(by_task(ORACLE["slda_stream_order"])):
        learn(head, rows)
        found, record = scores(head), f"slda_{name}"
        close(f"{group}: scores", found, after(f"{record}_scores_after_task", task), 2e-6)
        close(f"{group}: scores, float32", found, after(f"{record}_scores_after_task{RELEASED}", task), 1e-4)
        predicted(f"{group}: predictions", found, f"{record}_predictions_seen_classes_after_task", task)
        columns = f"{record}_predictions_all_columns_after_task"
        predicted(f"{group}: predictions, all columns", widened(found), columns, task)
        if not streams:
            continue
        close(f"{group}: means", means(head), after("slda_base_class_means_after_task", task), 2e-6)
        close(f"{group}: counts", counts(head), after("slda_base_class_counts_after_task", task))
        close(f"{group}: covariance", covariance(head), after("slda_base_covariance_after_task", task), 2e-6)
        if task == 0:  # by how much shrinking took from what lies off the diagonal
            centred = X[rows] - means(head)[LABELS[rows]]
            apart = ~np.eye(WIDTH, dtype=bool)
            plain, shrunk = (centred.T @ centred / len(rows))[apart], covariance(head)[apart]
            close(
                f"{group}: shrinkage", 1 - shrunk @ plain / (plain @ plain), ORACLE["slda_base_oas_shrinkage"]
            )


# --- ridge


def hidden(x: Array) -> Array:
    """What RanPAC's ridge sees, with the record's random projection in place of one from a seed."""
    return np.maximum(x @ ORACLE["ranpac_random_projection"], 0.0)


RIDGES: dict[str, Callable[[Array], Array]] = {"ranpac": hidden, "ridge": lambda x: x}


@pytest.mark.parametrize("name", RIDGES)
def test_ridge_with_a_hold_out(name: str) -> None:
    train, test, head = RIDGES[name](X), RIDGES[name](TEST), HeldOutRidge(shuffle=False)
    group = {"ranpac": "RanPAC", "ridge": "ridge"}[name]
    width = train.shape[1]
    for task, rows in enumerate(by_task(ORACLE[f"{name}_sample_order"])):
        learn(head, rows, train)
        found, matrix = scores(head, test), weights(head, width)
        arrays = head.state().arrays
        held_out = len(rows) - int(ORACLE[f"{name}_heldout_start_in_task"][task])
        errors = arrays["errors"] / held_out / CLASSES
        sums = (counts(head)[:, None] * means(head)).T
        fitted = train[rows[: len(rows) - held_out]]
        smallest = max(float(np.linalg.eigvalsh(fitted.T @ fitted)[0]), 0.0)
        close(f"{group}: G", unpacked(arrays["gram"], width), after(f"{name}_G_gram_after_task", task))
        expected = ORACLE[f"{name}_Q_feature_by_label_after_task"][task]
        close(f"{group}: Q", np.pad(sums, ((0, 0), (0, CLASSES - sums.shape[1]))), expected)
        for strength, error, recorded, rounded in zip(
            ORACLE["lambda_grid"],
            errors,
            ORACLE[f"{name}_heldout_mse_of_each_lambda"][task],
            ORACLE[f"{name}_heldout_mse_of_each_lambda{RELEASED}"][task],
            strict=True,
        ):
            if strength >= 1e-3:
                close(f"{group}: held-out errors", error, recorded)
            else:  # with more columns than rows the release adds lambda to zeros that are only rounding
                rounding = np.finfo(float).eps * np.sum(fitted**2) / (strength + smallest)
                allowed = 1e-9 if rounding < 1e-9 else 1e-3 * recorded
                close(f"{group}: held-out errors, lambda below 1e-3", error, recorded, allowed)
            if strength >= 0.1:  # the smaller ones are noise in float32
                close(f"{group}: held-out errors, float32", error, rounded, 1e-3 * rounded)
        close(f"{group}: lambda", head.strength, ORACLE[f"{name}_lambda_after_task"][task])
        close(f"{group}: lambda", head.strength, ORACLE[f"{name}_lambda_after_task{RELEASED}"][task])
        close(f"{group}: weights", matrix, after(f"{name}_weights_after_task", task))
        close(f"{group}: scores", found, after(f"{name}_scores_after_task", task))
        close(f"{group}: scores, float32", found, after(f"{name}_scores_after_task{RELEASED}", task), 1e-4)
        predicted(f"{group}: predictions", found, f"{name}_predictions_after_task", task)
        if name == "ranpac":  # PILOT's head takes the cosine with these weights
            cosine = test @ matrix.T / np.linalg.norm(matrix, axis=1)
            cosine /= np.linalg.norm(test, axis=1, keepdims=True)
            close("RanPAC by PILOT: scores", cosine, after("ranpac_pilot_scores_after_task", task))
            predicted("RanPAC by PILOT: predictions", cosine, "ranpac_pilot_predictions_after_task", task)
    # scikit-learn's targets are -1 and 1 in place of 0 and 1.
    theirs = f"sklearn_ridge_classifier_on_{name}_features"
    for ours, others, axis in (
        (matrix, ORACLE[f"{theirs}_weights"], 0),
        (found, ORACLE[f"{theirs}_test_scores"], 1),
    ):
        shift = 2 * ours - others
        expected = np.broadcast_to(shift.mean(axis=axis, keepdims=True), shift.shape)
        close("scikit-learn ridge: up to a constant", shift, expected)
    chosen = ORACLE[f"{theirs}_test_scores"].argmax(axis=1)
    close("scikit-learn ridge: predictions", found.argmax(axis=1), chosen)


# --- FeCAM


# The record's name, whether the features are rooted, and the head.
FECAMS: dict[str, tuple[str, bool, Callable[[], FeCAM]]] = {
    "FeCAM": ("fecam_l2", False, released_fecam),
    "FeCAM, a = 10": ("fecam_l2_alpha10", False, lambda: released_fecam(10, 10)),
    "FeCAM, ResNet": ("fecam_tukey", True, ResNetFeCAM),
    "FeCAM by Avalanche": ("fecam_avalanche", True, AvalancheFeCAM),
    "FeCAM by PILOT": ("fecam_pilot", False, PilotFeCAM),
}


@pytest.mark.parametrize("group", FECAMS)
def test_fecam(group: str) -> None:
    prefix, rooted, make = FECAMS[group]
    train, test = (np.maximum(x, 0.0) if rooted else x for x in (X, TEST))
    head, prototypes = make(), Prototypes()
    for task, rows in enumerate(by_task()):
        forget(head, rows)
        forget(prototypes, rows)
        for part in (rows[1::2], rows[::2]):  # any order will do
            learn(head, part, train)
        learn(prototypes, rows, train)
        found = scores(head, test)
        if prefix == "fecam_tukey" and task == 0:  # there the release takes distances on the sphere
            cosine = scores(prototypes, test)
            expected = ORACLE["fecam_tukey_first_task_distances_to_given_prototypes"]
            close(f"{group}: first task", 2 - 2 * cosine, expected)
            found = cosine
        predicted(f"{group}: predictions", found, f"{prefix}_predictions_after_task", task)
    names = [str(label) for label in range(CLASSES)]
    arrays, last = head.state().arrays, "_after_last_task" if rooted else ""
    close(f"{group}: distances", -found, ORACLE[f"{prefix}_distances{last}"])
    if (rounded := f"{prefix}_distances{last}{RELEASED}") in ORACLE:
        close(f"{group}: distances, float32", -found, ORACLE[rounded], 1e-4)
    correlations = np.stack([head.correlations(name) for name in names])
    recorded = "matrices" if prefix == "fecam_pilot" else "correlations"
    close(f"{group}: correlations", correlations, ORACLE[f"{prefix}_{recorded}"])
    if prefix == "fecam_l2":
        divisors = counts(head) - 1
        scatters = map(unpacked, arrays["scatters"][order(head)])
        covariances = np.stack([s / n for s, n in zip(scatters, divisors, strict=True)])
        close(f"{group}: means", arrays["learned_means"][order(head)], ORACLE["fecam_l2_class_means"])
        close(f"{group}: covariances", covariances, ORACLE["fecam_l2_class_covariances"])
    if prefix == "fecam_tukey":
        close(f"{group}: means", means(head), ORACLE["fecam_tukey_class_means_before_tukey"])
    if prefix == "fecam_avalanche":
        close(f"{group}: means", arrays["learned_means"][order(head)], ORACLE["fecam_avalanche_class_means"])


@pytest.mark.parametrize("make", [ResNetFeCAM, AvalancheFeCAM, PilotFeCAM])
def test_the_other_forms_keep_what_a_head_promises(make: type[FeCAM]) -> None:
    """Any order and cut, merged or not, through a state and back."""
    whole, one, other = make(), make(), make()
    learn(whole, np.arange(len(X)))
    for row in range(0, len(X), 2):
        learn(one, np.array([row]))
    learn(other, np.arange(1, len(X), 2)[::-1])
    one.merge(other)
    np.testing.assert_allclose(scores(from_state(one.state())), scores(whole), rtol=1e-9)
