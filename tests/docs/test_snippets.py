"""Every snippet of the documents runs as it stands.

Those of the README run on the bundled backbone, the others on its first blocks alone, which are trained
and exported in a fraction of the time.
"""

import re
import shlex
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import everlearn.cli
import everlearn_runtime.cli
from everlearn import Frozen, Learner, folder
from everlearn.backbones import load

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "fidelity.md")
PAGES.append(ROOT / "README.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"python", "console", "text", "ini"}
EXTRAS = set(metadata("everlearn").get_all("Provides-Extra") or ())
COMMANDS = {"everlearn": everlearn.cli.main, "everlearn-device": everlearn_runtime.cli.main}


def photographs(path: Path, colour: tuple[int, int, int], count: int) -> None:
    """Pictures of one colour each, a little noisy."""
    path.mkdir(parents=True)
    random = np.random.default_rng(sum(colour))
    for number in range(count):
        pixels = np.clip(np.array(colour) + random.normal(0, 20, (80, 64, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path / f"{number}.png")


def cut_short(patch: pytest.MonkeyPatch) -> None:
    """The bundled backbone ends after its third block."""

    def load_first(model: nn.Module, path: Path) -> None:
        stored = load_file(path)
        model.load_state_dict({name: stored[name] for name in model.state_dict()})

    patch.setitem(load._BUNDLED_ARCHITECTURE, "depth", 3)
    patch.setattr(load, "load_weights", load_first)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who has read the first page."""
    path = tmp_path_factory.mktemp("reader")
    colours = {"mug": (200, 40, 40), "pen": (40, 40, 200), "cup": (200, 200, 40)}
    for name, colour in colours.items():
        photographs(path / "photos" / "train" / name, colour, 6)
        photographs(path / "photos" / "test" / name, colour, 2)
    photographs(path / "new" / "key", (40, 200, 40), 3)
    with pytest.MonkeyPatch.context() as patch:
        cut_short(patch)
        learner = Learner(method=Frozen(patches=True), progress=False).fit(folder(path / "photos" / "train"))
        learner.save(path / "run")
        learner.export(path / "bundle")
    return path


class Camera:
    """What OpenCV has for this: four frames, blue first."""

    def __init__(self, number: int) -> None:
        self.left = 4

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return self.left >= 0, np.full((48, 64, 3), (40, 40, 200), np.uint8)

    def release(self) -> None:
        assert self.left < 4


@pytest.fixture(autouse=True)
def opencv(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for OpenCV where there is no camera and no screen."""
    module = ModuleType("cv2")
    keys = iter(map(ord, "muq"))
    stand_in: dict[str, Any] = {
        "VideoCapture": Camera,
        "putText": lambda *_: None,
        "imshow": lambda *_: None,
        "waitKey": lambda _: next(keys),
        "FONT_HERSHEY_SIMPLEX": 0,
    }
    for name, value in stand_in.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "cv2", module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(
    page: Path, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.stem != "README":
        cut_short(monkeypatch)
    home = tmp_path / "home"
    shutil.copytree(reader, home)
    if page.stem in ("index", "README"):  # here these are made
        shutil.rmtree(home / "run")
        shutil.rmtree(home / "bundle")
    monkeypatch.chdir(home)
    names: dict[str, Any] = {}
    for kind, text in BLOCK.findall(page.read_text()):
        assert kind in KINDS, f"{page.name} has a block of kind {kind!r}"
        if kind == "python":
            exec(compile(text, page.name, "exec"), names)
        elif kind == "console":
            for line in text.replace("\\\n", " ").splitlines():
                run(line)


def run(line: str) -> None:
    command, *arguments = shlex.split(line, comments=True)
    if command == "pip":
        (wanted,) = (argument for argument in arguments if argument.startswith("everlearn"))
        assert set(re.findall(r"[\w-]+", wanted)[1:]) <= EXTRAS, line
        return
    assert COMMANDS[command](arguments) == 0, line


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 120
    linked = re.findall(r"\]\(docs/([\w.]+)\)", text)
    assert set(linked) == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in contents
