"""Images with labels as `Images`, from whatever data set, loader or table holds them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.data import wrappers
from everlearn.data.images import Images, pixel_content, rgb_of
from everlearn.data.labels import class_name, label_list
from everlearn.data.sources import arrays, load_part

Classes = tuple[Any, ...]

_UNREAD = object()  # a label that only the item itself has


def as_images(data: object, labels: Any = None, *, part: str = "train") -> Images:
    """Images with labels as `Images`, from whatever holds them.

    Args:
        data: One of

            - a map-style data set of `(image, label)` pairs, or of dicts with an image and a label (Hugging
              Face's `datasets`), or a list of them; a part of one (`torch.utils.data.Subset`, or anything
              with `dataset` and `indices`) and several in one (`ConcatDataset`), which have the
              names and labels of what they are made of, unless they have their own, however deep that lies;
            - a `DataLoader`: its data set, as batches are made here;
            - images, with `labels` beside them: an array or tensor, or a list;
            - the path of a folder or a `.npz` file, or "digits", see `load`: a folder without train/ and
              test/ is taken whole;
            - `Images`, which are handed back as they are.
        labels: one for each image, where `data` has none.
        part: of a source that is divided already, `"train"` or `"test"`.

    An image is a PIL image of 8 bits a channel, the path of an image file, a uint8 array (H, W), (H, W, 1)
    or (H, W, 3), or a torch tensor (H, W), (1, H, W) or (3, H, W), uint8 or float from 0 to 1 as
    `ToTensor` makes it, before any normalisation. A label is a class name, or an int, which becomes
    `data.classes[label]` where the data set has `classes` or `class_to_idx`, else `str(label)`. Labels
    come from `data.targets` or `data.labels` where there is one; otherwise every item is read once.

    Raises `ValueError` when there is no length or no item, the transforms normalise, or a label is none of
    these. An image that is none of these raises `ValueError` when it is asked for.
    """
    if labels is not None:
        return _together(data, labels)
    if isinstance(data, Images):
        if len(data) == 0:
            raise ValueError("the data set is empty; give at least one image")
        return data
    if isinstance(data, (str, Path)):
        return load_part(data, part)
    data = wrappers.unwrapped(data, part)
    if isinstance(data, Images):
        return as_images(data)
    _check_map_style(data)
    wrappers.check_transforms(data)
    found = _labels(data)
    if not found:
        raise ValueError("the data set is empty; give at least one image")
    own = [_pair(data, i)[1] if label is _UNREAD else label for i, (label, _) in enumerate(found)]
    classes = [names for _, names in found]
    _check_all_named(own, classes)
    names = _names(own, classes)
    content = partial(_content, data) if isinstance(data, (list, tuple)) else None
    return Images(names, partial(_load_item, data, classes, names), content)


def _together(images: Any, labels: Any) -> Images:
    """Images and their labels, given apart."""
    if isinstance(images, np.ndarray):
        return arrays(images, labels)
    found = [class_name(label, None, i) for i, label in enumerate(label_list(labels))]
    if isinstance(images, (Images, str, bytes, Path, Mapping)) or not hasattr(images, "__len__"):
        raise ValueError(
            f"images are {type(images).__name__} with labels beside them; expected an array (N, H, W, 3), a "
            "tensor (N, 3, H, W) or a list of images, and what has labels of its own without others"
        )
    if not hasattr(images, "__getitem__") or hasattr(images, "iloc"):
        images = list(images)  # a column of a table has positions of its own
    if len(images) != len(found):
        raise ValueError(f"{len(images)} images but {len(found)} labels; give one label for each image")
    if not found:
        raise ValueError("the data set is empty; give at least one image")
    return Images(found, images.__getitem__, partial(_own_content, images))


def _check_map_style(data: Any) -> None:
    what = type(data).__name__
    if isinstance(data, Mapping):
        raise ValueError(
            f"a {what} is not a data set; expected (image, label) pairs: of images by class name give "
            "[(image, name) for name, images in data.items() for image in images]"
        )
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ValueError(
            f"{what} has no length or no items by index; expected a map-style data set "
            f"of (image, label) pairs: collect what an iterable gives with list(data)"
        )


def _labels(data: Any) -> list[tuple[Any, Classes | None]]:
    """Every item's label, and the `classes` that it is a position in; no image is read.

    What a data set says itself goes before what the data sets say that it is made of.
    """
    if wrappers.is_table(data):
        _, column = wrappers.columns(data.column_names, data)
        return [(label, wrappers.class_names(data)) for label in label_list(data[column])]
    size, classes = len(data), _classes(data)
    labels = getattr(data, "targets", None)
    labels = getattr(data, "labels", None) if labels is None else labels
    own = [] if labels is None else label_list(labels)
    found = None if len(own) == size and classes is not None else _inner_labels(data)
    if found is None:
        if labels is not None and len(own) != size:
            raise ValueError(f"the data set has {size} items but {len(own)} labels in `targets` or `labels`")
        found = [(_UNREAD, None)] * size
        if classes is None:
            found = _wrapped_labels(data, own) or found
    if len(found) != size:
        raise ValueError(f"the data set has {size} items, but {len(found)} in what it is made of")
    if len(own) == size:  # otherwise those of the data set inside, handed through
        found = [(label, names) for label, (_, names) in zip(own, found, strict=True)]
    return found if classes is None else [(label, classes) for label, _ in found]


def _inner_labels(data: Any) -> list[tuple[Any, Classes | None]] | None:
    """The labels of a part of a data set, or of several in one, by what they are made of; else None."""
    if hasattr(data, "dataset") and hasattr(data, "indices") and hasattr(data.dataset, "__len__"):
        inner = _labels(data.dataset)
        try:
            return [inner[operator.index(i)] for i in data.indices]
        except IndexError:
            raise ValueError(
                f"{type(data).__name__} has `indices` outside its `dataset`, which has {len(inner)} items"
            ) from None
    if hasattr(data, "datasets") and hasattr(data, "cumulative_sizes"):
        return list(chain.from_iterable(_labels(part) for part in data.datasets))
    return None


def _wrapped_labels(data: Any, own: list[Any]) -> list[tuple[Any, Classes | None]] | None:
    """The labels of a data set that has another of its length inside, with that one's names; else None.

    Only where all labels are the same here as there: otherwise the numbers may mean something else.
    """
    inside = [value for value in getattr(data, "__dict__", {}).values() if _is_map_style(value, len(data))]
    if len(inside) != 1:
        return None
    found = _labels(inside[0])
    if all(names is None for _, names in found):
        return None
    there = [_pair(inside[0], i)[1] if label is _UNREAD else label for i, (label, _) in enumerate(found)]
    here = own or [_pair(data, i)[1] for i in range(len(data))]
    unnamed = [None] * len(data)
    if _names(here, unnamed) != _names(there, unnamed):
        return None
    return [(label, names) for label, (_, names) in zip(here, found, strict=True)]


def _is_map_style(value: Any, size: int) -> bool:
    plain = (str, bytes, list, tuple, Mapping, np.ndarray)
    both = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return both and not isinstance(value, plain) and not hasattr(value, "dtype") and len(value) == size


def _classes(data: Any) -> Classes | None:
    """The names that a data set has for its numbers, as a sequence."""
    classes = getattr(data, "classes", None)
    if classes is None:
        classes = getattr(data, "class_to_idx", None)
    if classes is None:  # timm's data sets
        classes = getattr(getattr(data, "reader", None), "class_to_idx", None)
    if classes is None:
        return None
    if isinstance(classes, Mapping):  # from position to name, or the other way round
        if not all(isinstance(key, int) for key in classes):
            classes = {position: name for name, position in classes.items()}
        if set(classes) != set(range(len(classes))):
            raise ValueError(
                f"the data set's `classes` is a dict with the positions {list(classes)[:10]}; "
                f"expected 0 to {len(classes) - 1}, each once"
            )
        classes = [classes[position] for position in range(len(classes))]
    if not isinstance(classes, (Sequence, np.ndarray)):
        raise ValueError(
            f"the data set's `classes` is {type(classes).__name__}; expected a list of class names, or a "
            "dict from position to name"
        )
    names = [name for name in classes if isinstance(name, str)]
    if len(set(names)) != len(names):
        raise ValueError("a name occurs twice in the data set's `classes`; give every class its own name")
    return tuple(classes)


def _check_all_named(labels: Sequence[Any], classes: Sequence[Classes | None]) -> None:
    """Numbers are positions in `classes` for all items, or for none: a "3" is no neighbour of a "mug"."""
    if all(names is None for names in classes):
        return
    for i, (label, names) in enumerate(zip(labels, classes, strict=True)):
        if names is None and not isinstance(label, str):
            raise ValueError(
                f"label {i} is {label!r} in a part of the data set that has no `classes`, while another part "
                "has; give names, or every part its `classes`"
            )


def _names(labels: Sequence[Any], classes: Sequence[Classes | None]) -> list[str]:
    """The name that each label stands for; the same one is looked up once."""
    known: dict[tuple[Any, int], str] = {}
    names = []
    for i, (label, of) in enumerate(zip(labels, classes, strict=True)):
        if type(label) not in (str, int):  # True equals 1, and a tensor equals nothing
            names.append(class_name(label, of, i))
            continue
        key = label, id(of)
        if key not in known:
            known[key] = class_name(label, of, i)
        names.append(known[key])
    return names


def _pair(data: Any, index: int) -> tuple[Any, Any]:
    try:
        item = data[index]
    except LookupError as error:
        raise ValueError(
            f"{type(data).__name__} has no item {index} of {len(data)} ({error!r}); expected a map-style "
            "data set of (image, label) pairs, by position from 0"
        ) from error
    if isinstance(item, Mapping):
        image, label = wrappers.columns(item, wrappers.innermost(data))
        return item[image], item[label]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(
            f"item {index} is {type(item).__name__}; expected an (image, label) pair "
            f"(images and labels apart are two arguments: fit(images, labels), or `everlearn.data.arrays`)"
        )
    return item[0], item[1]


def _load_item(data: Any, classes: Sequence[Classes | None], names: Sequence[str], index: int) -> Any:
    image, label = _pair(data, index)
    name = class_name(label, classes[index], index)
    if name != names[index]:
        raise ValueError(
            f"item {index} has label {name!r} now and {names[index]!r} before; a data set must give the "
            f"same label every time, also in `targets` or `labels` (a `target_transform` may break that)"
        )
    return image


def _content(data: Any, index: int) -> bytes:
    return pixel_content(rgb_of(_pair(data, index)[0], f"image {index}"))


def _own_content(images: Any, index: int) -> bytes:
    return pixel_content(rgb_of(images[index], f"image {index}"))
