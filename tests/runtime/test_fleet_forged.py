"""Files that are no honest device's: each is refused in one sentence, or adds up as what it says."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from everlearn_runtime import Bundle, Delta, DeltaError, merge
from everlearn_runtime.fleet import delta as files
from everlearn_runtime.heads import HeadState

from .conftest import MakeBundle, MakeImages
from .test_fleet import Fleet

Change = Callable[[HeadState], HeadState]


@pytest.fixture
def fleet(tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages) -> Fleet:
    return Fleet(tmp_path, make_bundle(), make_images)


@pytest.fixture
def delta(fleet: Fleet) -> Delta:
    with fleet.open("a") as edge:
        fleet.teach(edge, "key")
        return edge.delta()


def arrays(**made: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(state: HeadState) -> HeadState:
        new = {name: make(state.arrays[name]) for name, make in made.items()}
        return replace(state, arrays={**state.arrays, **new})

    return change


FORGED: dict[str, tuple[Change, str]] = {
    "nan": (arrays(means=lambda a: a * np.nan), "means holds NaN"),
    "infinite": (arrays(means=lambda a: a + np.inf), "means holds NaN or values outside"),
    "scatter": (arrays(scatter=lambda a: a * np.nan), "scatter holds NaN"),
    "large": (arrays(means=lambda a: a * 1e200), "means holds NaN or values outside"),
    "negative": (arrays(counts=lambda a: -a), "counts holds NaN or values outside of 0"),
    "many": (arrays(counts=lambda a: a * 10**15), "counts holds NaN or values outside of 0"),
    "seen": (arrays(seen=lambda a: a * 0), "has seen 0 samples but counts 3"),
    "type": (arrays(means=lambda a: a.astype(np.float32)), "float32 of shape"),
    "giant": (arrays(means=lambda a: np.ones((1, 100_000))), r"expected float64 of shape \(5000050000,\)"),
    "wide": (
        arrays(means=lambda a: np.ones((1, 7)), scatter=lambda a: np.ones(28)),
        "has sums of 7 features, the bundle of 6",
    ),
    "kind": (lambda state: replace(state, kind="fecam"), "wrong options"),
    "unknown": (lambda state: replace(state, kind="pickle"), "pickle"),
    "option": (lambda state: replace(state, options={"shrinkage": 1e9}), "shrinkage is"),
    "other option": (lambda state: replace(state, options={"shrinkage": 0.5}), "do not go with the bundle"),
    "no name": (lambda state: replace(state, classes=("",)), "label '' is not"),
    "blank": (lambda state: replace(state, classes=(" ",)), "label ' ' is not"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_sums_are_refused(kind: str, fleet: Fleet, delta: Delta) -> None:
    change, says = FORGED[kind]
    place = fleet.folder / "forged.delta"
    replace(delta, state=change(delta.state)).save(place)
    with pytest.raises(DeltaError, match=says):
        merge(fleet.bundle, [place], fleet.folder / "out")
    assert not (fleet.folder / "out").exists()


def test_what_adds_up_beyond_what_can_be_read_is_refused(fleet: Fleet, delta: Delta) -> None:
    places = [fleet.folder / f"{number}.delta" for number in range(3)]
    most = arrays(counts=lambda a: a * 0 + 10**12, seen=lambda a: a * 0 + 10**12)(delta.state)
    for number, place in enumerate(places):
        replace(delta, state=most, device=f"{number:016x}").save(place)
    merge(fleet.bundle, places[:1], fleet.folder / "one")
    Bundle.open(fleet.folder / "one")
    with pytest.raises(DeltaError, match="cannot be added: counts holds"):
        merge(fleet.bundle, places, fleet.folder / "out")
    assert not (fleet.folder / "out").exists()


def test_names_that_look_alike_are_told(
    fleet: Fleet, delta: Delta, capsys: pytest.CaptureFixture[str]
) -> None:
    main = pytest.importorskip("everlearn.cli").main

    names = [unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"), "Mug ", "tea"]
    places = []
    for number, name in enumerate(names):
        places.append(fleet.folder / f"{number}.delta")
        replace(delta, device=f"{number:016x}", state=replace(delta.state, classes=(name,))).save(places[-1])
    found = merge(fleet.bundle, places, fleet.folder / "out")
    assert found.alike == ((names[0], names[1]), ("mug", "Mug "))
    assert len(Bundle.open(fleet.folder / "out").head().classes) == 6  # which are left as they are
    assert main(["merge", str(fleet.bundle), *map(str, places), "--out", str(fleet.folder / "cli")]) == 0
    assert r"two classes that look alike: 'caf\xe9' and 'cafe\u0301'" in capsys.readouterr().out


def test_a_giant_file_is_not_read(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    place = fleet.folder / "giant.delta"
    with place.open("wb") as file:
        os.truncate(file.fileno(), files.LARGEST + 1)  # of zeros that take no room
    for read in (Delta.read, Delta.peek):
        with pytest.raises(DeltaError, match=r"giant\.delta"):
            read(place)
    place.write_bytes(b"\xff" * 64)
    with pytest.raises(DeltaError, match="is no delta"):
        Delta.read(place)


def test_what_a_delta_says_of_other_versions_is_bounded(fleet: Fleet, delta: Delta) -> None:
    place = fleet.folder / "many.delta"
    replace(delta, passed=delta.span * 200).save(place)
    with pytest.raises(DeltaError, match="damaged"):
        Delta.peek(place)
