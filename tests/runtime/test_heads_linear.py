"""The linear head: it learns whatever comes, and forgets whatever does not."""

import numpy as np
import pytest

from everlearn_runtime import LDA, Linear, from_state

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(3, 1, 4)) * 3 + RANDOM.normal(size=(3, 20, 4)) * 0.1
A, B, C = ROWS


def learned(*tasks: tuple[np.ndarray, str]) -> Linear:
    head = Linear()
    for rows, name in tasks:
        head.update(rows, [name] * len(rows))
    return head


def test_it_tells_apart_what_comes_together() -> None:
    head = Linear(steps=100)
    head.update(ROWS.reshape(-1, 4), ["a"] * 20 + ["b"] * 20 + ["c"] * 20)
    assert head.predict(ROWS[:, 0]) == ["a", "b", "c"]


def test_one_step_is_a_step_down_the_gradient_of_the_cross_entropy() -> None:
    head = Linear(rate=0.5, steps=1)
    head.update(np.array([[2.0, 0.0], [0.0, 0.0]]), ["a", "b"])
    # Softmax of zeros is one half; the mean squared length of the rows is 2.
    step = 0.5 / (2 * 2.0)
    arrays = head.state().arrays
    np.testing.assert_allclose(arrays["weights"], step * np.array([[1.0, 0.0], [-1.0, 0.0]]))
    np.testing.assert_allclose(arrays["bias"], [0.0, 0.0], atol=1e-15)


def test_the_scale_of_the_features_does_not_matter_for_the_weights_part() -> None:
    small, large = Linear(), Linear()
    labels = ["a"] * 20 + ["b"] * 20
    centred = np.concatenate([A - A.mean(0) + 1, A.mean(0) - A - 1])  # so that the bias stays at zero
    small.update(centred, labels)
    large.update(1e3 * centred, labels)
    np.testing.assert_allclose(large.scores(1e3 * A), small.scores(A), rtol=1e-9)


def test_the_order_matters_and_it_says_so() -> None:
    one, other = learned((A, "a"), (B, "b")), learned((B, "b"), (A, "a"))
    order = [other.classes.index(name) for name in one.classes]
    assert np.abs(one.scores(A) - other.scores(A)[:, order]).max() > 0.1
    assert not Linear.exact


def test_heads_cannot_be_merged() -> None:
    head = learned((A, "a"))
    before = head.state()
    with pytest.raises(ValueError, match="trained by gradient descent and cannot be merged; take LDA"):
        head.merge(learned((B, "b")))
    assert head.state().classes == before.classes


def test_it_comes_back_from_its_state_to_the_bit_and_goes_on_alike() -> None:
    head = learned((A, "a"), (B, "b"))
    twin = from_state(head.state())
    for one in (head, twin):
        one.update(C, ["c"] * 20)
        one.remove("a")
    assert twin.classes == head.classes == ("b", "c")
    np.testing.assert_array_equal(twin.scores(A), head.scores(A))


def test_what_was_trained_elsewhere_is_taken_over() -> None:
    head = learned((A, "a"))
    weights, bias = np.arange(8.0).reshape(2, 4), np.array([1.0, -1.0])
    head.learn_as(B, ["b"] * 20, classes=["b", "a"], weights=weights[::-1], bias=bias[::-1])
    assert head.counts.tolist() == [20, 20]
    np.testing.assert_array_equal(head.scores(C), C @ weights.T + bias)
    for wrong in ((weights[:1], bias), (weights, bias[:1]), (weights * np.nan, bias)):
        with pytest.raises(ValueError, match="weights"):
            head.learn_as(B, ["b"] * 20, classes=["a", "b"], weights=wrong[0], bias=wrong[1])
    for classes in (["a"], ["a", "c"], ["a", "b", "b"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="give one for each class that the head knows or is taught"):
            head.learn_as(B, ["b"] * 20, classes=classes, weights=weights, bias=bias)
    assert head.counts.tolist() == [20, 20]


def test_what_was_trained_elsewhere_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    head = learned((A, "a"))

    def refuse(*arguments: object) -> None:
        raise AssertionError("gradient descent")

    monkeypatch.setattr(Linear, "_learn_shared", refuse)
    head.learn_as(B, ["b"] * 20, classes=["a", "b"], weights=np.eye(2, 4), bias=np.zeros(2))
    np.testing.assert_allclose(head.prototypes, [A.mean(axis=0), B.mean(axis=0)])


@pytest.mark.parametrize("width", [4, 39, 42])
def test_few_rows_are_learned_by_their_scores_as_many_are_by_the_weights(width: int) -> None:
    """On both sides of the width from which that is cheaper, against gradients written out here."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20, width)), np.arange(20) % 3
    head = Linear(rate=0.7, steps=5)
    head.update(x, ["abc"[label] for label in y])
    weights, bias = np.zeros((3, width)), np.zeros(3)
    step = 0.7 / 20 / (x**2).sum(axis=1).mean()
    for _ in range(5):
        scores = x @ weights.T + bias
        error = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True) - np.eye(3)[y]
        weights, bias = weights - step * error.T @ x, bias - step * error.sum(axis=0)
    np.testing.assert_allclose(head.state().arrays["weights"], weights, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(head.state().arrays["bias"], bias, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("options", [{"rate": 0}, {"rate": np.nan}, {"steps": 0}, {"steps": 1.5}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*; give a "):
        Linear(**options)  # type: ignore[arg-type]


def test_another_kind_of_head_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        Linear().merge(LDA())


def test_features_as_large_as_any_are_learned_without_a_warning() -> None:
    """Squares that float32 cannot hold are held against its smallest number."""
    head, rows = Linear(), np.float32(1e37) * np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    head.update(rows, list("aabb"))
    assert np.isfinite(head.scores(rows)).all()
