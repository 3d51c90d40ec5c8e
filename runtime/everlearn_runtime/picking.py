"""The pictures that somebody means by files and folders, one by one, and what is wrong with some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.decoding import IMAGE_SUFFIXES, form_of, no_file
from everlearn_runtime.images import InputSpec, prepare_batch
from everlearn_runtime.names import check_name

ARRAYS = ".npy"
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
"""Names of folders that divide a data set, in lower or upper case; of several to test on the first."""


@dataclass(frozen=True)
class File:
    """A file that may hold pictures.

    Args:
        path: As it was given, or found.
        label: The class folder it lies in; None where it is in none.
    """

    path: str
    label: str | None = None


@dataclass(frozen=True)
class Bad:
    """A file that is not used, and why."""

    image: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """One picture, as the graph takes it in.

    Args:
        name: Its file, with ``[i]`` of a file of several.
        label: The class folder it lies in; None where it is in none.
        pixels: uint8 (height, width, 3).
    """

    name: str
    label: str | None
    pixels: NDArray[np.uint8]


def files_in(paths: Iterable[str]) -> tuple[list[File], list[str]]:
    """The files that may hold pictures, and the names of those in folders that do not.

    Args:
        paths: Files, taken whatever their names; folders of images; and folders of class folders, whose
            images, at any depth, belong to the class of the folder. Hidden files and folders, and
            ``__MACOSX``, count as nothing.

    Raises:
        ValueError: A folder without images, with images beside class folders, divided into ``train`` and
            ``test``, or with a name that no class can have, or that cannot be looked into.
    """
    files: list[File] = []
    others: list[str] = []
    for path in paths:
        folder = Path(path)
        if not folder.is_dir():
            files.append(File(path))
            continue
        own, inner = _directly(folder, others)
        named = [name for name in inner if name.casefold() in (*TRAIN, *TEST)]
        if parts := [name for name in named if _divides(folder / name)]:
            raise ValueError(
                f"{path} is divided: it has class folders in {' and '.join(parts)}; give one of these, such "
                f"as {folder / parts[0]}"
            )
        below = [file for name in inner for file in _below(folder / name, _class_of(folder / name), others)]
        if own and below:
            raise ValueError(
                f"{path} has images directly in it and in folders ({', '.join(inner[:3])}); give the one or "
                "the other"
            )
        if not own and not below:
            raise ValueError(
                f"{path} has no images; expected files that end in {', '.join((*IMAGE_SUFFIXES, ARRAYS))}"
            )
        files += own or below
    return files, others


def pictures(files: Sequence[File], spec: InputSpec, bad: list[Bad]) -> Iterator[Picture]:
    """Read files one after the other; those that cannot be read are put into ``bad``, and left out.

    Raises:
        MissingExtra: Pillow is not installed, and some picture needs it.
    """
    for file in files:
        try:
            names, batch = _read(file.path, spec)
        except ValueError as error:
            reason = " ".join(str(error).split())
            bad.append(Bad(file.path, reason.removeprefix(f"{file.path}: ")))
            continue
        for name, row in zip(names, batch, strict=True):
            yield Picture(name, file.label, row)


def misnamed(others: Iterable[str]) -> list[tuple[str, str]]:
    """Of files that are no images by their names, those that are by their content, and their formats."""
    try:
        return [(path, form) for path in others if (form := form_of(path)) is not None]
    except ImportError:  # without Pillow nobody can say
        return []


def _directly(folder: Path, others: list[str]) -> tuple[list[File], list[str]]:
    """The image files and the folders in a folder; what is neither goes to ``others``."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not _hidden(entry.name))
    except OSError as error:
        raise ValueError(f"cannot look into {folder}: {error.strerror}") from error
    files, folders = [], []
    for entry in entries:
        if entry.is_dir():
            folders.append(entry.name)
        elif entry.suffix.lower() in (*IMAGE_SUFFIXES, ARRAYS):
            files.append(File(str(entry)))
        else:
            others.append(str(entry))
    return files, folders


def _divides(folder: Path) -> bool:
    """Whether this is no class, though it may have the name of one: then its images lie directly in it."""
    files, folders = _directly(folder, [])
    return bool(folders) and not files


def _below(folder: Path, label: str, others: list[str]) -> Iterator[File]:
    """All image files in a class folder and in its folders; links to folders inside are not followed."""
    files, folders = _directly(folder, others)
    yield from (File(file.path, label) for file in files)
    for name in folders:
        if not (folder / name).is_symlink():
            yield from _below(folder / name, label, others)


def _class_of(folder: Path) -> str:
    try:
        return check_name(folder.name)
    except ValueError as error:
        raise ValueError(f"folder {str(folder)!r} cannot be a class: {error}; rename it") from error


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _read(path: str, spec: InputSpec) -> tuple[list[str], NDArray[np.uint8]]:
    """The pictures in one file, and a name for each."""
    if Path(path).suffix.lower() != ARRAYS:
        return [path], prepare_batch(path, spec)
    if (missing := no_file(path)) is not None:
        raise ValueError(missing)
    try:
        # Mapped, so that the size in the header is held against the file's before memory is asked for.
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy has half a dozen kinds for damaged files
        raise ValueError(f"not a readable .npy file ({error})") from error
    batch = prepare_batch(array, spec)
    return [path] if array.ndim < 4 else [f"{path}[{number}]" for number in range(len(batch))], batch
