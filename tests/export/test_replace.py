"""A learner exported as the next model of devices that have learned with the one before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn import LDA, NTKCL, Frozen, Learner, Method, Ridge
from everlearn_runtime import Bundle, BundleError, EdgeLearner, FeCAM, Head

from ..conftest import coloured, vit


def make(head: Head, method: Method | None = None, **options: Any) -> Learner:
    learner = Learner(vit(**options), method or Frozen(), head=head, device="cpu", progress=False)
    return learner.fit(coloured("abcd", 12))


WIDER = {"embed_dim": 64, "num_heads": 4}


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ({"depth": 3}, LDA),
        (WIDER, LDA),
        ({"embed_dim": 32, "num_heads": 2, "img_size": 40}, LDA),
        (WIDER, lambda: LDA(projection=100)),
        (WIDER, lambda: Ridge(projection=100)),
        (WIDER, lambda: LDA(removable=True)),
    ],
    ids=["as wide", "wider", "narrower, of another size", "random features", "ridge on these", "removable"],
)
def test_what_a_device_has_learned_goes_over_to_the_next_model(
    tmp_path: Path, options: dict[str, Any], head: Callable[[], Head]
) -> None:
    """To one of another width and image size, too; and the manifest says how good the map is."""
    make(head()).export(tmp_path / "old")
    after = make(head(), **options)
    sample = coloured("abcdefgh", 20, seed=3)
    manifest = after.export(tmp_path / "new", replaces=tmp_path / "old", images=sample)
    assert manifest.replaces is not None
    assert manifest.replaces["bundle"] == Bundle.open(tmp_path / "old").id
    assert manifest.replaces["images"] == len(sample)
    assert manifest.replaces["explained"] > 0.8
    assert manifest.replaces["agreement"] > 0.8
    taught, tests = coloured("xy", 8, seed=5), coloured("abcdxy", 8, seed=6)
    state = tmp_path / "device.db"
    with EdgeLearner.open(tmp_path / "old", state=state, threads=1) as edge:
        edge.learn([image for image, _ in taught], list(taught.labels))
    with EdgeLearner.open(tmp_path / "new", state=state, migrate=True, threads=1) as edge:
        assert edge.migrated is not None
        assert edge.migrated.learned == {"x": 8, "y": 8}
        assert edge.migrated.explained == manifest.replaces["explained"]
        found = edge.predict([image for image, _ in tests]).labels
    right = np.array(found) == np.array(tests.labels)
    assert right.mean() > 0.8
    assert right[-16:].mean() > 0.7


def test_the_same_model_again_is_carried_over_as_it_is(tmp_path: Path) -> None:
    learner = make(Ridge())
    learner.export(tmp_path / "old")
    learner.fit(coloured("ef", 12))
    manifest = learner.export(tmp_path / "new", replaces=tmp_path / "old")
    assert manifest.replaces is not None
    assert manifest.replaces["explained"] == pytest.approx(1, abs=1e-6)
    assert manifest.replaces["agreement"] == 1
    replaced = Bundle.open(tmp_path / "new").replaced()
    assert replaced is not None
    np.testing.assert_allclose(replaced.drift.linear, np.eye(48), atol=1e-5)


def test_heads_that_do_not_go_together_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    old = tmp_path / "old"
    make(LDA()).export(old)
    learner = make(Ridge())
    with pytest.raises(ValueError, match="cannot be replaced: it has a lda head, this learner a ridge head"):
        learner.export(tmp_path / "new", replaces=old)
    with pytest.raises(ValueError, match=r"cannot be replaced: FeCAM.* keeps more than sums"):
        make(FeCAM()).export(tmp_path / "new", replaces=old)
    for head in (LDA(projection=16), LDA(removable=True)):
        with pytest.raises(ValueError, match="one alone has a projection or is removable"):
            make(head).export(tmp_path / "new", replaces=old)
    with pytest.raises(ValueError, match=r"3 images to fit the map.*at least 5"):
        make(LDA()).export(tmp_path / "new", replaces=old, images=coloured("a", 3))
    with pytest.raises(BundleError, match="no such folder"):
        learner.export(tmp_path / "new", replaces=tmp_path / "none")
    assert not (tmp_path / "new").exists()


def test_a_bundle_may_be_replaced_in_its_place(tmp_path: Path) -> None:
    make(LDA()).export(tmp_path / "bundle")
    old = Bundle.open(tmp_path / "bundle").id
    learner = make(LDA(), NTKCL())
    manifest = learner.export(tmp_path / "bundle", replaces=tmp_path / "bundle", overwrite=True)
    assert manifest.replaces is not None
    assert manifest.replaces["bundle"] == old
    assert Bundle.open(tmp_path / "bundle").replaced() is not None
