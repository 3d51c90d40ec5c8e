"""Which names a new class may have, by every way in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import EdgeLearner
from everlearn_runtime.cli import main
from everlearn_runtime.heads import LDA
from everlearn_runtime.names import check_name, shown

Output = pytest.CaptureFixture[str]

SEEN = ("mug", "Täßchen ☕", "赤い　コップ", "می‌خواهم", "👩‍🔬", "a/b", "mug ", "\U0001fae8", "état")
UNSEEN = {
    "mu\ng": "U+000A",
    "mug\x1b[31m": "U+001B",
    "mug\x7f": "U+007F",
    "gum\u202egnp": "U+202E",
    "\u2066mug": "U+2066",
    "mug\u2028": "U+2028",
    "mug\u200b": "U+200B",
    "mug\ufeff": "U+FEFF",
}


@pytest.mark.parametrize("name", SEEN)
def test_what_a_person_can_read_is_a_name(name: str) -> None:
    assert check_name(name) == name == shown(name)


@pytest.mark.parametrize(("name", "code"), UNSEEN.items(), ids=UNSEEN.values())
def test_what_cannot_be_seen_is_in_none(
    name: str,
    code: str,
    bundle: Path,
    tmp_path: Path,
    make_images: Callable[..., NDArray[np.uint8]],
    capsys: Output,
) -> None:
    with pytest.raises(ValueError, match=f"cannot be seen, {code.replace('+', '[+]')}; give a name"):
        check_name(name)
    assert name not in shown(f"a {name} b")
    assert shown(name).isprintable()
    images, state = make_images("cup", 2), tmp_path / "device.db"
    with EdgeLearner.open(bundle, state=state) as edge:
        with pytest.raises(ValueError, match="cannot be seen"):
            edge.learn(images, ["cup", name])
        assert edge.version == 0
    state.unlink()
    (tmp_path / "tree" / name).mkdir(parents=True)
    np.save(tmp_path / "tree" / name / "1.npy", images)
    for what in ([str(tmp_path / "tree")], [name, str(tmp_path / "tree" / name / "1.npy")]):
        assert main(["learn", str(bundle), *what, "--state", str(state)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "cannot be seen" in said
        assert name not in said
        assert ("rename it" in said) == (len(what) == 1)
    assert not state.exists()


def test_half_a_surrogate_pair_is_in_none() -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        check_name("mug\ud800")


def test_what_was_learned_before_stays_and_is_shown_in_one_line(
    make_bundle: Callable[..., Path],
    make_images: Callable[..., NDArray[np.uint8]],
    tmp_path: Path,
    capsys: Output,
) -> None:
    head = LDA()
    head.update(np.random.default_rng(0).normal(size=(8, 6)), ["mu\ng", "pen"] * 4)
    old = make_bundle(head=head)
    state = tmp_path / "device.db"
    with EdgeLearner.open(old, state=state) as edge:
        edge.learn(make_images("cup", 2), ["mu\ng", "pen"])
    for command in (["status"], ["info"]):
        assert main([*command, str(old)]) == 0
        out = capsys.readouterr().out
        assert "mu\\ng" in out
        assert "mu\ng" not in out
    with EdgeLearner.open(old, state=state) as edge:
        edge.forget("mu\ng")
        with pytest.raises(ValueError, match="cannot be seen"):
            edge.learn(make_images("cup", 1), ["mu\ng"])
