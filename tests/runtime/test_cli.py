"""``everlearn-device``, as it is typed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from everlearn_runtime.cli import main

MakeImages = Callable[..., NDArray[np.uint8]]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def cups(tmp_path: Path, make_images: MakeImages) -> list[str]:
    """Two image files and an array of three, all cups."""
    images = make_images("cup", 5)
    paths = [tmp_path / "one.png", tmp_path / "two.bmp", tmp_path / "more.npy"]
    Image.fromarray(images[0]).save(paths[0])
    Image.fromarray(images[1]).save(paths[1])
    np.save(paths[2], images[2:])
    return [str(path) for path in paths]


def test_a_session(bundle: Path, tmp_path: Path, cups: list[str], capsys: Output) -> None:
    state = ["--state", str(tmp_path / "device.db")]

    assert main(["learn", str(bundle), "cup", *cups, *state]) == 0
    assert capsys.readouterr().out == "learned 5 of 'cup', 5 samples in all; 3 classes\n"

    assert main(["predict", str(bundle), *cups, *state]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "label", "probabilities"]
    assert lines[-1].startswith("not calibrated")
    assert [line.split()[:2] for line in lines[1:-2]] == [
        [cups[0], "cup"],
        [cups[1], "cup"],
        *([f"{cups[2]}[{number}]", "cup"] for number in range(3)),
    ]
    assert len({line.index("cup ") for line in lines[3:-2]}) == 1

    assert main(["forget", str(bundle), "mug", *state]) == 0
    assert capsys.readouterr().out == "forgot 'mug' (pooled); 2 classes left\n"

    assert main(["status", str(bundle), *state]) == 0
    out = capsys.readouterr().out
    for part in (
        "8 x 8 RGB",
        "written by everlearn 0.1.0",
        "max_abs_difference",
        "1e-06",
        "state bytes",
        "lda",
    ):
        assert part in out
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["class", "samples"],
        ["pen", "4"],
        ["cup", "5"],
    ]


def test_json_for_machines(bundle: Path, tmp_path: Path, cups: list[str], capsys: Output) -> None:
    state = ["--state", str(tmp_path / "device.db"), "--json"]
    assert main(["learn", str(bundle), "cup", cups[0], *state]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [said.pop(name) for name in ("suspects", "bad", "ignored")] == [[], [], []]
    assert said == {"label": "cup", "learned": 1, "samples": 1, "classes": {"mug": 4, "pen": 4, "cup": 1}}
    assert main(["predict", str(bundle), cups[2], *state]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert len(rows) == 3
    for row in rows:
        assert row["label"] == max(row["scores"], key=row["scores"].__getitem__)
    assert main(["forget", str(bundle), "cup", *state]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"label": "cup", "form": "pooled", "classes": {"mug": 4, "pen": 4}}
    assert main(["status", str(bundle), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["classes"] == {"mug": 4, "pen": 4}
    assert said["parity"] == {"max_abs_difference": 1e-6}
    assert said["bytes"].keys() == {"graph", "head"}


def test_what_was_changed_can_be_taken_back(
    bundle: Path, tmp_path: Path, cups: list[str], capsys: Output
) -> None:
    here, state = str(bundle), ["--state", str(tmp_path / "device.db")]
    assert main(["learn", here, "cup", *cups, *state]) == 0
    assert main(["forget", here, "mug", *state]) == 0
    capsys.readouterr()
    assert main(["undo", here, *state]) == 0
    assert capsys.readouterr().out == "back to version 1; 3 classes. This is version 3\n"
    assert main(["rollback", here, "0", *state, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 4, "to": 0, "classes": {"mug": 4, "pen": 4}}
    assert main(["history", here, *state]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["version", "time", "change"]
    assert [line.split()[2:] for line in lines[1:]] == [
        ["start"],
        ["learn", "5", "of", "'cup'"],
        ["forget", "4", "of", "'mug'"],
        ["back", "to", "1"],
        ["back", "to", "0"],
    ]
    copy = str(tmp_path / "copy.db")
    assert main(["backup", here, copy, *state]) == 0
    assert capsys.readouterr().out == f"copied version 4 to {copy}\n"
    assert main(["forget", here, "pen", "--purge", *state]) == 0
    assert main(["history", here, *state, "--json"]) == 0
    (version,) = json.loads(capsys.readouterr().out.splitlines()[-1])["versions"]
    assert (version["version"], version["kind"], version["counts"]) == (5, "purge", {})
    assert main(["undo", here, *state]) == 2
    assert "nothing left to undo" in capsys.readouterr().err
    assert main(["rollback", here, "4", "--state", copy]) == 0


def test_an_image_of_another_size_is_prepared(bundle: Path, tmp_path: Path, capsys: Output) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((30, 70, 3), np.uint8))
    np.save(tmp_path / "grey.npy", np.zeros((30, 70, 1), np.uint8))
    assert main(["predict", str(bundle), str(tmp_path / "wide.npy"), str(tmp_path / "grey.npy")]) == 0
    scores = {line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[1:3]}
    assert len(scores) == 1


def test_mistakes_are_one_line_and_exit_code_two(
    bundle: Path, tmp_path: Path, cups: list[str], capsys: Output
) -> None:
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "text.npy").write_text("text")
    np.save(tmp_path / "float.npy", np.zeros((8, 8, 3)))
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    header = io.BytesIO()
    np.save(header, np.zeros((1, 8, 8, 3), np.uint8))
    long = header.getvalue()[:128].replace(
        b"(1, 8, 8, 3), }        ", b"(99999999999, 8, 8, 3), }"[:23].ljust(23)
    )
    (tmp_path / "long.npy").write_bytes(long + bytes(192))
    np.save(tmp_path / "many.npy", np.zeros((5, 9, 9), np.uint8))
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    (tmp_path / "deep-rgb.ppm").write_bytes(b"P6 4 4 65535\n" + bytes(96))
    here, state, learned = str(bundle), str(tmp_path / "device.db"), str(tmp_path / "learned.db")
    assert main(["learn", here, "cup", cups[0], "--state", learned]) == 0
    capsys.readouterr()
    for arguments, says in (
        (["predict", str(tmp_path / "none"), cups[0]], "no such folder"),
        (["predict", here, str(tmp_path / "none.png")], "no such file"),
        (["predict", here, str(tmp_path / "none.npy")], "no such file"),
        (["predict", here, str(tmp_path / "x*.png")], "x*.png: no file matches this pattern"),
        (["predict", here, str(tmp_path / "*.pn[g]")], ".png matches; give the files themselves"),
        (["predict", here, str(tmp_path / "text.png")], "not a readable image"),
        (["predict", here, str(tmp_path / "text.npy")], "not a readable .npy"),
        (["predict", here, str(tmp_path / "float.npy")], "float.npy: the images are float64"),
        (["predict", here, str(tmp_path / "long.npy")], "long.npy: not a readable .npy"),
        (["predict", here, str(tmp_path / "many.npy")], "many.npy: the images have shape (5, 9, 9)"),
        (["predict", here, str(tmp_path / "deep.png")], "deep.png: the image has more than 8 bits"),
        (
            ["predict", here, "--strict", cups[0], str(tmp_path / "deep-rgb.ppm")],
            "deep-rgb.ppm: the image has more than 8",
        ),
        (["learn", here, "cup", "--state", state], "no images to learn; give them after the class, 'cup'"),
        (["info", str(tmp_path / "none")], "none: no such file or folder"),
        (["info", cups[0]], "one.png is neither a bundle, "),
        (["predict", here, str(tmp_path / "object.npy")], "not a readable .npy"),
        (["predict", here, cups[0], "--state", state], "no such state"),
        (["status", here, "--state", state], "no such state"),
        (["forget", here, "mug", "--state", state], "no such state"),
        (["learn", here, "cup", cups[0], "--state", str(tmp_path / "no" / "x.db")], "make it first"),
        (
            ["learn", here, "cup", cups[0], "--state", "/proc/x.db"],
            "/proc/x.db, where nothing can be",
        ),
        (["delta", here, "/proc/x", "--state", learned], "TO is /proc/x, where nothing can be written"),
        (["predict", here, cups[0], "--provider", "NoSuchProvider"], "NoSuchProvider"),
        (["predict", here, cups[0], "--threads", "0"], "threads"),
        (["learn", here, " ", cups[0], "--state", state], "non-empty str"),
        (["forget", here, "axe", "--state", learned], "no class 'axe'"),
    ):
        assert main(arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("everlearn-device: ")
        assert says in err
        assert err.count("\n") == 1


def test_learn_needs_a_state(bundle: Path, cups: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["learn", str(bundle), "cup", *cups])
    assert "--state" in capsys.readouterr().err


def test_learning_from_what_cannot_be_read_makes_no_state(
    bundle: Path, tmp_path: Path, cups: list[str], capsys: Output
) -> None:
    state = tmp_path / "device.db"
    (tmp_path / "text.png").write_text("text")
    for label, images in (
        ("cup", ["--strict", cups[0], str(tmp_path / "none.png")]),
        ("cup", [str(tmp_path / "text.png")]),
        (" ", cups),
    ):
        assert main(["learn", str(bundle), label, *images, "--state", str(state)]) == 2
        assert "everlearn-device: " in capsys.readouterr().err
        assert not list(tmp_path.glob("device.db*"))
    assert main(["learn", str(bundle), "cup", *cups, "--state", str(state)]) == 0
    assert state.is_file()


def test_files_of_any_kind_and_size(bundle: Path, tmp_path: Path, capsys: Output) -> None:
    rgb = np.random.default_rng(0).integers(256, size=(20, 31, 3), dtype=np.uint8)
    held, exif = Image.fromarray(np.rot90(rgb)), Image.Exif()
    exif[0x0112] = 6
    held.save(tmp_path / "held.png", exif=exif)
    Image.fromarray(rgb).save(tmp_path / "plain.tif")
    np.save(tmp_path / "one.npy", rgb)
    np.save(tmp_path / "many.npy", np.asfortranarray([rgb] * 2))
    paths = [str(tmp_path / name) for name in ("held.png", "plain.tif", "one.npy", "many.npy")]
    assert main(["predict", str(bundle), *paths, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert [row["image"] for row in rows] == [*paths[:3], f"{paths[3]}[0]", f"{paths[3]}[1]"]
    assert len({json.dumps(row["scores"]) for row in rows}) == 1
    np.save(tmp_path / "grey.npy", rgb[:, :, 0])
    Image.fromarray(rgb[:, :, 0]).save(tmp_path / "grey.png")
    assert (
        main(["predict", str(bundle), str(tmp_path / "grey.npy"), str(tmp_path / "grey.png"), "--json"]) == 0
    )
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert rows[0]["scores"] == rows[1]["scores"]


def test_a_terminal_without_the_letters(bundle: Path, tmp_path: Path, cups: list[str]) -> None:
    state = ["--state", str(tmp_path / "device.db")]
    plain = {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "everlearn_runtime.cli"]
    for arguments, code in (
        (["learn", str(bundle), "Täßchen ☕", *cups], 0),
        (["forget", str(bundle), "Öl"], 2),
    ):
        done = subprocess.run([*command, *arguments, *state], env=plain, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "T\\xe4\\xdfchen \\u2615" in done.stdout + done.stderr
