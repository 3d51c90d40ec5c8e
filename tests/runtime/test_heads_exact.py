"""Each head against a batch solution that is written out here, and against released code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from everlearn_runtime import LDA, FeCAM, Head, HeldOutRidge, Prototypes, Ridge, from_state
from everlearn_runtime.heads.drift import affine_drift, strengths

from ..fidelity.fecam_forms import PilotFeCAM  # of the features themselves, so that maps of them are exact

Array = NDArray[np.float64]
RTOL = 1e-9
seeds = st.integers(0, 2**32 - 1)


def data(seed: int, n: int, width: int = 6, classes: int = 4) -> tuple[Array, Array, NDArray[np.int64]]:
    """Features (n, F), probes (9, F) and labels 0..3, every class present if n allows."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(n) % classes)
    features = random.normal(size=(classes, width))[labels] * 2 + random.normal(size=(n, width)) - 1
    return features, random.normal(size=(9, width)), labels


def names(labels: NDArray[np.int64]) -> list[str]:
    return [str(label) for label in labels]


def in_batches(head: Head, x: Array, y: NDArray[np.int64], size: int) -> None:
    for start in range(0, len(x), size):
        head.update(x[start : start + size], names(y[start : start + size]))


def columns(head: Head, probes: Array) -> dict[str, Array]:
    return dict(zip(head.classes, head.scores(probes).T, strict=True))


def assert_columns(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert set(found) == set(wanted)
    scale = max(np.abs(column).max() for column in wanted.values())
    for name, column in wanted.items():
        np.testing.assert_allclose(found[name], column, rtol=RTOL, atol=RTOL * scale)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(1, 100), size=st.integers(1, 100))
def test_prototypes_are_the_weighted_cosine(seed: int, n: int, size: int) -> None:
    x, probes, y = data(seed, n)
    head = Prototypes(sections=[4, 2], weights=[0.3, 0.1])
    in_batches(head, x, y, size)

    def cosine(a: Array, b: Array) -> Array:
        return np.asarray(a @ b / np.linalg.norm(a, axis=1) / np.linalg.norm(b))

    wanted = {}
    for label in np.unique(y):
        mean = x[y == label].mean(axis=0)
        wanted[str(label)] = 0.3 * cosine(probes[:, :4], mean[:4]) + 0.1 * cosine(probes[:, 4:], mean[4:])
    assert_columns(columns(head, probes), wanted)


def test_a_section_of_zeros_has_cosine_zero() -> None:
    head = Prototypes(sections=[2, 2])
    head.update(np.array([[0.0, 0, 1, 0], [1, 0, 0, 0]]), ["a", "b"])
    np.testing.assert_array_equal(head.scores(np.array([[3.0, 0, 5, 0], [0, 0, 0, 0]])), [[1, 1], [0, 0]])


def ladder(trace: float) -> float:
    """What the ridge is relative to: the trace, to the nearest tenth in its logarithm."""
    return float(np.exp(np.round(np.log(trace), 1)))


def lda_scores(
    x: Array, y: NDArray[np.int64], probes: Array, shrinkage: float, gone: tuple[int, ...]
) -> dict[str, Array]:
    means = {label: x[y == label].mean(axis=0) for label in np.unique(y)}
    centred = x - np.stack([means[label] for label in y])
    scatter, width = centred.T @ centred, x.shape[1]
    if np.trace(scatter) > 1e-18:
        ridge = shrinkage * ladder(np.trace(scatter)) / width
        precision = len(x) * np.linalg.inv((1 - shrinkage) * scatter + ridge * np.eye(width))
    else:
        precision = np.eye(width)
    return {
        str(label): probes @ precision @ mean - mean @ precision @ mean / 2
        for label, mean in means.items()
        if label not in gone
    }


@settings(max_examples=25, deadline=None)
@given(
    seed=seeds, n=st.integers(1, 150), size=st.integers(1, 100), shrinkage=st.sampled_from([1e-3, 1e-2, 1.0])
)
def test_lda_is_the_batch_solution(seed: int, n: int, size: int, shrinkage: float) -> None:
    x, probes, y = data(seed, n)
    head = LDA(shrinkage)
    in_batches(head, x, y, size)
    assert_columns(columns(head, probes), lda_scores(x, y, probes, shrinkage, ()))


@settings(max_examples=15, deadline=None)
@given(seed=seeds, n=st.integers(8, 100))
def test_lda_keeps_the_scatter_of_a_removed_class(seed: int, n: int) -> None:
    x, probes, y = data(seed, n)
    head = LDA()
    head.update(x, names(y))
    head.remove("2")
    assert_columns(columns(head, probes), lda_scores(x, y, probes, 1e-2, gone=(2,)))


@pytest.mark.parametrize("copies", [1, 7])
def test_lda_without_scatter_is_nearest_mean(copies: int) -> None:
    x, probes, _ = data(0, 4)
    head = LDA()
    for row, name in zip(x, "abcd", strict=True):
        head.update(np.repeat(row[None], copies, axis=0), [name] * copies)
    nearest = ((probes[:, None] - x) ** 2).sum(axis=2).argmin(axis=1)
    assert head.predict(probes) == ["abcd"[number] for number in nearest]
    np.testing.assert_allclose(head.scores(probes), probes @ x.T - (x**2).sum(axis=1) / 2, rtol=RTOL)


def test_lda_is_exact_far_from_the_origin() -> None:
    x, probes, y = data(1, 120)
    near, far = LDA(), LDA()
    in_batches(near, x, y, 7)
    in_batches(far, x + 1e5, y, 7)
    near_scatter, far_scatter = near.state().arrays["scatter"], far.state().arrays["scatter"]
    np.testing.assert_allclose(far_scatter, near_scatter, atol=1e-6 * np.abs(near_scatter).max())
    assert far.predict(probes + 1e5) == near.predict(probes)


def fecam_scores(
    x: Array, y: NDArray[np.int64], probes: Array, alphas: tuple[float, float], few: tuple[float, float]
) -> Array:
    """A column for each label, in ascending order."""
    unit, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, probes))
    columns, diagonal, width = [], np.eye(x.shape[1], dtype=bool), x.shape[1]
    labels, (pooling, correction) = np.unique(y), few
    gaps = np.concatenate([unit[y == label] - unit[y == label].mean(axis=0) for label in labels])
    pooled = gaps.T @ gaps / max(len(y) - len(labels), 1)
    for label in labels:
        own = unit[y == label]
        more = len(own) - 1
        raw = np.cov(own.T) if more else np.zeros((width, width))
        share = pooling * width / (pooling * width + more) if pooling else 0.0
        raw = (1 - share) * raw + share * pooled
        correlations = np.eye(width)
        if raw.any():
            covariance = raw + np.where(
                diagonal, alphas[0] * np.diag(raw).mean(), alphas[1] * raw[~diagonal].mean()
            )
            deviation = np.sqrt(np.diag(covariance))
            correlations = covariance / deviation / deviation[:, None]
        gap = asked - own.mean(axis=0)
        distances = (gap * np.linalg.solve(correlations, gap.T).T).sum(axis=1)
        noise = np.trace(np.linalg.solve(correlations, raw)) / len(own)
        columns.append(correction * noise - distances)
    return np.stack(columns, axis=1)


@settings(max_examples=25, deadline=None)
@given(
    seed=seeds,
    n=st.integers(1, 100),
    size=st.integers(1, 100),
    alphas=st.sampled_from([(1.0, 0.0), (10.0, 10.0)]),
    few=st.sampled_from([(0.0, 0.0), (1.0, 1.0), (0.3, 0.5)]),
    gone=st.sampled_from([None, 1]),
)
def test_fecam_is_the_batch_solution(
    seed: int, n: int, size: int, alphas: tuple[float, float], few: tuple[float, float], gone: int | None
) -> None:
    """Classes of one sample are among them, and a class that goes leaves nothing behind."""
    x, probes, y = data(seed, n)
    head = FeCAM(*alphas, *few)
    in_batches(head, x, y, size)
    if n > 4 and gone is not None:
        head.remove(str(gone))
        x, y = x[y != gone], y[y != gone]
    wanted = fecam_scores(x, y, probes, alphas, few)
    assert_columns(columns(head, probes), dict(zip(names(np.unique(y)), wanted.T, strict=True)))


def test_fecam_solves_anew_for_the_classes_of_an_update_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x, probes, y = data(0, 60)
    head, inverse = FeCAM(pooling=0), np.linalg.inv
    calls: list[Array] = []

    def counted(matrix: Array) -> Array:
        calls.append(matrix)
        return np.asarray(inverse(matrix))

    monkeypatch.setattr(np.linalg, "inv", counted)
    for label, solved in ((None, 4), (None, 4), (2, 5), (0, 6)):
        if label is not None:
            head.update(x[y == label], names(y[y == label]))
        elif not calls:
            head.update(x, names(y))
        head.scores(probes)
        assert len(calls) == solved


def test_fecam_of_like_samples_is_nearest_mean() -> None:
    x, probes, _ = data(0, 3)
    head = FeCAM()
    for row, name in zip(x, "abc", strict=True):
        for scale in (1.0, 1 / 3, 0.7):
            head.update(scale * row[None], [name])
    unit, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, probes))
    distances = ((asked[:, None] - unit) ** 2).sum(axis=2)
    np.testing.assert_allclose(head.scores(probes), -distances, rtol=RTOL)


def test_the_newest_tasks_hold_out_forgets_and_the_sum_remembers() -> None:
    random = np.random.default_rng(0)
    clear, noise = random.normal(size=(2, 100, 20))
    sign, chance = names((clear[:, 0] > 0).astype(int)), names(random.integers(2, size=100))
    newest, remembering = HeldOutRidge(), HeldOutRidge(remember=True)
    for head in (newest, remembering):
        head.update(100 * clear, sign)
        assert head.strength < 1e7
        head.update(noise, chance)
    assert newest.strength == 1e8  # chance is best predicted by nothing
    assert remembering.strength < 1e7
    np.testing.assert_allclose(
        remembering.state().arrays["errors"],
        sum(learned.state().arrays["errors"] for learned in (one(100 * clear, sign), one(noise, chance))),
        rtol=RTOL,
    )


def one(x: Array, labels: list[str]) -> HeldOutRidge:
    head = HeldOutRidge()
    head.update(x, labels)
    return head


def test_a_hold_out_of_rows_that_come_class_by_class_is_shuffled() -> None:
    x, _, y = data(0, 100)
    order = np.argsort(y)
    by_class, mixed = HeldOutRidge(), HeldOutRidge(shuffle=False)
    by_class.update(x[order], names(y[order]))
    mixed.update(x, names(y))
    in_order = HeldOutRidge(shuffle=False)
    in_order.update(x[order], names(y[order]))
    best = [head.state().arrays["errors"].min() for head in (by_class, mixed, in_order)]
    assert best[0] < 1.5 * best[1] < best[2]


def test_a_sample_alone_leaves_the_ridge_as_it_was() -> None:
    x, _, y = data(0, 60)
    head = HeldOutRidge()
    head.update(x[:1], names(y[:1]))
    assert head.strength == 1.0
    head.update(x[1:], names(y[1:]))
    chosen = head.strength
    head.update(x[:1], names(y[:1]))
    assert head.strength == chosen


@pytest.mark.parametrize("remember", [False, True])
def test_an_update_that_holds_out_too_little_leaves_the_ridge_as_it_was(remember: bool) -> None:
    """Whatever it is that a device is shown; after saving, too; and what is shown is learned."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1000, 20))
    y = (x @ random.normal(size=(20, 4)) + random.normal(size=(1000, 4))).argmax(axis=1)
    head = HeldOutRidge(remember)
    head.update(x[:600], names(y[:600]))
    chosen, kept = head.strength, head.state().arrays["errors"]
    assert 1e-8 < chosen < 1e8
    head = HeldOutRidge.from_state(head.state())
    shown = [np.arange(600, 602), np.arange(602, 605), np.arange(605, 630), np.flatnonzero(y == 2)[-100:]]
    for rows in shown:
        head.update(x[rows], names(y[rows]))
        one = HeldOutRidge(remember)
        one.update(x[rows], names(y[rows]))
        head.merge(one)
    assert head.strength == chosen
    np.testing.assert_array_equal(head.state().arrays["errors"], kept)
    rows = np.concatenate([np.arange(600), *shown, *shown])
    targets = (y[rows][:, None] == [int(name) for name in head.classes]).astype(float)
    weights = np.linalg.solve(x[rows].T @ x[rows] + chosen * np.eye(20), x[rows].T @ targets)
    np.testing.assert_allclose(head.scores(x), x @ weights, rtol=RTOL, atol=RTOL)
    head.update(x[700:], names(y[700:]))  # half as much as at first decides
    assert not np.array_equal(head.state().arrays["errors"], kept)


def test_two_images_do_not_move_the_ridge_of_a_state_that_does_not_say_how_large_its_tasks_were() -> None:
    x, _, y = data(0, 200)
    head = HeldOutRidge()
    head.update(x, names(y))
    state = head.state()
    arrays = {name: array for name, array in state.arrays.items() if name != "held_out"}
    old = from_state(replace(state, arrays=arrays))
    assert isinstance(old, HeldOutRidge)
    old.update(x[:2], ["0", "1"])
    assert old.strength == head.strength
    old.update(x, names(y))  # a task decides as before
    assert old.state().arrays["held_out"][0] == 40


def test_small_tasks_decide_where_no_larger_one_has() -> None:
    x, _, y = data(0, 60)
    head = HeldOutRidge()
    for start in range(0, 60, 20):
        rows, labels = x[start : start + 20], names(y[start : start + 20])
        head.update(rows, labels)
        errors = one(rows, labels).state().arrays["errors"]
        np.testing.assert_allclose(head.state().arrays["errors"], errors, rtol=RTOL)


def hidden(x: Array, projection: int | None, seed: int) -> Array:
    if projection is None:
        return x
    random = np.random.RandomState(seed).standard_normal((x.shape[1], projection))
    return np.asarray(np.maximum(x @ random, 0))


def one_hot(y: NDArray[np.int64], classes: NDArray[np.int64], gone: tuple[int, ...] = ()) -> Array:
    keep = [label for label in classes if label not in gone]
    return np.asarray(y[:, None] == keep, dtype=float)


@settings(max_examples=25, deadline=None)
@given(
    seed=seeds,
    n=st.integers(8, 150),
    size=st.integers(1, 100),
    projection=st.sampled_from([None, 20]),
    gone=st.sampled_from([(), (1,), (0, 3)]),
)
def test_ridge_is_the_batch_solution(
    seed: int, n: int, size: int, projection: int | None, gone: tuple[int, ...]
) -> None:
    x, probes, y = data(seed, n)
    head = Ridge(regularisation=0.03, projection=projection, seed=seed)
    in_batches(head, x, y, size)
    for label in gone:
        head.remove(str(label))
    h, hp, classes = hidden(x, projection, seed), hidden(probes, projection, seed), np.unique(y)
    strength = 0.03 * ladder((h**2).sum()) / h.shape[1]
    # As an ordinary least squares problem with extra rows, which never forms G.
    rows = np.concatenate([h, np.sqrt(strength) * np.eye(h.shape[1])])
    targets = np.concatenate([one_hot(y, classes, gone), np.zeros((h.shape[1], len(classes) - len(gone)))])
    weights = np.linalg.lstsq(rows, targets, rcond=None)[0]
    kept = [str(label) for label in classes if label not in gone]
    assert_columns(columns(head, probes), dict(zip(kept, (hp @ weights).T, strict=True)))


@settings(max_examples=25, deadline=None)
@given(
    seed=seeds,
    n=st.integers(8, 60),
    projection=st.sampled_from([None, 30]),
    gone=st.sampled_from([(), (1,)]),
)
def test_gcv_chooses_what_the_hat_matrix_says(
    seed: int, n: int, projection: int | None, gone: tuple[int, ...]
) -> None:
    x, probes, y = data(seed, n)
    head = Ridge(projection=projection, seed=7)
    head.update(x, names(y))
    for label in gone:
        head.remove(str(label))
    h, classes = hidden(x, projection, 7), np.unique(y)
    targets = one_hot(y, classes, gone)
    best: dict[float, Array] = {}
    left, values, _ = np.linalg.svd(h, full_matrices=True)
    for step in range(-24, 13):
        strength = 10 ** (step / 4) * (h**2).sum() / h.shape[1]
        # I - hat matrix, in the form that stays accurate where it is nearly zero.
        shrink = np.ones(n)
        shrink[: len(values)] = strength / (values**2 + strength)
        error = n * ((shrink[:, None] * (left.T @ targets)) ** 2).sum() / shrink.sum() ** 2
        best[float(error)] = np.linalg.solve(h.T @ h + strength * np.eye(h.shape[1]), h.T @ targets)
    scores = hidden(probes, projection, 7) @ best[min(best)]
    # Two neighbours on the grid may be equally good; every near-best one is right.
    close = [
        hidden(probes, projection, 7) @ w for error, w in best.items() if error <= min(best) * (1 + 1e-4)
    ]
    kept = [str(label) for label in classes if label not in gone]
    found = np.stack([columns(head, probes)[name] for name in kept], axis=1)
    scale = np.abs(scores).max()
    assert min(np.abs(found - wanted).max() for wanted in close) <= 1e-7 * scale


@pytest.mark.parametrize("seed", [2, 7])
def test_gcv_with_far_more_features_than_samples(seed: int) -> None:
    """In the kernel form, where nothing cancels."""
    random = np.random.default_rng(seed)
    x, probes = random.normal(size=(5, 6)), random.normal(size=(9, 6))
    head = Ridge(projection=400)
    head.update(x, list("aabbc"))
    h, targets = hidden(x, 400, 0), np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    kernel = h @ h.T
    values, vectors = np.linalg.eigh(kernel)
    grid = np.trace(kernel) / 400 * 10 ** (np.arange(-24, 13) / 4)
    left = grid[:, None] / (values + grid[:, None])
    errors = (left**2 @ ((vectors.T @ targets) ** 2).sum(axis=1)) / left.sum(axis=1) ** 2
    strength = grid[errors <= errors.min() * (1 + 1e-6)].max()
    wanted = hidden(probes, 400, 0) @ h.T @ np.linalg.solve(kernel + strength * np.eye(5), targets)
    np.testing.assert_allclose(head.scores(probes), wanted, rtol=1e-6, atol=1e-8)


def test_gcv_regularises_noise_and_trusts_signal() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 40))
    probes = random.normal(size=(500, 40))
    noise = Ridge()
    noise.update(x, names(random.integers(2, size=60)))
    signal = Ridge()
    signal.update(np.where(x > 0, 1.0, -1.0), names((x[:, 0] > 0).astype(int)))
    assert np.abs(noise.scores(probes)).max() < 0.5
    assert (
        np.mean(
            np.array(signal.predict(np.where(probes > 0, 1.0, -1.0))) == names((probes[:, 0] > 0).astype(int))
        )
        > 0.95
    )


def test_features_of_zeros_score_zero() -> None:
    for head in (Ridge(), Ridge(regularisation=1.0), Ridge(projection=8)):
        head.update(np.zeros((3, 4)), ["a", "b", "a"])
        np.testing.assert_array_equal(head.scores(np.ones((2, 4))), np.zeros((2, 2)))


@pytest.fixture
def released() -> dict[str, Array]:
    """Numbers from running the authors' code; see the .md beside the file."""
    with np.load(Path(__file__).parents[1] / "data" / "oracles" / "heads_released.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def learned_by_task(released: dict[str, Array], head: Head) -> list[Array]:
    """Scores for the test rows after each task, with the classes in columns."""
    scores = []
    for task in range(3):
        rows = released["train_task"] == task
        in_batches(head, released["train_features"][rows], released["train_labels"][rows], 11)
        order = [head.classes.index(str(label)) for label in range(3 * task + 3)]
        scores.append(head.scores(released["test_features"])[:, order])
    return scores


def test_prototypes_equal_the_released_ones(released: dict[str, Array]) -> None:
    for task, scores in enumerate(learned_by_task(released, Prototypes())):
        wanted = released["cosine_scores_after_task"][task][:, : scores.shape[1]]
        np.testing.assert_allclose(scores, wanted, rtol=RTOL, atol=1e-12)


def test_lda_has_the_pooled_covariance(released: dict[str, Array]) -> None:
    head = LDA()
    learned_by_task(released, head)
    wanted = released["batch_lda_pooled_covariance_after_task"][-1]
    packed = head.state().arrays["scatter"] / len(released["train_labels"])
    np.testing.assert_allclose(packed, wanted[np.tril_indices(24)], rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_ridge_equals_the_released_one(released: dict[str, Array], task: int) -> None:
    seen = released["train_features"][released["train_task"] <= task].astype(np.float64)
    strength = released["ridge_lambda_after_task"][task]
    relative = float(strength * 24 / ladder((seen**2).sum()))
    scores = learned_by_task(released, Ridge(relative))[task]
    wanted = released["ridge_scores_after_task"][task][:, : scores.shape[1]]
    np.testing.assert_allclose(scores, wanted, rtol=RTOL, atol=1e-10)


def press(before: Array, after: Array, ridges: list[float]) -> tuple[float, Array]:
    """The first ridge whose error without each image is the least but for its standard error.

    And the moments of these errors.
    """
    errors = []
    for ridge in ridges:
        missed = np.zeros_like(before)
        for one in range(len(before)):
            rest = np.arange(len(before)) != one
            linear, offset = fitted(before[rest], after[rest], ridge, length(before))
            missed[one] = before[one] @ linear + offset - after[one]
        errors.append(missed)
    means = [(missed**2).sum(axis=1).mean() for missed in errors]
    best = (errors[int(np.argmin(means))] ** 2).sum(axis=1)
    allowed = best.mean() * (1 + 1e-6) + best.std(ddof=1) / np.sqrt(len(best))
    first = int(np.flatnonzero(means <= allowed)[0])
    return ridges[first], errors[first].T @ errors[first] / len(best)


def length(rows: Array) -> float:
    return float(np.sqrt((rows**2).sum(axis=1).mean()))


def fitted(before: Array, after: Array, ridge: float, constant: float) -> tuple[Array, Array]:
    """An affine map by ridge regression of the movement, as least squares with extra rows."""
    width = before.shape[1]
    if np.isinf(ridge):
        return np.eye(width), np.zeros(width)
    given = np.concatenate([before, np.full((len(before), 1), constant)], axis=1)
    rows = np.concatenate([given, np.sqrt(ridge) * np.eye(width + 1)])
    movement = np.concatenate([after - before, np.zeros((width + 1, width))])
    gain = np.linalg.lstsq(rows, movement, rcond=None)[0]
    return np.eye(width) + gain[:-1], constant * gain[-1]


@settings(max_examples=25, deadline=None)
@given(seed=seeds, images=st.integers(2, 20), noise=st.floats(0.01, 10))
def test_how_features_moved_is_chosen_by_leaving_out_one_image(seed: int, images: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    before = random.normal(size=(images, 6)) * np.arange(1, 7) + 3
    after = before @ (np.eye(6) + 0.3 * random.normal(size=(6, 6))) + noise * random.normal(size=before.shape)
    given = np.concatenate([before, np.full((images, 1), length(before))], axis=1)
    squares = np.linalg.svd(given, compute_uv=False)[::-1] ** 2
    ridge, moments = press(before, after, [np.inf, *strengths(squares)[:-1]])
    linear, offset = fitted(before, after, ridge, length(before))
    drift = affine_drift(before, after)
    np.testing.assert_allclose(drift.linear, linear, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(drift.offset, offset, rtol=1e-6, atol=1e-6)
    even = np.trace(moments) / 6 * np.eye(6)
    left_over = (images * moments + 6 * even) / (images + 6)
    np.testing.assert_allclose(drift.left_over, left_over, rtol=1e-6, atol=1e-6)


def spread(random: np.random.Generator) -> Array:
    """A map that neither stretches nor squeezes by much."""
    turn = np.linalg.qr(random.normal(size=(6, 6)))[0]
    return np.asarray(turn * random.uniform(0.5, 2, size=6))


AFFINE: dict[str, Callable[[], Head]] = {
    "prototypes": Prototypes,
    "lda": lambda: LDA(0.1),
    "ridge": lambda: Ridge(0.03),
    "ridge gcv": Ridge,
    "fecam": PilotFeCAM,
}


@settings(max_examples=15, deadline=None)
@given(
    seed=seeds,
    n=st.integers(8, 60),
    images=st.integers(12, 40),
    offset=st.sampled_from([0.0, 3.0, 30.0, 1e3]),
    gone=st.booleans(),
)
@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_change_is_carried_exactly(
    name: str, seed: int, n: int, images: int, offset: float, gone: bool
) -> None:
    """Head and images share an offset; with a class removed, too; and once for two changes."""
    x, probes, y = data(seed, n)
    x = x + offset
    random = np.random.default_rng(seed)
    before = random.normal(size=(images, 6)) + offset
    maps = [(spread(random), random.normal(size=6)) for _ in range(2)]

    def go(rows: Array, steps: int) -> Array:
        for linear, shift in maps[:steps]:
            rows = rows @ linear + shift
        return rows

    twice, once, wanted = (AFFINE[name]() for _ in range(3))
    for head, rows in ((twice, x), (once, x), (wanted, go(x, 2))):
        in_batches(head, rows, y, 7)
        if gone:
            head.remove("1")
    twice.carry(before, go(before, 1))
    twice.carry(go(before, 1), go(before, 2))
    order = random.permutation(images)
    once.carry(before[order], go(before, 2)[order])
    probes = go(probes + offset, 2)
    for head in (twice, once):
        np.testing.assert_allclose(head.prototypes, wanted.prototypes, rtol=1e-8, atol=1e-8 * (1 + offset))
        arrays, right = head.state().arrays, wanted.state().arrays
        for kept in {"gram", "scatter", "scatters", "background"} & set(arrays):
            # A scatter is small beside the squares of a common offset, whose rounding it may have.
            size = np.abs(right[kept]).max() + (n * offset**2 if kept == "gram" else n)
            np.testing.assert_allclose(arrays[kept], right[kept], rtol=1e-7, atol=1e-8 * size)
        assert (np.abs(head.scores(probes) - wanted.scores(probes)).max()) <= 1e-5 * np.abs(
            wanted.scores(probes)
        ).max()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, images=st.integers(1, 40))
def test_random_features_are_carried_by_a_map_of_their_own(seed: int, images: int) -> None:
    x, _, y = data(seed, 40)
    random = np.random.default_rng(seed)
    before = random.normal(size=(images, 6))
    after = before + 0.3 * random.normal(size=before.shape) + 1
    head = Ridge(projection=20, seed=3)
    in_batches(head, x, y, 7)
    start = head.state().arrays
    head.carry(before, after)
    arrays = head.state().arrays
    drift, outer = affine_drift(hidden(before, 20, 3), hidden(after, 20, 3)), affine_drift(before, after)
    packed, lower = np.zeros((20, 20)), np.tril_indices(20)
    packed[lower] = start["gram"]
    gram, moved = packed + np.tril(packed, -1).T, np.zeros((21, 21))
    moved[:20, :20], moved[20, 20] = gram, 40  # the sums of products of (h, 1)
    moved[20, :20] = moved[:20, 20] = start["sums"].sum(axis=0)
    affine = np.concatenate([drift.linear, drift.offset[None]])
    wanted = affine.T @ moved @ affine + 40 * drift.left_over
    np.testing.assert_allclose(arrays["gram"], wanted[lower], rtol=RTOL, atol=1e-9 * np.abs(wanted).max())
    counts = start["counts"][:, None]
    sums = np.hstack([start["sums"], counts]) @ affine
    np.testing.assert_allclose(arrays["sums"], sums, rtol=RTOL, atol=1e-9)
    np.testing.assert_allclose(arrays["means"], outer.move(start["means"]), rtol=RTOL, atol=1e-9)


def test_what_the_map_leaves_over_is_added_to_the_scatters() -> None:
    """Features that move by a map and noise: the scatter is that of the features as they are."""
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 1000)
    x = random.normal(size=(4, 6))[y] + random.normal(size=(4000, 6))
    linear = spread(random)

    def go(rows: Array) -> Array:
        return np.asarray(rows @ linear + 1 + 0.8 * random.normal(size=rows.shape))

    moved, seen = go(x), random.normal(size=(2000, 6))
    for make, kept in ((LDA, "scatter"), (Ridge, "gram"), (PilotFeCAM, "scatters")):
        head, anew, still = make(), make(), make()
        for each, rows in ((head, x), (anew, moved), (still, x)):
            each.update(rows, names(y))
        head.carry(seen, go(seen))
        found, wanted, before = (each.state().arrays[kept] for each in (head, anew, still))
        assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(before - wanted)


@pytest.mark.parametrize("make", [LDA, Ridge, lambda: Ridge(projection=30), HeldOutRidge, FeCAM])
def test_a_carried_head_goes_on_like_one_that_was_saved(make: Callable[[], Head]) -> None:
    """A sum that is not symmetric to the bit would come back as another one: half of it is kept."""
    random = np.random.default_rng(0)
    x, before, after = random.normal(size=(40, 24)), *random.normal(size=(2, 12, 24))
    y = [str(number % 4) for number in range(40)]
    head = make()
    head.update(x, y)
    head.carry(before, after)
    head.settle()
    again = type(head).from_state(head.state())
    for one in (head, again):
        one.carry(before, after)
        one.update(x, y)
    for name, array in head.state().arrays.items():
        np.testing.assert_array_equal(again.state().arrays[name], array)
