"""What is in a folder of class folders, file by file: what is an image of which class, and what is not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from everlearn.data import looking
from everlearn.data.images import Images, rgb_of
from everlearn.data.labels import sort_classes
from everlearn.data.looking import Left, printable
from everlearn_runtime.decoding import IMAGE_SUFFIXES, decoded, form_of, to_rgb
from everlearn_runtime.images import open_image
from everlearn_runtime.names import check_name

_HEIC = (".heic", ".heif")
_NO_HEIC = "HEIC, which needs: pip install pillow-heif"


@dataclass(frozen=True, repr=False)
class Found:
    """What is in a folder of class folders.

    Attributes:
        path: of the folder.
        files: the images, class by class.
        left: what is not used, and why.
    """

    path: Path
    files: tuple[Path, ...]
    left: tuple[Left, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The class name of every image."""
        return tuple(file.relative_to(self.path).parts[0] for file in self.files)

    def __repr__(self) -> str:
        counts = f"{len(self.files)} images of {len(set(self.labels))} classes, {len(self.left)} not used"
        return f"Found({printable(str(self.path))!r}: {counts})"

    def looked_at(self) -> Found:
        """The same after a look at every image; those that cannot be read are among ``left``."""
        bad = looking.broken(partial(_look, self.files), len(self.files))
        names = {index: str(self.files[index].relative_to(self.path)) for index in bad}
        gone = [Left(names[index], why, "broken", loss=True) for index, why in bad.items()]
        kept = tuple(file for index, file in enumerate(self.files) if index not in bad)
        return replace(self, files=kept, left=(*self.left, *gone))

    def images(self) -> Images:
        """The images with their labels."""
        return Images(self.labels, partial(_load_file, self.files), partial(_bytes_of, self.files))

    def table(self) -> str:
        """What is not used: a row for each reason, with the number of files and the first names."""
        return looking.table(self.left) if self.left else ""


def find(path: Path) -> Found:
    """What is in a folder of class folders, by names alone.

    Raises `ValueError` as `everlearn.data.folder` does, but not for images that cannot be read.
    """
    if not path.is_dir():
        raise ValueError(f"'{path}' is not a folder; expected one with a folder of images for each class")
    files: list[Path] = []
    folders, loose = {}, []
    for entry in _entries(path):
        if _is_folder(entry):
            folders[entry.name] = entry
        else:
            loose.append(entry)
    images, left = _told_apart(loose, path)
    left += [Left(entry.name, "an image in no class folder", loss=True) for entry in images]
    if not folders:
        here = f" but {len(images)} images directly in it" if images else ""
        raise ValueError(f"'{path}' has no class folders{here}; expected one folder of images for each class")
    for name in sort_classes(folders):
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(
                f"a class folder in '{printable(str(path))}' cannot be a class: {error}; rename it"
            ) from error
        own, others = _of_class(folders[name], path)
        files += own
        left += others
    if not files:
        raise ValueError(
            f"'{path}' has no image in its class folders ({looking.some(list(folders))}); expected files "
            f"that end in {', '.join(IMAGE_SUFFIXES)}{_told(left)}"
        )
    return Found(path, tuple(files), tuple(left))


def _of_class(folder: Path, path: Path) -> tuple[list[Path], list[Left]]:
    """The images of a class and what is left out of its folder."""
    entries = _entries(folder)
    inner = [entry for entry in entries if _is_folder(entry)]
    files, left = _told_apart([entry for entry in entries if not _is_folder(entry)], path)
    name = str(folder.relative_to(path))
    counts = {entry: sum(1 for _ in _images_below(entry)) for entry in inner}
    holding = [entry for entry, count in counts.items() if count]
    if files or not holding:
        left += [
            Left(str(entry.relative_to(path)), f"a folder in a class folder, {count} images", loss=count > 0)
            for entry, count in counts.items()
        ]
        if not files:
            missed = any(one.loss for one in left)
            left.append(Left(name, "a class folder without an image that can be used", loss=missed))
        return files, left
    if len(holding) == 1:
        deeper, more = _of_class(holding[0], path)
        return deeper, [*left, *more]
    named = looking.some([entry.name for entry in holding])
    raise ValueError(
        printable(
            f"class folder '{folder}' has no image directly in it, but folders with images: {named}; give "
            f"'{folder}' where these are the classes, or move the images up where '{folder.name}' is one"
        )
    )


def _told_apart(entries: Sequence[Path], path: Path) -> tuple[list[Path], list[Left]]:
    """The image files among these, and why the others are none."""
    files, left = [], []
    for entry in entries:
        reason = _reason(entry)
        if reason is None:
            files.append(entry)
        else:
            left.append(Left(str(entry.relative_to(path)), reason[0], loss=reason[1]))
    return files, left


def _reason(entry: Path) -> tuple[str, bool] | None:
    """Why something is no image file, by its name, and whether it may be missed; None where it is one."""
    if _is_hidden(entry):
        return "what macOS puts into archives" if entry.name == "__MACOSX" else "hidden", False
    if not entry.exists():
        return "a link to nowhere", True
    if not entry.is_file():
        return "no ordinary file", False
    suffix = entry.suffix.lower()
    if suffix in _HEIC and not find_spec("pillow_heif"):
        return _NO_HEIC, True
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix == ".npy":
        return "an array: give it to everlearn.arrays, or as .npz", True
    form = form_of(entry)
    return ("no image by its name", False) if form is None else (f"{form} by its content: rename it", True)


def _told(left: Sequence[Left]) -> str:
    missed = [one for one in left if one.loss]
    reasons = Counter(one.why for one in missed).most_common(1)
    return f"; {reasons[0][1]} are not used: {reasons[0][0]}" if reasons else ""


def _images_below(folder: Path) -> Iterator[str]:
    for _, folders, names in os.walk(folder):  # which follows no links, that may lead round in a circle
        folders[:] = [name for name in folders if not _is_hidden(Path(name))]
        yield from (name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES and name[0] != ".")


def images_in(directory: Path) -> list[Path]:
    """The image files directly in a folder, in the order of their names."""
    return [entry for entry in visible(directory) if not entry.is_dir() and _reason(entry) is None]


def visible(directory: Path) -> list[Path]:
    """What is directly in a folder and not hidden, in the order of the names."""
    return [entry for entry in _entries(directory) if not _is_hidden(entry)]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise ValueError(f"cannot look into '{printable(str(directory))}': {error.strerror}") from error


def _is_folder(entry: Path) -> bool:
    return entry.is_dir() and not _is_hidden(entry)


def _is_hidden(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name == "__MACOSX"


def _look(files: Sequence[Path], index: int) -> None:
    """Read a file as `_load_file` does, but small; ``ValueError`` where it cannot be read."""
    to_rgb(decoded(files[index], small=True))


def _load_file(files: Sequence[Path], index: int) -> Image.Image:
    return rgb_of(open_image(files[index]), f"'{files[index]}'")


def _bytes_of(files: Sequence[Path], index: int) -> bytes:
    try:
        return files[index].read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read '{files[index]}': {error}") from error
