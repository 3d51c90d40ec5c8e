"""What files tell together, what `info` says of them, and what a new one never overwrites."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from everlearn_runtime import LDA, Bundle, Delta, DeltaError, GaussianNoise, merge, signing
from everlearn_runtime.cli import main
from everlearn_runtime.fleet import Mark, Privacy, Span
from everlearn_runtime.fleet.composition import together
from everlearn_runtime.heads import Prototypes

from .conftest import MakeBundle, MakeImages
from .test_fleet import Fleet, of_head

NOISE = GaussianNoise(1.0, 3.0)


@pytest.fixture
def fleet(tmp_path: Path, make_bundle: MakeBundle, make_images: MakeImages) -> Fleet:
    return of_head(tmp_path, make_bundle, make_images, LDA)


def learned(fleet: Fleet, device: str = "a", since: int | None = None) -> Delta:
    with fleet.open(device) as edge:
        fleet.teach(edge, "key")
        return edge.delta(since)


def noisy(delta: Delta, epsilon: float, shift: float = 0.0) -> Delta:
    """As if it had noise, wherever the accountant is or is not."""
    arrays = {"counts": delta.state.arrays["counts"], "means": delta.state.arrays["means"] + shift}
    state = replace(delta.state, kind="prototypes", options=Prototypes().options, arrays=arrays)
    return replace(delta, state=state, noise=NOISE, epsilon=epsilon)


def test_what_several_draws_tell_adds_up(fleet: Fleet) -> None:
    whole = learned(fleet)
    for _ in range(3):
        whole = learned(fleet)
    spans = {"first": (0, 2), "second": (2, 4), "both": (0, 4), "middle": (1, 3)}
    places = {}
    for number, (name, (start, end)) in enumerate(spans.items()):
        marks = [Mark(version, whole.span.end.digest if version else "") for version in (start, end)]
        places[name] = str(fleet.folder / f"{name}.delta")
        noisy(replace(whole, span=Span(*marks)), 2.0**number, number).save(places[name])
    copy, plain = str(fleet.folder / "copy.delta"), str(fleet.folder / "plain.delta")
    shutil.copy(places["first"], copy)
    whole.save(plain)

    def told(*names: str) -> Privacy | None:
        return together([places.get(name, name) for name in names])

    assert told() is told("first") is told("first", copy) is told("first", "second") is told(plain) is None
    assert told("first", "both", copy) == (5.0, 2e-5)
    assert told("first", "second", "both") == (6.0, 2e-5)  # the worse of the two
    assert told(*spans) == (2 + 4 + 8, 1e-5 + 1e-5 + 1e-5)  # over what came after version 2
    assert told("second", plain) == (math.inf, 1.0)
    with pytest.raises(DeltaError, match="cannot be read"):
        together([str(fleet.folder / "none.delta")])


def test_a_merge_says_what_they_tell(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    everlearn = pytest.importorskip("everlearn.cli").main

    delta = learned(fleet)
    places = [fleet.folder / f"{number}.delta" for number in range(2)]
    for number, place in enumerate(places):
        noisy(delta, 4.0, number).save(place)
    assert merge(fleet.bundle, places[:1], fleet.folder / "one").told == {}
    found = merge(fleet.bundle, places, fleet.folder / "two")
    assert (found.told, len(found.counted)) == ({delta.device: (8.0, 2e-5)}, 1)
    assert everlearn(["merge", str(fleet.bundle), *map(str, places), "--out", str(fleet.folder / "cli")]) == 0
    said = capsys.readouterr().out
    assert "cli: 1 delta, 3 of key" in said
    assert (
        f"noise: files of device {delta.device} are of the same versions, and together tell as much" in said
    )
    assert "epsilon 8 at delta 2e-05" in said


def test_noise_is_not_drawn_anew_over_the_file_that_has_it(fleet: Fleet) -> None:
    place, delta = fleet.folder / "night.delta", learned(fleet)
    one = noisy(delta, 4.0)
    one.save(place)
    one.save(place)  # the same draw
    for other in (noisy(delta, 4.0, 1.0), delta, noisy(learned(fleet), 4.0)):
        with pytest.raises(ValueError, match=r"holds versions 0 to 1 of this device, with noise.* since=1 "):
            other.save(place)
    assert Delta.read(place).noise == NOISE
    noisy(learned(fleet, since=1), 4.0).save(place)
    learned(fleet, "another").save(place)


def test_nothing_else_is_overwritten(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    delta, state = learned(fleet), fleet.folder / "a.db"
    before = state.read_bytes()
    assert main(["delta", str(fleet.bundle), str(state), "--state", str(state)]) == 2
    assert "a.db is there and is no delta; give another path" in capsys.readouterr().err
    assert state.read_bytes() == before
    for place in (fleet.bundle, fleet.bundle / "manifest.json", fleet.bundle / "head.safetensors"):
        with pytest.raises(ValueError, match="is there and is no delta"):
            delta.save(place)
    (fleet.folder / "link").symlink_to(fleet.folder / "nowhere")
    with pytest.raises(ValueError, match="is there and is no delta"):
        delta.save(fleet.folder / "link")
    with pytest.raises(ValueError, match=r"no such folder as .*nowhere; make it first"):
        delta.save(fleet.folder / "nowhere" / "a.delta")
    Bundle.open(fleet.bundle)


def test_info_says_what_a_delta_is(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography")
    key, public = signing.new_keys(fleet.folder / "key")
    place, delta = fleet.folder / "a.delta", noisy(learned(fleet), 4.0)
    delta.save(place, key=key)
    assert main(["info", str(place), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["what"], said["device"], said["classes"]) == ("delta", delta.device, {"key": 3})
    assert (said["after_version"], said["up_to_version"], said["epsilon"]) == (0, 1, 4.0)
    assert said["signed_by"] == [signing.fingerprint(public)]
    assert said["noise"] == NOISE.says()
    place.write_bytes(place.read_bytes()[:-1])
    assert main(["info", str(place)]) == 2
    assert "a.delta is no delta" in capsys.readouterr().err
    noisy(delta, 4.0).save(fleet.folder / "b.delta")
    fleet.merge([fleet.folder / "b.delta"])
    assert main(["info", str(fleet.folder / "merged")]) == 0
    assert "devices 1, bundles before 1, to go on from 1" in capsys.readouterr().out
