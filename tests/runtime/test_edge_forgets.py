"""Forgetting on the device: exactly where the bundle was exported so, and told either way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import LDA, Aggregate, EdgeLearner, EvidenceLDA, Head, OnnxRuntime, Prototypes, Ridge

MakeBundle = Callable[..., Path]
MakeImages = Callable[..., NDArray[np.uint8]]

HEADS: dict[str, Callable[[], Head]] = {
    "lda": LDA,
    "evidence_lda": lambda: EvidenceLDA(tasks=2),
    "ridge": lambda: Ridge(0.1),
    "projected": lambda: Ridge(0.1, projection=20),
    "aggregate": lambda: Aggregate([4, 2], [LDA(), Ridge(0.1)]),
}


def workstation(make: Callable[[], Head], bundle: Path, make_images: MakeImages) -> Head:
    """A head that knows "mug" and "pen", as a learner would export it."""
    head, backend = make(), OnnxRuntime(bundle / "features.onnx", threads=1)
    for label in ("mug", "pen"):
        head.update(backend.run(make_images(label)), [label] * 4)
    return head


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kept", [True, False])
def test_a_class_of_the_device_goes_as_if_it_had_never_been_seen(
    name: str, kept: bool, bundle: Path, make_bundle: MakeBundle, make_images: MakeImages, tmp_path: Path
) -> None:
    head = workstation(HEADS[name], bundle, make_images).to_removable()
    path = make_bundle("removable", head)

    def opened(device: str) -> EdgeLearner:
        return EdgeLearner.open(path, state=tmp_path / device if kept else None, threads=1)

    found, never = opened("found.db"), opened("never.db")
    for number in range(4):
        for edge in (found, never):
            edge.learn(make_images("cup", 1 + number, seed=number), ["cup"] * (1 + number))
            edge.learn(make_images("mug", 2, seed=number), ["mug"] * 2)
        found.learn(make_images("axe", 5 - number, seed=number), ["axe"] * (5 - number))
        if kept and number == 2:
            found.close()
            found = opened("found.db")
    before = found.nbytes
    version = found.forget("axe")
    assert (version.kind, version.counts, version.form) == ("forget", {"axe": 14}, "exact")
    assert found.nbytes < before
    # What was said of its images before they were learned stays among all that was said.
    assert found.nbytes - found._head.confidence.nbytes == never.nbytes - never._head.confidence.nbytes
    probes = np.concatenate([make_images(label, 3, seed=9) for label in ("mug", "pen", "cup", "axe")])
    asked, wanted = found.predict(probes), never.predict(probes)
    assert asked.classes == wanted.classes == ("mug", "pen", "cup")
    np.testing.assert_allclose(asked.scores, wanted.scores, rtol=1e-9, atol=1e-9)
    assert found.forget("pen").form == never.forget("pen").form == "pooled"
    if kept:
        assert [one.form for one in found.history()[-2:]] == ["exact", "pooled"]
        found.close()
        with opened("found.db") as again:
            assert [one.form for one in again.history()[-2:]] == ["exact", "pooled"]
            scores = never.predict(probes).scores
            np.testing.assert_allclose(again.predict(probes).scores, scores, rtol=1e-9, atol=1e-9)
            again.undo()
            again.undo()
            assert again.classes == ("mug", "pen", "cup", "axe")
            assert again.forget("axe").form == "exact"
    found.close()
    never.close()


@pytest.mark.parametrize("state", [True, False])
def test_a_purge_says_how_the_class_went(
    state: bool, bundle: Path, make_bundle: MakeBundle, make_images: MakeImages, tmp_path: Path
) -> None:
    path = make_bundle("removable", workstation(LDA, bundle, make_images).to_removable())
    with EdgeLearner.open(path, state=tmp_path / "device.db" if state else None, threads=1) as edge:
        edge.learn(make_images("cup"), ["cup"] * 4)
        assert edge.forget("cup", purge=True).form == "exact"
        assert edge.forget("pen", purge=True).form == "pooled"


def test_without_the_sums_of_each_class_the_form_is_pooled(
    learner: EdgeLearner, make_bundle: MakeBundle, make_images: MakeImages
) -> None:
    version = learner.learn(make_images("cup"), ["cup"] * 4)
    assert version.form is None
    assert learner.forget("cup").form == "pooled"
    assert learner.undo().form is None
    with EdgeLearner.open(make_bundle("prototypes", Prototypes()), threads=1) as edge:
        edge.learn(make_images("cup"), ["cup"] * 4)
        assert edge.forget("cup").form == "exact"
