"""What heads accept of labels, features and statistics."""

from __future__ import annotations

import itertools
from collections import deque
from enum import Enum
from typing import Any

import numpy as np
import pytest

from everlearn_runtime import LDA, Linear, Prototypes, Ridge, from_state
from everlearn_runtime.heads.checks import LARGEST, LARGEST_SUM, check_labels, check_rows


class Raising:
    """A sequence and an array that cannot be looked at."""

    def __len__(self) -> int:
        raise RuntimeError("no")

    def __getitem__(self, place: int) -> str:
        raise RuntimeError("no")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"mug", "pen"}, "labels is of type set; give a list of str, one label per sample"),
        (frozenset({"mug"}), "labels is of type frozenset"),
        ({"mug": 1}, "labels is of type dict"),
        ({"mug": 1}.keys(), "labels is of type dict_keys"),
        ((name for name in ["mug"]), "labels is of type generator"),
        (itertools.repeat("mug"), "labels is of type repeat"),
        (3, "labels is of type int"),
        (None, "labels is of type NoneType"),
        (np.array("mug"), "labels is of type ndarray"),
        (Raising(), "labels is of type Raising"),
        (np.broadcast_to("mug", (10**12,)), "1,000,000,000,000 labels at once"),
        (range(10**12), "labels at once"),
        ([], "no labels"),
        (np.array([["mug"]]), "not a non-empty str"),
        ([b"mug"], "not a non-empty str"),
    ],
)
def test_labels_that_cannot_go_with_samples(labels: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_labels(labels)


def test_sequences_of_labels() -> None:
    forms: list[Any] = [["a", "b"], ("a", "b"), deque("ab"), np.array(["a", "b"])]
    for labels in (*forms, np.array(["a", "b"], object)):
        found = check_labels(labels)
        assert found == ["a", "b"]
        assert all(type(name) is str for name in found)


def test_features_whose_conversion_raises() -> None:
    with pytest.raises(ValueError, match=r"features are not one array \(RuntimeError: no\)"):
        check_rows(Raising())
    with pytest.raises(ValueError, match="features are not one array"):
        check_rows([[1.0, 2.0], [1.0]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e308, 2 * LARGEST_SUM])
@pytest.mark.parametrize("kind", ["linear", "projected"])
def test_every_kind_of_statistics_is_bounded(kind: str, value: float) -> None:
    head = Linear() if kind == "linear" else Ridge(projection=4)
    head.update(np.eye(3), ["a", "b", "c"])
    for name, array in head.state().arrays.items():
        if array.dtype == np.float64:
            state = head.state()
            state.arrays[name].flat[0] = value
            with pytest.raises(ValueError, match=rf"{name} holds NaN or values outside of"):
                from_state(state)


def test_statistics_that_contradict_each_other_give_an_error_and_no_infinite_score() -> None:
    head = Ridge(1e-9, projection=4)
    head.update(np.eye(3), ["a", "b", "c"])
    state = head.state()
    state.arrays["sums"][...] = 1e96
    state.arrays["gram"] *= 1e-250
    with pytest.raises(ValueError, match="scores that are not finite; restore an older state"):
        from_state(state).scores(LARGEST / 2 * np.eye(3))


def test_statistics_as_large_as_features_allow_are_loaded() -> None:
    rows = np.array([[LARGEST, -LARGEST], [-LARGEST, LARGEST], [LARGEST, LARGEST], [-LARGEST, -LARGEST]])
    for head in (Prototypes(), LDA(), Ridge(0.1), Ridge(projection=64)):
        for _ in range(100):
            head.update(rows, ["a", "b", "a", "b"])
        assert np.isfinite(from_state(head.state()).scores(rows)).all()


class Kind(str, Enum):
    """Names as many programs keep them."""

    MUG = "mug"


class Shown(str):
    """One whose text is not what it shows."""

    def __str__(self) -> str:
        return ""


@pytest.mark.parametrize(
    "label", [Kind.MUG, Shown("mug"), np.str_("mug")], ids=lambda label: type(label).__name__
)
def test_a_label_is_the_text_that_a_str_holds(label: str) -> None:
    (name,) = check_labels([label])
    assert type(name) is str
    assert name == label == "mug"
