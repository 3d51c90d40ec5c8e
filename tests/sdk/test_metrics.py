import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.evaluation.metrics import AccuracyMatrix, accuracy

NAN = float("nan")


def three_tasks() -> AccuracyMatrix:
    matrix = AccuracyMatrix()
    matrix.record([0.8], images=[10])
    matrix.record([0.9, 0.6], images=[10, 30])
    matrix.record([0.5, 0.7, 1.0], images=[10, 30, 60])
    return matrix


@st.composite
def matrices(draw: st.DrawFn) -> AccuracyMatrix:
    tasks = draw(st.integers(1, 6))
    images = draw(st.lists(st.integers(1, 1000), min_size=tasks, max_size=tasks))
    matrix = AccuracyMatrix()
    for i in range(tasks):
        length = i + 1
        matrix.record(draw(st.lists(st.floats(0, 1), min_size=length, max_size=length)), images[:length])
    return matrix


def test_accuracy_is_the_share_of_right_predictions() -> None:
    assert accuracy(["a", "b", "b", "a"], ["a", "b", "a", "a"]) == 0.75
    assert accuracy(np.array(["a", "b"]).tolist(), ("a", "b")) == 1.0


def test_accuracy_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="2 predictions for 1 labels; give one prediction for each label"):
        accuracy(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one image"):
        accuracy([], [])


def test_hand_computed_figures() -> None:
    matrix = three_tasks()
    assert len(matrix) == 3
    assert matrix.images == (10, 30, 60)
    np.testing.assert_array_equal(matrix.values, [[0.8, NAN, NAN], [0.9, 0.6, NAN], [0.5, 0.7, 1.0]])
    # (0.9 * 10 + 0.6 * 30) / 40 = 27 / 40 and (5 + 21 + 60) / 100
    np.testing.assert_allclose(matrix.seen, [0.8, 0.675, 0.86])
    assert matrix.average == pytest.approx((0.8 + 0.675 + 0.86) / 3)
    assert matrix.last == pytest.approx(0.86)
    # Task 1 was best after task 2: 0.9 - 0.5. Task 2 has gained: 0.6 - 0.7.
    assert matrix.forgetting == pytest.approx((0.4 - 0.1) / 2)
    assert matrix.backward_transfer == pytest.approx((0.5 - 0.8 + 0.7 - 0.6) / 2)


def test_forward_transfer_compares_untrained_tasks_with_the_baseline() -> None:
    matrix = AccuracyMatrix()
    matrix.record([0.8, 0.3, 0.2], images=[10, 10, 10])
    matrix.record([0.7, 0.9, 0.4], images=[10, 10, 10])
    matrix.record([0.6, 0.8, 0.9], images=[10, 10, 10])
    assert matrix.forward_transfer([0.5, 0.1, 0.1]) == pytest.approx((0.2 + 0.3) / 2)
    assert math.isnan(three_tasks().forward_transfer([0.1, 0.1, 0.1]))
    with pytest.raises(ValueError, match="one accuracy for each of the 3 tasks"):
        matrix.forward_transfer([0.1, 0.1])


def test_a_run_of_known_length_can_be_read_half_way() -> None:
    matrix = AccuracyMatrix()
    matrix.record([0.8, NAN, 0.2], images=[10, 20, 30])
    matrix.record([0.7, 0.9], images=[10, 20])
    assert matrix.images == (10, 20, 30)
    np.testing.assert_array_equal(matrix.values, [[0.8, NAN, 0.2], [0.7, 0.9, NAN], [NAN, NAN, NAN]])
    assert matrix.last == pytest.approx((7 + 18) / 30)
    assert matrix.forgetting == pytest.approx(0.1)
    assert math.isnan(matrix.forward_transfer([0.1, 0.1, 0.1]))


def test_one_task_has_nothing_to_forget() -> None:
    matrix = AccuracyMatrix()
    matrix.record([0.8], images=[10])
    assert math.isnan(matrix.forgetting)
    assert math.isnan(matrix.backward_transfer)
    assert math.isnan(matrix.forward_transfer([0.1]))
    assert matrix.table().splitlines()[-1] == "average 80.00   last 80.00"


def test_an_empty_matrix_says_what_to_do() -> None:
    matrix = AccuracyMatrix()
    assert matrix.values.shape == (0, 0)
    for name in ("seen", "average", "last", "forgetting", "backward_transfer"):
        with pytest.raises(ValueError, match="call `record` after the first task"):
            getattr(matrix, name)
    with pytest.raises(ValueError, match="call `record`"):
        matrix.forward_transfer([])
    with pytest.raises(ValueError, match="call `record`"):
        matrix.table()


@pytest.mark.parametrize(
    ("accuracies", "images", "message"),
    [
        ([0.5], [10], "1 accuracies after task 2; give at least 2"),
        ([0.5, 0.5], [10], "give one of each for every task"),
        ([[0.5, 0.5]], [10], "give one of each for every task"),
        ([0.5, 50.0], [10, 10], r"expected numbers in \[0, 1\]"),
        ([0.5, -0.1], [10, 10], r"expected numbers in \[0, 1\]"),
        ([NAN, 0.5], [10, 10], "NaN only for tasks after 2"),
        ([0.5, 0.5], [10, 0], "at least one test image"),
        ([0.5, 0.5], [11, 10], r"earlier rows had \[10\]; test every task on the same images"),
    ],
)
def test_a_row_that_is_not_valid_is_refused_and_changes_nothing(
    accuracies: list[float], images: list[int], message: str
) -> None:
    matrix = AccuracyMatrix()
    matrix.record([0.8], images=[10])
    before = matrix.to_dict()
    with pytest.raises(ValueError, match=message):
        matrix.record(accuracies, images)
    assert matrix.to_dict() == before


def test_the_table_is_aligned() -> None:
    assert three_tasks().table().splitlines() == [
        "after task     1     2      3   all",
        "         1  80.0               80.0",
        "         2  90.0  60.0         67.5",
        "         3  50.0  70.0  100.0  86.0",
        "average 77.83   last 86.00   forgetting 15.00   backward transfer -10.00",
    ]


@given(matrices())
def test_table_lines_have_one_width(matrix: AccuracyMatrix) -> None:
    *rows, _ = matrix.table().splitlines()
    assert len(rows) == len(matrix) + 1
    assert len({len(row) for row in rows}) == 1


@given(matrices())
def test_seen_is_the_accuracy_over_all_images_together(matrix: AccuracyMatrix) -> None:
    right = np.nan_to_num(matrix.values) @ np.array(matrix.images)
    np.testing.assert_allclose(matrix.seen, right / np.cumsum(matrix.images), atol=1e-12)
    assert 0 <= matrix.average <= 1 + 1e-12


@given(matrices())
def test_forgetting_is_at_least_minus_backward_transfer(matrix: AccuracyMatrix) -> None:
    if len(matrix) > 1:
        assert -1 <= -matrix.backward_transfer <= matrix.forgetting + 1e-12 <= 1 + 1e-9


@given(matrices(), st.booleans())
def test_a_dict_through_json_gives_the_same_matrix(matrix: AccuracyMatrix, ahead: bool) -> None:
    if ahead:
        n = len(matrix) + 1
        matrix.record([0.5] * n + [NAN, 0.25], images=[*matrix.images, 7, 8, 9])
    data = json.loads(json.dumps(matrix.to_dict(), allow_nan=False))
    again = AccuracyMatrix.from_dict(data)
    np.testing.assert_array_equal(again.values, matrix.values)
    assert again.to_dict() == matrix.to_dict()


def test_from_dict_refuses_what_to_dict_did_not_give() -> None:
    with pytest.raises(ValueError, match="no images in the data"):
        AccuracyMatrix.from_dict({"accuracies": []})
    with pytest.raises(ValueError, match=r"expected numbers in \[0, 1\]"):
        AccuracyMatrix.from_dict({"accuracies": [[None]], "images": [3]})
