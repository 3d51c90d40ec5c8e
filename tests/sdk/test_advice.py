"""What can be done about a verdict: only what the method and its training have an argument for."""

import re
from dataclasses import asdict
from typing import Any

import pytest

import everlearn.methods
from everlearn import NTKCL, DualLoRA, FineTune, Frozen, ILoRA, Learner, Method
from everlearn.analysis.advice import steps

from ..conftest import coloured, fit_all, make_learner

TURNED: dict[str, tuple[Method, dict[str, Any], dict[str, set[str]]]] = {
    "NTKCL": (
        NTKCL(),
        {},
        {
            "tasks": {
                "raise orthogonality, now 0.0001",
                "lower later, now 0.25",
                "raise regularisation, now 0.001",
            },
            "more": {"raise regularisation, now 0.001", "lower lr, now 0.05"},
            "less": {"lower regularisation, now 0.001", "raise lr, now 0.05", "more epochs, now 1"},
        },
    ),
    "NTKCL without L_reg": (NTKCL(regularisation=0.0), {}, {"more": {"raise regularisation, now 0"}}),
    "ILoRA": (
        ILoRA(),
        {},
        {"tasks": {"raise memory, now 500", "raise replay, now 16"}, "more": {"raise consistency, now 1"}},
    ),
    "DualLoRA": (DualLoRA(), {}, {"tasks": {"raise energy, now 0.95 to 1"}, "more": {"lower lr, now 0.05"}}),
    "FineTune": (
        FineTune(),
        {"carry": False},
        {"tasks": {"carry=True, so that the head follows the features"}},
    ),
    "no augmentation": (NTKCL(), {"augmentation": None}, {"samples": {"augmentation, which is off"}}),
}


@pytest.mark.parametrize(("method", "settings", "expected"), TURNED.values(), ids=TURNED)
def test_advice_is_what_the_method_has_an_argument_for(
    method: Method, settings: dict[str, Any], expected: dict[str, set[str]]
) -> None:
    found = steps(make_learner(method, lr=0.05, epochs=1, **settings), 12)
    for case, some in expected.items():
        assert some <= set(found[case])
    assert found["samples"][0] == "more images of each task, now 12"
    assert "fewer epochs, now 1" not in found["more"]


@pytest.mark.parametrize("name", everlearn.methods.__all__)
def test_no_method_is_advised_to_turn_what_it_has_not(name: str) -> None:
    learner = fit_all(
        make_learner(getattr(everlearn.methods, name)()), [coloured("ab", 4), coloured("cd", 4)]
    )
    there = {**learner.method.config(), **asdict(learner.training)}
    found = steps(learner, 8)
    for one in (word for case in found.values() for word in case):
        if match := re.match(r"(?:raise|lower|fewer|more) (\w+), now ", one):
            assert match[1] in there
    if not learner.method.trainable():
        assert not found["more"]
        assert not found["less"]
        assert not any("lr" in one.split() or "epochs" in one for case in found.values() for one in case)
    if learner.method.at_once:
        assert not found["tasks"]


def test_what_is_zero_is_not_lowered_and_frozen_features_are_not_trained() -> None:
    assert not any(
        "regularisation" in one for one in steps(make_learner(NTKCL(regularisation=0.0)), 9)["less"]
    )
    frozen = steps(make_learner(Frozen()), 9)
    assert [one.split(",")[0] for one in frozen["tasks"]] == ['depths="auto"', "a larger backbone"]
    assert len(steps(make_learner(Frozen(depths=["mean"])), 9)["tasks"]) == 1
    assert not steps(make_learner(NTKCL(), lr=0.0), 9)["less"]
    convolutions = Learner("resnet10t", Frozen(), weights="random", device="cpu")  # it has no blocks
    assert [one.split(",")[0] for one in steps(convolutions, 9)["tasks"]] == ["a larger backbone"]
