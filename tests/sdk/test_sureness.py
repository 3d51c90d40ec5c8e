"""Whether a learner knows how sure it may be, and that the page shows it."""

import numpy as np
import pytest

from everlearn import LDA, Frozen, Prototypes
from everlearn.analysis.sureness import auroc, how_sure, reliability

from ..conftest import coloured, fit_all, make_learner, state


def test_it_measures_what_it_was_not_calibrated_by() -> None:
    learner = fit_all(make_learner(Frozen(), head=LDA()), [coloured("ab", 20), coloured("cd", 20)])
    before = state(learner)
    found = how_sure(learner, coloured("abcdx", 21, seed=3))
    assert state(learner) == before
    assert found is not None
    assert found.judged == 44  # eleven of each class that was learned
    assert found.missing == ("c", "d")
    assert (len(found.known), len(found.unknown)) == (20, 42)
    assert found.reliability.shares.sum() == pytest.approx(1)
    assert found.reliability.error < 0.15
    assert found.auroc > 0.8
    assert "Calibrated by 44 test images" in found.text()
    assert "Without the 2 classes of the last task" in found.text()


def test_after_one_task_nothing_is_unknown() -> None:
    found = how_sure(make_learner(Frozen(), head=Prototypes()).fit(coloured("ab")), coloured("ab", 9, seed=3))
    assert found is not None
    assert found.missing == ()
    assert np.isnan(found.auroc)
    assert "\n" not in found.text()


def test_without_two_images_of_a_class_there_is_nothing_to_say() -> None:
    learner = make_learner(Frozen()).fit(coloured("ab"))
    assert how_sure(learner, coloured("ab", 1)) is None
    assert how_sure(learner, coloured("xy", 5)) is None


def test_calibration_error_is_the_distance_of_probability_from_accuracy() -> None:
    head = Prototypes()
    head.update(np.eye(2), ["a", "b"])
    rows = np.tile([1.0, 0.0], (10, 1))
    sure = reliability(head, rows, ["a"] * 7 + ["b"] * 3, temperature=1e-3)
    assert sure.error == pytest.approx(0.3)
    assert (sure.shares[-1], sure.is_right[-1]) == (1, pytest.approx(0.7))
    assert reliability(head, rows, ["a"] * 5 + ["b"] * 5, temperature=1e3).error == pytest.approx(0, abs=1e-3)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    random = np.random.default_rng(0)
    known, unknown = random.integers(9, size=40), random.integers(3, 12, size=30)
    pairs = np.sign(unknown[:, None] - known)
    assert auroc(known, unknown) == pytest.approx((pairs.mean() + 1) / 2)
