"""Folders of class folders: what is in them, what of it can be used, and how it is divided."""

from __future__ import annotations

from pathlib import Path

from everlearn.data import looking
from everlearn.data.finding import Found, find, images_in, visible
from everlearn.data.images import Images
from everlearn.data.looking import Say, printable
from everlearn_runtime.picking import TEST, TRAIN


def look(path: str | Path) -> Found:
    """Look at every file of a folder of class folders, as `folder` does, and say what cannot be used.

    >>> look("photos").table()  # doctest: +SKIP
    broken   1  cut short                                   mug/3.jpg
    ignored  2  HEIC, which needs: pip install pillow-heif  mug/4.heic, pen/1.heic

    Raises `ValueError` as `folder` does, but not for images that cannot be read.
    """
    return find(Path(path)).looked_at()


def folder(path: str | Path, *, on_error: str = "raise", say: Say | None = None) -> Images:
    """Images from a folder of class folders: `path/mug/1.jpg` is an image of class `mug`.

    Classes are in the order of `Images.classes`, files in that of their names. Every image is read once
    before anything is handed back, by as many threads as there are cores, so that what is damaged, of more
    than 8 bits a channel, or no image at all is known now and not hours later.

    Left out are hidden files and folders, `__MACOSX`, files without one of `IMAGE_SUFFIXES`, links to
    nowhere, empty class folders, and HEIC where pillow-heif is not installed. The images of a class
    lie directly in its folder, or else in the one folder inside it.

    Args:
        path: of the folder.
        on_error: what to do about images that cannot be read: `"raise"` a `ValueError` that names them,
            `"skip"` them, or find out `"later"`: then no image is read here, and one that cannot be read
            raises when it is asked for.
        say: takes what there is to tell, as text; by default a `UserWarning` names pictures that are
            not used, and Python's logging under `everlearn` has all of it.

    Raises `ValueError` when there is no class folder, none has an image, one has pictures only where
    it is not clear what class they are of, or has a name that is no class name (blank, or not in UTF-8).
    """
    looking.check_on_error(on_error)
    found = find(Path(path))
    if on_error != "later":
        count, found = len(found.files), found.looked_at()
        if on_error == "raise":
            if say is not None:
                looking.tell(found.left, str(path), say)
            looking.refuse(found.left, count, str(path))
        if not found.files:
            raise ValueError(f"none of the {count} images in '{printable(str(path))}' can be read")
    if on_error != "raise" or say is None:
        looking.tell(found.left, str(path), say)
    return found.images()


def folder_splits(
    path: str | Path, seed: int = 0, *, on_error: str = "raise", say: Say | None = None
) -> tuple[Images, Images]:
    """Training and test images from a folder.

    From `path/train` and `path/test` where it has them (see `TRAIN` and `TEST` for other names), each a
    folder as `folder` reads it; otherwise four fifths and one fifth of every class of `folder(path)`,
    drawn with `seed`. A class of one image is learned and not tested. Which of these it was is said, see
    `folder` for `on_error` and `say`.

    Raises `ValueError` as `folder` does, when only one of these two is there, and when no class
    has an image to test on.
    """
    path = Path(path)
    tell = looking.say_or_log(say)
    parts = split_folders(path)
    if parts is not None:
        train, test = (folder(part, on_error=on_error, say=say) for part in parts)
        tell(f"{printable(str(path))}: {parts[0].name}/ to learn, {parts[1].name}/ to test")
        others = [entry.name for entry in visible(path) if entry not in parts]
        if others:
            tell(f"{printable(str(path))}: not used are {printable(looking.some(others))}")
        untested, where = train.unknown_to(test.classes), f"no image in {parts[1].name}/"
    else:
        images = folder(path, on_error=on_error, say=say)
        train, test = images.split(0.8, seed)
        untested, where = train.unknown_to(test.classes), "one image only"
        if not len(test):
            raise ValueError(
                f"'{printable(str(path))}' has one image only of each class, so that none is left to test "
                "on; add images, or give folder(path) to learn without a test"
            )
        tell(
            f"{printable(str(path))} has no test/: of each class four fifths to learn and one fifth to test, "
            f"{len(train)} and {len(test)} images, drawn with seed {seed}"
        )
    if untested:
        names = looking.some([repr(name) for name in untested])
        tell(f"{printable(str(path))}: learned but not tested, with {where}: {names}")
    return train, test


def split_folders(path: Path) -> tuple[Path, Path] | None:
    """The folders to learn from and to test on, where the folder has both.

    Raises `ValueError` when it has one of them only, or two to learn from.
    """
    entries = {entry.name.casefold(): entry for entry in visible(path) if _is_part(entry)}
    train, test = ([entries[name] for name in names if name in entries] for names in (TRAIN, TEST))
    if len(train) > 1:
        raise ValueError(f"'{path}' has {train[0].name}/ and {train[1].name}/; keep one of them")
    if train and test:
        return train[0], test[0]
    for part in (*train, *test):
        raise ValueError(
            f"'{path}' has {part.name}/ with folders in it, but not both train/ and test/ or val/; add "
            f"what is missing, or give '{part}' to have its classes divided"
        )
    return None


def loose_images(path: Path) -> list[Path]:
    """The images directly in a folder that has no folders in it; none where it has."""
    return [] if any(entry.is_dir() for entry in visible(path)) else images_in(path)


def _is_part(entry: Path) -> bool:
    """Whether this is no class, though it may have the name of one: then its images lie directly in it."""
    if entry.name.casefold() not in (*TRAIN, *TEST) or not entry.is_dir():
        return False
    return not images_in(entry) and any(inside.is_dir() for inside in visible(entry))
