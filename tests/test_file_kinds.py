"""What every entrance makes of every kind of file: taken, ignored, or refused by name with the reason."""

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from everlearn import Frozen, Learner
from everlearn.cli import main as everlearn
from everlearn.data import folder, look
from everlearn_runtime import EdgeLearner
from everlearn_runtime.cli import main as device

from .conftest import coloured, make_learner, pixels
from .file_kinds import make_kinds

TAKEN = "taken"
DEEP = "the image has more than 8 bits a channel"
UNREADABLE = "not a readable image, whatever its name says"
CUT = "not a readable image: cut short"
EMPTY = "not a readable image: empty"
LARGE = "too large an image"
HEIC = TAKEN if find_spec("pillow_heif") else "pip install pillow-heif"
NO_FORMAT = "is no readable JPEG, PNG, WEBP, BMP file"


@dataclass(frozen=True)
class Kind:
    """What happens to one kind of file; where it is refused or ignored, the words that say so.

    Args:
        file: Given by its path, to `Learner.predict`, `EdgeLearner.predict`, `everlearn-device predict` and
            `learn`.
        folder: In a folder, for `everlearn train`; None: as ``file``.
        device: In a folder, for `everlearn-device`; None: as ``folder``.
        served: In a request to the page's API; None: as ``file``.
    """

    file: str = TAKEN
    folder: str | None = None
    device: str | None = None
    served: str | None = None


KINDS = {
    **dict.fromkeys(["JPEG", "PNG", "WebP", "BMP", "palette PNG", "palette PNG, transparent"], Kind()),
    **dict.fromkeys(["1-bit PNG", "grey JPEG", "CMYK JPEG", "RGBA PNG", "grey + alpha PNG"], Kind()),
    **dict.fromkeys(["JPEG turned by EXIF", "upper-case ending", "PNG named .jpg"], Kind()),
    **dict.fromkeys(["GIF", "GIF, animated", "TIFF", "PPM"], Kind(served=NO_FORMAT)),
    "HEIC": Kind(HEIC, served=NO_FORMAT),
    **dict.fromkeys(["TIFF, 16-bit grey", "TIFF, float"], Kind(DEEP, served=NO_FORMAT)),
    **dict.fromkeys(["PNG, 16-bit grey", "PNG, 16-bit RGB"], Kind(DEEP)),
    **dict.fromkeys(["no ending", "JPEG named .dat"], Kind(folder="JPEG by its content: rename it")),
    **dict.fromkeys(["cut short", "PNG cut short"], Kind(CUT)),
    "empty": Kind(EMPTY, served="is empty"),
    **dict.fromkeys(["text named .jpg", "no pixels"], Kind(UNREADABLE, served=NO_FORMAT)),
    "text": Kind(UNREADABLE, "no image by name", served=NO_FORMAT),
    "hidden": Kind(folder="hidden", device=""),
    "too many pixels": Kind(LARGE, served="is too large"),
    ".npy": Kind("an array; give what numpy.load reads", "an array", TAKEN, NO_FORMAT),
    "link to nowhere": Kind("a link to nowhere", served=""),
    "folder named .jpg": Kind("", "a folder in a class folder, 0 images", "", ""),
    "no such file": Kind("no such file", "", "", ""),
}


@dataclass
class World:
    """A learner, its bundle, and files of all kinds."""

    path: Path
    learner: Learner
    files: dict[str, Path]

    @property
    def bundle(self) -> str:
        return str(self.path / "bundle")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("kinds")
    learner = make_learner(Frozen()).fit(coloured("ab"))
    learner.export(path / "bundle")
    (path / "files").mkdir()
    scene = pixels(coloured("a", 1, seed=5))[0].repeat(2, axis=0).repeat(2, axis=1)
    return World(path, learner, make_kinds(path / "files", scene))


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[Any]:
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    from starlette.testclient import TestClient

    from everlearn_runtime.serving.app import App
    from everlearn_runtime.serving.limits import Limits

    with EdgeLearner.open(world.bundle, state=world.path / "served.db", threads=1) as edge:
        app = App(edge, limits=Limits(rate=1e6, burst=1_000_000))
        yield TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        app.close()


@pytest.fixture
def photos(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Two class folders with a good picture each, and the file that is tried in the first."""
    file = world.files[request.node.callspec.params["kind"]]
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        shutil.copy(world.files["PNG"], tmp_path / "photos" / name / "good.png")
    there = tmp_path / "photos" / "a" / file.name
    if file.is_dir():
        there.mkdir()
    elif file.is_symlink():
        there.symlink_to(file.readlink())
    elif file.exists() and not there.exists():
        shutil.copy(file, there)
    return tmp_path / "photos"


def test_no_kind_is_left_out(world: World) -> None:
    assert KINDS.keys() == world.files.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_by_its_path(
    world: World, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, wanted = world.files[kind], KINDS[kind].file
    if file.is_dir():
        return
    predict = ["predict", world.bundle, str(file), "--json"]
    learn = ["learn", world.bundle, "key", str(file), "--state", str(tmp_path / "device.db")]
    with EdgeLearner.open(world.bundle, threads=1) as edge:
        if wanted == TAKEN:
            labels = world.learner.predict(file)
            assert edge.predict(file).labels == labels
        else:
            for one in (world.learner, edge):
                with pytest.raises(ValueError, match=wanted) as refused:
                    one.predict(file)
                assert str(refused.value).count(file.name) == 1
    if wanted == TAKEN or kind == ".npy":
        assert device(predict) == device(learn) == 0
        out, err = capsys.readouterr()
        (row,) = json.loads(out.splitlines()[0])["predictions"]
        assert err == ""
        assert row["label"] in "ab" if kind == ".npy" else row["label"] == labels[0]
        return
    for command in (predict, learn):
        assert device(command) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), err.count(file.name)) == ("", 1, 1)
        assert wanted in err
    assert not (tmp_path / "device.db").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_a_folder_to_train_on(world: World, kind: str, photos: Path) -> None:
    given = KINDS[kind]
    wanted = given.file if given.folder is None else given.folder
    name = f"a/{world.files[kind].name}"
    found = look(photos)
    told = {one.name: one.why for one in found.left}
    if wanted == TAKEN:
        assert told == {}
        assert len(folder(photos)) == len({*photos.glob("*/*")})
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert len(folder(photos, on_error="skip")) == 2
    if wanted == "":
        assert told == {}
        return
    assert wanted.replace("by name", "by its name") in told[name]
    if any(one.state == "broken" for one in found.left):
        with pytest.raises(ValueError, match=r"1 of 3 images in .* cannot be read: " + name):
            folder(photos)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_a_folder_on_a_device(
    world: World, kind: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = KINDS[kind]
    wanted = next(one for one in (given.device, given.folder, given.file) if one is not None)
    state = ["--state", str(tmp_path / "device.db")]
    number = len({world.files[kind].name, "good.png"}) if wanted == TAKEN else 1
    broken = wanted not in (TAKEN, "", given.folder)
    learned = f"learned {number} of 'a', 1 of 'b'; 2 classes\n"
    assert device(["learn", world.bundle, str(photos), *state]) == int(broken)
    out, err = capsys.readouterr()
    assert out == learned
    assert (wanted in err) if wanted != TAKEN else err == ""
    assert device(["predict", world.bundle, str(photos / "a"), "--json"]) == int(broken)
    out, again = capsys.readouterr()
    assert len(json.loads(out)["predictions"]) == number
    assert again == err


@pytest.mark.parametrize("kind", [kind for kind, given in KINDS.items() if given.served != ""])
def test_a_file_in_a_request(world: World, kind: str, client: Any) -> None:
    given, content = KINDS[kind], world.files[kind].read_bytes()
    wanted = given.file if given.served is None else given.served
    for call in ("/predict", "/learn?label=key"):
        answer = client.post(call, content=content, headers={"content-type": "image/jpeg"})
        if wanted == TAKEN:
            assert answer.status_code == 200
        else:
            assert answer.status_code == (413 if kind == "too many pixels" else 400)
            assert wanted in answer.json()["error"]


def test_the_command_that_trains_names_them_and_leaves_them_out(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            shutil.copy(world.files["PNG"], tmp_path / "photos" / name / f"{number}.png")
    Image.new("I;16", (8, 8)).save(tmp_path / "photos" / "b" / "deep.png")
    command = ["train", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--method", "SimpleCIL"]
    assert everlearn(command) == 2
    assert "b/deep.png (the image has more than 8 bits" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert everlearn([*command, "--skip-bad"]) == 0
    assert "b/deep.png" in capsys.readouterr().err
