"""The camera's example, with a folder of images, and with stand-ins for OpenCV."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from everlearn import Frozen, Images, Learner

from ..conftest import vit

Output = pytest.CaptureFixture[str]
COLOURS = {"mug": (200, 40, 40), "pen": (40, 40, 200), "key": (40, 200, 40)}


def pictures(name: str, count: int) -> list[Image.Image]:
    """One colour each, a little noisy."""
    random = np.random.default_rng(len(name) + count)
    noise = random.normal(0, 15, (count, 24, 24, 3))
    return [Image.fromarray(one) for one in np.clip(COLOURS[name] + noise, 0, 255).astype(np.uint8)]


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, without OpenCV."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setenv("DISPLAY", ":0")
    path = Path(__file__).parents[2] / "examples" / "camera.py"
    spec = importlib.util.spec_from_file_location("camera", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A bundle that knows mugs and pens, and folders of keys, and of a mug before a pen."""
    known = [(image, name) for name in ("mug", "pen") for image in pictures(name, 4)]
    images = Images([name for _, name in known], load=lambda i: known[i][0])
    Learner(vit(), Frozen(), device="cpu", progress=False).fit(images).export(tmp_path / "bundle")
    for folder, names in {"keys": ["key"] * 9, "seen": ["mug", "mug", "pen", "key"]}.items():
        (tmp_path / folder).mkdir()
        for number, name in enumerate(names):
            pictures(name, 1 + number)[-1].save(tmp_path / folder / f"{number}.png")
    return tmp_path


def test_a_folder_is_named_and_learned_without_opencv(camera: ModuleType, home: Path, capsys: Output) -> None:
    bundle, state = str(home / "bundle"), ["--state", str(home / "device.db")]
    assert camera.main([bundle, *state, "--source", str(home / "keys"), "--learn", "key"]) == 0
    assert capsys.readouterr().out == "9 samples of 'key'\n"
    assert camera.main([bundle, *state, "--source", str(home / "seen"), "--no-window"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["mug", "pen", "key"]


def test_without_opencv_one_line_says_so(camera: ModuleType, home: Path, capsys: Output) -> None:
    for source in ("0", str(home / "seen")):
        assert camera.main([str(home / "bundle"), "--source", source]) == 2
        assert capsys.readouterr().err == f"camera.py: {camera.NEEDS_OPENCV}\n"
    assert camera.main([str(home / "none"), "--source", str(home / "seen")]) == 2
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        camera.main([str(home / "bundle"), "--teach", "q=mug"])
    assert "one key other than q and u" in capsys.readouterr().err


def test_without_a_display_one_line_says_so(
    camera: ModuleType, home: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert camera.main([str(home / "bundle"), "--source", str(home / "seen")]) == 2
    assert capsys.readouterr().err == f"{camera.NO_DISPLAY}\n"
    assert camera.main([str(home / "bundle"), "--source", str(home / "seen"), "--no-window"]) == 0


def test_keys_teach_a_camera(
    camera: ModuleType, home: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    keys = iter([ord("k"), ord("k"), -1, ord("u"), ord("u"), ord("u"), ord("q")])
    frame = np.asarray(pictures("key", 1)[0])[:, :, ::-1]  # blue first

    class Camera:
        def __init__(self, source: object) -> None:
            assert source == 0

        def read(self) -> tuple[bool, Any]:
            return True, frame

        def release(self) -> None:
            shown.append("released")

    module = ModuleType("cv2")
    stand_in: dict[str, Any] = {
        "VideoCapture": Camera,
        "putText": lambda picture, text, *_: shown.append(text.split()[0]),
        "imshow": lambda *_: None,
        "waitKey": lambda _: next(keys),
        "FONT_HERSHEY_SIMPLEX": 0,
    }
    for name, value in stand_in.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "cv2", module)
    assert camera.main([str(home / "bundle"), "--state", str(home / "device.db"), "--teach", "k=key"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "version 1: learned 'key'",
        "version 2: learned 'key'",
        "back to version 1",
        "back to version 0",
        "there is nothing left to undo",
    ]
    assert shown[1:5] == ["key"] * 4  # its colours are the right way round
    assert shown[-1] == "released"
