"""Folders of class folders: everything in them is looked at, used, or named with the reason."""

import logging
import os
import struct
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from everlearn.data import ClassIncremental, Images, arrays, folder, folder_splits, load, look
from everlearn.data.looking import Left, table
from everlearn_runtime import open_image

HEIC = Path(__file__).parents[1] / "data" / "heic"


def noise(seed: int = 0, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(side, side, 3)).astype(np.uint8))


def fill(path: Path, classes: str = "ab", count: int = 3) -> Path:
    for name in classes:
        (path / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise(number).save(path / name / f"{number}.png")
    return path


def encoded(form: str, **options: Any) -> bytes:
    file = BytesIO()
    noise().save(file, form, **options)
    return file.getvalue()


def reasons(path: Path) -> dict[str, tuple[str, str]]:
    return {one.name: (one.state, one.why) for one in look(path).left}


@pytest.mark.parametrize("name", ["mu\ng", "gum\u202egnp", "mug\x1b[0m"])
def test_a_name_that_cannot_be_read_is_no_class(tmp_path: Path, name: str) -> None:
    fill(tmp_path)
    (tmp_path / "a").rename(tmp_path / name)
    with pytest.raises(ValueError, match=r"a class folder .* that cannot be seen, U\+.*; rename it"):
        folder(tmp_path)
    with pytest.raises(ValueError, match=r"label 0 is .*no characters that cannot be seen"):
        arrays(np.zeros((1, 8, 8), np.uint8), [name])
    with pytest.raises(ValueError, match=r"label 0 is .*no characters that cannot be seen"):
        Images([name], load=noise)


# Every file


FORMS = {
    **{"bmp": "BMP", "gif": "GIF", "jfif": "JPEG", "jpg": "JPEG", "JPEG": "JPEG", "pgm": "PPM", "png": "PNG"},
    **{"ppm": "PPM", "tif": "TIFF", "TIFF": "TIFF", "webp": "WEBP"},
}


@pytest.mark.parametrize("suffix", FORMS)
def test_every_form_is_an_image(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path)
    (tmp_path / "b" / f"3.{suffix}").write_bytes(encoded(FORMS[suffix]))
    images = folder(tmp_path)
    assert len(images) == 7
    assert images[6][0].tobytes() == open_image(tmp_path / "b" / f"3.{suffix}").convert("RGB").tobytes()


def test_of_several_pictures_in_a_file_the_first_is_taken(tmp_path: Path) -> None:
    fill(tmp_path)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "tif", "webp"):
        path = tmp_path / "b" / f"film.{suffix}"
        options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    for image, _ in folder(tmp_path).subset(range(6, 9)):
        assert np.abs(np.asarray(image).astype(int)[0, 0] - [255, 0, 0]).max() < 3


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "not a readable image: empty"),
    "text.jpg": (b"hello", "not a readable image, whatever its name says"),
    "short.jpg": (encoded("JPEG")[:900], "not a readable image: cut short"),
    "short.png": (encoded("PNG")[:900], "not a readable image: cut short"),
    "short.tif": (encoded("TIFF")[:900], "not a readable image"),
    "deep.png": (b"", "the image has more than 8 bits a channel (I;16); bring it to 8 bits first"),
    "float.tif": (b"", "the image has more than 8 bits a channel (F"),
}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Three sound images of "a" and of "b", and one of each kind that is broken."""
    fill(tmp_path / "data")
    for name, (content, _) in BROKEN.items():
        (tmp_path / "data" / "b" / name).write_bytes(content)
    Image.new("I;16", (4, 4)).save(tmp_path / "data" / "b" / "deep.png")
    Image.new("F", (4, 4)).save(tmp_path / "data" / "b" / "float.tif")
    return tmp_path / "data"


def test_what_cannot_be_read_is_found_before_anything_is_handed_back(broken: Path) -> None:
    found = reasons(broken)
    assert repr(look(broken)) == f"Found('{broken}': 6 images of 2 classes, 7 not used)"
    assert set(found) == {f"b/{name}" for name in BROKEN}
    for name, (_, why) in BROKEN.items():
        state, told = found[f"b/{name}"]
        assert state == "broken"
        assert told.startswith(why)
        assert str(broken) not in told
        with pytest.raises(ValueError, match=name):  # the device says no otherwise
            open_image(broken / "b" / name)
    for read in (folder, folder_splits, load):
        with pytest.raises(
            ValueError, match=r"7 of 13 images in '.*' cannot be read: b/deep\.png \(the"
        ) as caught:
            read(broken)
        assert all(name in str(caught.value) for name in BROKEN)
        assert "on_error='skip'" in str(caught.value)


def test_what_cannot_be_read_may_be_left_out(broken: Path) -> None:
    with pytest.warns(UserWarning, match=r"(.*\n)+broken  1  .*: empty  +b/empty\.png") as caught:
        images = folder(broken, on_error="skip")
    assert all(name in str(caught[0].message) for name in BROKEN)
    assert images.labels == ("a",) * 3 + ("b",) * 3
    said: list[str] = []
    train, test = load(broken, on_error="skip", say=said.append)
    assert (len(train), len(test)) == (4, 2)
    assert "broken" in said[0]
    assert len(folder(broken, on_error="later")) == 13
    with pytest.raises(ValueError, match=r"on_error is 'ignore'; expected 'raise' .*, 'skip' .* or 'later'"):
        folder(broken, on_error="ignore")


def test_of_nothing_but_broken_images_nothing_is_learned(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 images in .* can be read"):
        folder(tmp_path, on_error="skip")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}], ids=str)
def test_a_small_look_finds_what_a_whole_one_finds(tmp_path: Path, options: dict[str, Any]) -> None:
    """A JPEG is looked at in an eighth of its size: wherever it is damaged, the verdict is the same."""
    whole, rng = encoded("JPEG", quality=40, **options), np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for number in range(120):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)] if number % 2 else whole)
        if number % 2 == 0:
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        (tmp_path / "a" / f"{number:03}.jpg").write_bytes(data)
    (tmp_path / "a" / "whole.jpg").write_bytes(whole)
    bad = {one.name for one in look(tmp_path).left}
    for file in sorted((tmp_path / "a").iterdir()):
        try:
            open_image(file)
        except ValueError:
            assert f"a/{file.name}" in bad
        else:
            assert f"a/{file.name}" not in bad
    assert len(bad) > 40


def test_a_bomb_is_found_by_every_thread(tmp_path: Path) -> None:
    header = b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 12_000, 12_000, 1, 24, 0, 0, 0, 0, 0, 0
    )
    fill(tmp_path)
    for number in range(8):
        (tmp_path / "a" / f"bomb{number}.bmp").write_bytes(header)
    found = reasons(tmp_path)
    assert len(found) == 8
    assert all(why.startswith("too large an image") for _, why in found.values())


# What is ignored


def test_what_is_ignored_is_named_with_the_reason(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "loose.png").write_bytes(encoded("PNG"))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "__MACOSX" / "a").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    noise().save(tmp_path / "a" / ".hidden.png")
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / "notes.txt").write_text("text")
    (tmp_path / "a" / "photo").write_bytes(encoded("JPEG"))
    (tmp_path / "a" / "photo.jpg_large").write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "a" / "pipe.png")
    fill(tmp_path / "a" / "old", "x", 2)
    assert reasons(tmp_path) == {
        ".cache": ("ignored", "hidden"),
        "README.md": ("ignored", "no image by its name"),
        "__MACOSX": ("ignored", "what macOS puts into archives"),
        "a/.hidden.png": ("ignored", "hidden"),
        "a/link.png": ("ignored", "a link to nowhere"),
        "a/notes.txt": ("ignored", "no image by its name"),
        "a/old": ("ignored", "a folder in a class folder, 2 images"),
        "a/photo": ("ignored", "JPEG by its content: rename it"),
        "a/photo.jpg_large": ("ignored", "PNG by its content: rename it"),
        "a/pipe.png": ("ignored", "no ordinary file"),
        "empty": ("ignored", "a class folder without an image that can be used"),
        "loose.png": ("ignored", "an image in no class folder"),
    }
    with pytest.warns(UserWarning, match="not used are") as caught:
        images = folder(tmp_path)
    assert images.classes == ("a", "b")
    warned = str(caught[0].message)
    assert all(name in warned for name in ("a/link.png", "a/old", "a/photo", "loose.png"))
    assert not any(name in warned for name in ("README.md", "hidden", "notes.txt", "MACOSX", "empty"))


def test_what_nobody_misses_is_logged_and_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("text")
    with caplog.at_level(logging.INFO, "everlearn"):
        folder(tmp_path)
    assert "ignored  1  no image by its name  a/notes.txt" in caplog.text
    said: list[str] = []
    folder(tmp_path, say=said.append)
    assert said == [f"{tmp_path}: not used are\nignored  1  no image by its name  a/notes.txt"]


def test_a_table_names_the_first_and_counts_the_rest() -> None:
    many = [Left(f"a/{number}.png", "cut short", "broken") for number in range(12)]
    odd = [Left(f"{number}", f"reason {number}") for number in range(30)]
    lines = table([*odd, *many]).splitlines()
    assert len(lines) == 21
    assert lines[0].split()[:2] == ["broken", "12"]
    assert lines[0].endswith("a/9.png and 2 more")
    assert lines[-1].split() == ["and", "11", "more", "for", "other", "reasons"]
    assert last_name(table([Left(os.fsdecode(b"m\xfcg.png"), "cut short", "broken")])) == "m\\udcfcg.png"


def last_name(text: str) -> str:
    text.encode()  # can be printed
    return text.split()[-1]


# HEIC


def test_heic_is_read_with_pillow_heif_and_explained_without(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "a" / "mug.HEIC").write_bytes((HEIC / "mug.heic").read_bytes())
    (tmp_path / "b" / "renamed.jpg").write_bytes((HEIC / "mug.heic").read_bytes())
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        assert reasons(tmp_path) == {
            "a/mug.HEIC": ("ignored", "HEIC, which needs: pip install pillow-heif"),
            "b/renamed.jpg": (
                "broken",
                "not a readable image (HEIC, which Pillow reads with pillow-heif only: pip install "
                "pillow-heif)",
            ),
        }
        with pytest.raises(ValueError, match=r"mug\.heic: .*pip install pillow-heif"):
            open_image(HEIC / "mug.heic")
        return
    images = folder(tmp_path)
    wanted = np.random.default_rng(0).integers(0, 256, (3, 2, 3))
    for index in (3, 7):
        found = np.asarray(images[index][0]).astype(int)
        assert found.shape == (48, 32, 3)
        assert np.abs(found[8::16, 8::16] - wanted).max() < 60  # chroma is halved, and compressed
    with pytest.raises(ValueError, match=r"deep\.heic: the image has more than 8 bits a channel \(10 bits\)"):
        open_image(HEIC / "deep.heic")


# Folders in folders


def test_the_one_folder_in_a_class_folder_holds_its_images(tmp_path: Path) -> None:
    for name in "ab":
        fill(tmp_path / name, "x")
    images = folder(tmp_path)
    assert images.labels == ("a",) * 3 + ("b",) * 3
    assert images[0][1] == "a"
    fill(tmp_path / "a", "y")
    with pytest.raises(
        ValueError,
        match=r"class folder '.*a' has no image directly in it, but folders with images: x, y; give '",
    ):
        folder(tmp_path)
    assert folder(tmp_path / "a").classes == ("x", "y")


def test_links_that_lead_round_in_a_circle_do_no_harm(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert reasons(tmp_path) == {"a/again": ("ignored", "a folder in a class folder, 6 images")}
    with pytest.warns(UserWarning, match="a/again"):
        assert len(folder(tmp_path)) == 6


def test_class_folders_without_images_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"has no image in its class folders \(a\); expected files that end in"
    ):
        folder(tmp_path)
    noise().save(tmp_path / "1.png")
    (tmp_path / "a" / "1.txt").unlink()
    (tmp_path / "a").rmdir()
    with pytest.raises(ValueError, match="has no class folders but 1 images directly in it"):
        folder(tmp_path)


# Training and test


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("test", ["test", "testing", "val", "valid", "Validation"])
def test_a_split_on_disk_has_many_names(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path / train, count=3)
    fill(tmp_path / test, count=1)
    said: list[str] = []
    assert [len(images) for images in folder_splits(tmp_path, say=said.append)] == [6, 2]
    assert said == [f"{tmp_path}: {train}/ to learn, {test}/ to test"]


def test_of_several_to_test_on_the_first_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 1), ("test", 2), ("unlabelled", 1)):
        fill(tmp_path / name, count=count)
    said: list[str] = []
    assert [len(images) for images in folder_splits(tmp_path, say=said.append)] == [6, 4]
    assert said[1] == f"{tmp_path}: not used are unlabelled, val"
    fill(tmp_path / "training")
    with pytest.raises(ValueError, match="has train/ and training/; keep one of them"):
        folder_splits(tmp_path)


def test_a_class_of_one_image_is_learned_and_not_tested_and_that_is_said(tmp_path: Path) -> None:
    fill(tmp_path, "ab", 5)
    fill(tmp_path, "c", 1)
    said: list[str] = []
    train, test = folder_splits(tmp_path, seed=3, say=said.append)
    assert Counter(train.labels) == {"a": 4, "b": 4, "c": 1}
    assert test.classes == ("a", "b")
    assert said == [
        f"{tmp_path} has no test/: of each class four fifths to learn and one fifth to test, 9 and 2 images, "
        "drawn with seed 3",
        f"{tmp_path}: learned but not tested, with one image only: 'c'",
    ]
    with pytest.warns(UserWarning, match="'c'"):
        assert len(ClassIncremental(train, test, classes_per_task=1)) == 2


def test_of_one_image_of_each_class_none_is_left_to_test_on(tmp_path: Path) -> None:
    fill(tmp_path, "abc", 1)
    with pytest.raises(ValueError, match="has one image only of each class, so that none is left to test on"):
        folder_splits(tmp_path)
    assert len(folder(tmp_path)) == 3
    fill(tmp_path / "divided" / "train", "ab", 2)
    fill(tmp_path / "divided" / "test", "a", 1)
    said: list[str] = []
    folder_splits(tmp_path / "divided", say=said.append)
    assert said[-1] == f"{tmp_path / 'divided'}: learned but not tested, with no image in test/: 'b'"


READERS: list[Callable[[Path], Any]] = [folder, look, folder_splits]


@pytest.mark.parametrize("read", READERS)
def test_a_folder_that_may_not_be_looked_into_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any]
) -> None:
    fill(tmp_path)

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ValueError, match=rf"cannot look into '{tmp_path}': Permission denied"):
        read(tmp_path)
