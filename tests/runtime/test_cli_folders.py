"""``everlearn-device`` on folders, what it says of itself, and where its answers go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from everlearn_runtime import __version__
from everlearn_runtime.cli import main

MakeImages = Callable[..., NDArray[np.uint8]]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path, make_images: MakeImages) -> Path:
    """A tree of class folders, with some of what is found beside pictures."""
    for name in ("cup", "mug"):
        folder = tmp_path / "photos" / name / "deeper"
        folder.mkdir(parents=True)
        for number, pixels in enumerate(make_images(name, 3)):
            Image.fromarray(pixels).save((folder if number == 2 else folder.parent) / f"{number}.png")
    for hidden in (".hidden.png", "__MACOSX"):
        (tmp_path / "photos" / hidden).mkdir()
    (tmp_path / "photos" / "cup" / "notes.txt").write_text("notes")
    return tmp_path / "photos"


@pytest.fixture
def cups(tmp_path: Path, make_images: MakeImages) -> list[str]:
    for number, pixels in enumerate(make_images("cup", 5)):
        Image.fromarray(pixels).save(tmp_path / f"cup{number}.png")
    return [str(tmp_path / f"cup{number}.png") for number in range(5)]


def test_a_tree_of_class_folders_is_learned_and_predicted(
    bundle: Path, tmp_path: Path, photos: Path, capsys: Output
) -> None:
    here, state = str(bundle), ["--state", str(tmp_path / "device.db")]
    assert main(["learn", here, str(photos), *state]) == 0
    out, err = capsys.readouterr()
    assert out == "learned 3 of 'cup', 3 of 'mug'; 3 classes\n"
    assert err.startswith("everlearn-device: ignored 1 file that is no image by name, such as ")
    assert "notes.txt" in err
    assert main(["predict", here, str(photos), *state]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [Path(line.split()[0]).relative_to(photos).as_posix() for line in lines[1:7]]
    assert names == [
        f"{name}/{file}" for name in ("cup", "mug") for file in ("0.png", "1.png", "deeper/2.png")
    ]
    assert lines[8] == "6 of 6 are of the class of their folder"
    assert main(["history", here, *state, "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)["versions"]
    assert versions[-1]["counts"] == {"cup": 3, "mug": 3}  # one call, which can be undone

    assert main(["learn", here, "pen", str(photos / "cup"), *state]) == 2
    assert "has images directly in it and in folders (deeper)" in capsys.readouterr().err
    (photos / "cup" / "deeper" / "2.png").unlink()
    assert main(["learn", here, "pen", str(photos / "cup"), *state]) == 0
    assert capsys.readouterr().out.startswith("learned 2 of 'pen'")
    assert main(["predict", here, str(photos / "cup"), "--json", *state]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert len(rows) == 2
    assert "folder" not in rows[0]


def test_one_bad_file_among_many_is_named_and_the_others_are_answered(
    bundle: Path, tmp_path: Path, photos: Path, capsys: Output
) -> None:
    bad = photos / "mug" / "bad.jpg"
    bad.write_bytes((photos / "mug" / "0.png").read_bytes()[:60])
    deep = photos / "mug" / "deep.png"
    Image.new("I;16", (8, 8)).save(deep)
    here, state = str(bundle), tmp_path / "device.db"
    assert main(["predict", here, str(photos)]) == 1
    out, err = capsys.readouterr()
    assert out.count(".png") == 6
    said = [line for line in err.splitlines() if "left out" in line]
    assert said[0].startswith(f"everlearn-device: left out {bad}: not a readable image")
    assert said[1].startswith(f"everlearn-device: left out {deep}: the image has more than 8 bits a channel")

    for command in (["predict", here, str(photos)], ["learn", here, str(photos), "--state", str(state)]):
        assert main([*command, "--strict"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"everlearn-device: {bad}: not a readable image")
        assert err.endswith("; 1 more cannot be used\n")
    assert not state.exists()

    assert main(["learn", here, str(photos), "--state", str(state), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["samples"] == {"cup": 3, "mug": 3}
    assert [one["image"] for one in answer["bad"]] == [str(bad), str(deep)]


def test_many_batches_and_many_bad_files(
    bundle: Path, tmp_path: Path, make_images: MakeImages, capsys: Output
) -> None:
    np.save(tmp_path / "many.npy", make_images("mug", 70))
    (tmp_path / "bad").mkdir()
    for number in range(23):
        (tmp_path / "bad" / f"{number:02}.png").write_text("text")
    assert main(["predict", str(bundle), str(tmp_path / "many.npy"), str(tmp_path / "bad")]) == 1
    out, err = capsys.readouterr()
    assert out.count("many.npy[") == 70
    assert err.count("left out") == 21
    assert err.endswith("left out 3 more\n")


def test_folders_that_cannot_be_used(bundle: Path, tmp_path: Path, photos: Path, capsys: Output) -> None:
    here, state = str(bundle), ["--state", str(tmp_path / "device.db")]
    (tmp_path / "empty").mkdir()
    (tmp_path / "trees" / " ").mkdir(parents=True)
    for part in ("Train", "val"):
        shutil.copytree(photos, tmp_path / "split" / part)
    flat = photos / "mug" / "deeper"
    for arguments, says in (
        (["predict", here, str(tmp_path / "empty")], "empty has no images; expected files that end in .avif"),
        (["learn", here, "mug", str(photos), *state], "is in a class folder; leave 'mug' out to learn it as"),
        (["learn", here, str(flat), *state], f"2.png is in no class folder; give its class before {flat}"),
        (["predict", here, str(tmp_path / "trees")], "non-empty str"),
        (
            ["learn", here, str(tmp_path / "split"), *state],
            "it has class folders in Train and val",
        ),
        (["predict", here, str(tmp_path / "split")], f"such as {tmp_path / 'split' / 'Train'}"),
    ):
        assert main(arguments) == 2, arguments
        assert says in capsys.readouterr().err


def test_info_of_a_bundle_and_a_state(bundle: Path, tmp_path: Path, cups: list[str], capsys: Output) -> None:
    state = tmp_path / "device.db"
    for label in ("cup", "axe"):
        assert main(["learn", str(bundle), label, *cups, "--state", str(state)]) == 0
    assert main(["forget", str(bundle), "axe", "--state", str(state)]) == 0
    assert main(["learn", str(bundle), "cup", *cups, "--state", str(state)]) == 0
    assert main(["undo", str(bundle), "--state", str(state)]) == 0
    capsys.readouterr()
    assert main(["info", str(state), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["what"], said["version"], said["classes"]) == ("state", 5, {"cup": 5})
    assert said["bytes"]["device.db"] == state.stat().st_size
    assert main(["info", str(bundle), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["what"] == "bundle"
    assert said["classes"] == {"mug": 4, "pen": 4}
    assert (said["format"], said["everlearn"], said["head"]) == (1, "0.1.0", "lda")
    assert said["bytes"].keys() == {"features.onnx", "head.safetensors", "manifest.json"}
    assert main(["info", str(bundle)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["format", "1"] in lines
    assert lines[-2:] == [["mug", "4"], ["pen", "4"]]
    (bundle / "head.safetensors").write_bytes(b"damaged")
    assert main(["info", str(bundle)]) == 2
    assert "head.safetensors is damaged" in capsys.readouterr().err


def test_the_version_and_examples(capsys: Output) -> None:
    for arguments, says in ((["--version"], f"everlearn {__version__}\n"), (["--help"], "example:\n")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert says in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out.split("COMMAND\n")[1].split("options:")[0]
    commands = [line.split()[0] for line in listed.splitlines() if line[:4].isspace() and line[4:5].isalpha()]
    assert {"predict", "learn", "info", "undo"} <= set(commands)
    for command in commands:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"example:\n  everlearn-device {command} " in capsys.readouterr().out


def test_a_reader_that_is_gone_undoes_nothing(bundle: Path, tmp_path: Path, cups: list[str]) -> None:
    state = str(tmp_path / "device.db")
    command = [
        sys.executable,
        "-m",
        "everlearn_runtime",
        "learn",
        str(bundle),
        "cup",
        *cups,
        "--state",
        state,
    ]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "python -m everlearn_runtime: done, but the answer could not be printed: No space left on device\n"
    assert (done.returncode, done.stderr) == (0, said)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert main(["rollback", str(bundle), "2", "--state", state]) == 0


@pytest.mark.parametrize(("module", "extra"), [("onnxruntime", "cpu"), ("PIL", "images")])
def test_on_a_base_install_one_line_names_the_extra(
    bundle: Path, tmp_path: Path, module: str, extra: str
) -> None:
    image = tmp_path / "big.npy"
    np.save(image, np.zeros((30, 70, 3), np.uint8))
    program = f"import sys; sys.modules[{module!r}] = None; from everlearn_runtime.cli import main; "
    program += f"sys.exit(main(['predict', {str(bundle)!r}, {str(image)!r}]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f'pip install "everlearn[{extra}]"' in done.stderr
