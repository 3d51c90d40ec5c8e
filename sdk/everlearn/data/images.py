"""Labelled images: a sequence of RGB pictures and the names of their classes."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everlearn.data.labels import checked_name, sort_classes
from everlearn_runtime.decoding import decode
from everlearn_runtime.images import open_image, to_rgb
from everlearn_runtime.tensors import pixels_of
from everlearn_runtime.words import plural, some

SAMPLE = 256
"""Images that `Images.fingerprint` looks at where it would have to decode them all."""

_FORMS = (
    "a PIL image of 8 bits a channel, the path of an image file, a uint8 array (H, W), (H, W, 1) or "
    "(H, W, 3), with values 0 to 255, or a torch tensor (H, W), (1, H, W) or (3, H, W), uint8 or as ToTensor "
    "makes it, float from 0 to 1"
)


class Images:
    """A sequence of `(image, label)` pairs: RGB PIL images, and class names.

    Args:
        labels: the class name of every image.
        load: gives image i in any form that `as_images` takes, and is called only when that image
            is asked for; it comes out upright and in RGB.
        content: where that is cheaper than decoding, bytes that determine image i, see
            `fingerprint`.

    Raises:
        ValueError: when a label is not a class name: blank, no `str`, or no text that UTF-8 can hold.

    >>> images = Images(["pen", "mug", "pen"], load=lambda i: Image.new("RGB", (8, 8)))
    >>> len(images), images.labels, images.classes
    (3, ('pen', 'mug', 'pen'), ('mug', 'pen'))
    >>> images.of_classes(["pen"]).labels
    ('pen', 'pen')
    """

    def __init__(
        self,
        labels: Iterable[str],
        load: Callable[[int], Any],
        content: Callable[[int], bytes] | None = None,
    ) -> None:
        codes: list[int] = []
        table: dict[str, int] = {}
        for i, label in enumerate(labels):
            code = table.get(label) if type(label) is str else None
            if code is None:
                code = table.setdefault(checked_name(label, i), len(table))
            codes.append(code)
        self._load = load
        self._content = content
        # A subset shares the table and has its own rows of these two, so that it costs its own size.
        self._table = tuple(table)
        self._codes = np.array(codes, dtype=np.int64)
        self._positions = np.arange(len(codes))

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        i = operator.index(index)
        label, position = self._table[self._codes[i]], int(self._positions[i])
        return rgb_of(self._load(position), f"image {position}"), label

    def __repr__(self) -> str:
        classes = f"{plural(len(self.classes), 'class')}: {some(self.classes)}" if len(self) else "no class"
        return f"<Images: {plural(len(self), 'image')} of {classes}>"

    def __iter__(self) -> Iterator[tuple[Image.Image, str]]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Class name of every image."""
        return tuple([self._table[code] for code in self._codes.tolist()])

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names that occur, sorted: as numbers where all are whole numbers, otherwise as text.

        See `everlearn.data.labels.sort_classes`.
        """
        return sort_classes(self._table[code] for code in np.unique(self._codes).tolist())

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Position in `classes` of every image's label, int64 (N,)."""
        return self.targets_in(self.classes)

    def targets_in(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Position in ``classes`` of every image's label, int64 (N,); -1 where it is not among them."""
        place = {name: position for position, name in enumerate(classes)}
        codes, rows = np.unique(self._codes, return_inverse=True)
        positions = [place.get(self._table[code], -1) for code in codes.tolist()]
        return np.array(positions, dtype=np.int64)[rows]

    def unknown_to(self, classes: Iterable[str]) -> tuple[str, ...]:
        """The classes that occur here but not among ``classes``, such as those that a learner knows."""
        known = frozenset(classes)
        return tuple(name for name in self.classes if name not in known)

    def positions_in(self, whole: Images) -> NDArray[np.int64]:
        """Where each of these images stands in ``whole``, int64 (N,); -1 where it is not one of its images.

        An image is known by where it comes from: a data set and its subsets have the same.
        """
        if self._load is not whole._load:
            return np.full(len(self), -1)
        found = np.full(len(self), -1)
        inside = self._positions < len(whole._places)
        found[inside] = whole._places[self._positions[inside]]
        return found

    def digest(self, after_image: Callable[[], object] = lambda: None) -> str:
        """Sha256 of labels, sizes and pixels, in this order; reads every image."""
        whole = hashlib.sha256()
        for image, label in self:
            whole.update(json.dumps([label, *image.size]).encode())
            whole.update(image.tobytes())
            after_image()
        return whole.hexdigest()

    def fingerprint(self) -> str:
        """Sha256 to know the data set again, in another process, too, at a small part of an epoch's cost.

        It changes with any label and with the order. Of the images it sees

        - every pixel, where they are in memory: `arrays`, or a list of pairs;
        - every byte of their files, but neither names nor dates, in a `folder` or `.npz` file;
        - otherwise the pixels of 256 of them, spread evenly; of none where these differ when they
          are read once more, as random transforms make them.

        So a copy of a folder has the fingerprint of the folder, and pairs in memory that of the array
        with the same pixels, but a folder not that of an array; two large data sets of the third kind that
        differ outside of the 256 have the same. `digest` tells all of these apart, and reads every image.
        """
        whole = hashlib.sha256(json.dumps(self.labels).encode())
        if self._content is not None:
            for position in self._positions.tolist():
                whole.update(hashlib.sha256(self._content(position)).digest())
            return whole.hexdigest()
        chosen = np.linspace(0, len(self) - 1, min(len(self), SAMPLE)).round().astype(int).tolist()
        contents, again = (
            [hashlib.sha256(pixel_content(self[i][0])).digest() for i in chosen] for _ in range(2)
        )
        if contents == again:
            whole.update(b"".join(contents))
        return whole.hexdigest()

    def subset(self, indices: Iterable[int]) -> Images:
        """The images at these positions, in this order; none is decoded.

        Raises `ValueError` for a position outside 0 to `len(self) - 1`, and for a mask.
        """
        if hasattr(indices, "dtype"):
            given = np.asarray(indices)
            if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
                raise ValueError(
                    f"indices are {given.dtype} {given.shape}; expected positions, whole numbers (N,): "
                    "of a mask give np.flatnonzero(mask)"
                )
            chosen = given.astype(np.int64)
        else:
            chosen = np.fromiter(map(operator.index, indices), dtype=np.int64)
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(outside):
            raise ValueError(f"index {outside[0]} is out of range; expected 0 to {len(self) - 1}")
        part = Images.__new__(Images)
        part._load, part._content, part._table = self._load, self._content, self._table
        part._codes, part._positions = self._codes[chosen], self._positions[chosen]
        return part

    def of_classes(self, names: Iterable[str]) -> Images:
        """The images of these classes, in the order they have here.

        Raises `ValueError` for a class that does not occur.
        """
        wanted = set(names)
        unknown = sort_classes(wanted - self._members.keys())
        if unknown:
            raise ValueError(f"no images of class {unknown[0]!r}; the classes are {_some(self.classes)}")
        members = [self._members[name] for name in wanted]
        return self.subset(np.sort(np.concatenate([np.zeros(0, np.int64), *members]), kind="stable"))

    def split(self, fraction: float, seed: int) -> tuple[Images, Images]:
        """A random `fraction` of every class, and the rest; both keep the order they have here.

        The same seed gives the same split. A class with at least two images has at
        least one on either side; a class with one image is on the first side only.
        Raises `ValueError` when `fraction` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}; expected a number between 0 and 1, such as 0.8")
        rng = np.random.default_rng(seed)
        is_first = np.zeros(len(self), dtype=np.bool_)
        for name in self.classes:
            members = rng.permutation(self._members[name])
            count = min(max(round(fraction * len(members)), 1), max(len(members) - 1, 1))
            is_first[members[:count]] = True
        return self.subset(np.flatnonzero(is_first)), self.subset(np.flatnonzero(~is_first))

    @cached_property
    def _members(self) -> dict[str, NDArray[np.int64]]:
        """The places of each class's images here, rising."""
        order = np.argsort(self._codes, kind="stable")
        codes, starts = np.unique(self._codes[order], return_index=True)
        names = [self._table[code] for code in codes.tolist()]
        return dict(zip(names, np.split(order, starts[1:]), strict=True)) if names else {}

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Where the image from each of the source's positions stands here, or -1."""
        places = np.full(int(self._positions.max(initial=-1)) + 1, -1)
        places[self._positions] = np.arange(len(self))
        return places


def rgb_of(image: Any, what: str) -> Image.Image:
    """An image as `as_images` takes them in RGB; ``what`` names it in the ``ValueError`` of any other."""
    if isinstance(image, (str, Path)):
        return to_rgb(_named(partial(open_image, image), what))
    if isinstance(image, Mapping) and {"bytes", "path"} & image.keys():  # Hugging Face's, not decoded
        inside = image.get("bytes")
        read = partial(open_image, image["path"]) if inside is None else partial(decode, BytesIO(inside))
        return to_rgb(_named(read, what))
    pixels = pixels_of(image) if is_tensor(image) else image
    came = type(image).__name__
    if isinstance(pixels, np.ndarray):
        came = f"{pixels.dtype} {tuple(image.shape)}"
    elif isinstance(pixels, Image.Image):
        came = f"a PIL image of mode {pixels.mode}"
    try:
        return to_rgb(pixels)
    except ValueError as error:
        raise ValueError(
            f"{what} is {came}; expected {_FORMS}: leave other scaling and normalisation to the learner"
        ) from error


def is_tensor(image: object) -> bool:
    """Whether this is a torch tensor, by what it can do."""
    return hasattr(image, "numpy") and hasattr(image, "shape") and not isinstance(image, np.ndarray)


def _named(read: Callable[[], Image.Image], what: str) -> Image.Image:
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def pixel_content(image: Image.Image) -> bytes:
    """Size and pixels of an image in RGB: the same bytes for the same picture, whatever it came as."""
    return json.dumps(image.size).encode() + image.tobytes()


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:10]) + (", ..." if len(names) > 10 else "")
