"""What other libraries wrap a data set in: loaders, tables with named columns, transforms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler
from torch.utils.data.sampler import RandomSampler, SequentialSampler, SubsetRandomSampler

IMAGE_COLUMNS = ("image", "img", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "class", "target", "category")
PARTS = {"train": ("train",), "test": ("test", "validation", "val", "valid")}


def unwrapped(data: Any, part: str) -> Any:
    """The data set in a loader, or the part of a dict of tables (Hugging Face's `DatasetDict`).

    How a loader batches, shuffles and collates is left to the learner; those of its sampler's images
    are taken that are fixed beforehand (`SubsetRandomSampler`).

    Raises `ValueError` for a loader whose sampler is of any other kind, as images would be learned that it
    leaves out, and for a dict of tables without that part.
    """
    if isinstance(data, DataLoader):
        return unwrapped(_loaded(data), part)
    if isinstance(data, Mapping) and data and all(map(is_table, data.values())):
        for name in PARTS[part]:
            if name in data:
                return data[name]
        raise ValueError(
            f"the {type(data).__name__} has no {part!r}, but {', '.join(map(repr, data))}; give one of them, "
            f"such as data[{next(iter(data))!r}]"
        )
    return data


def _loaded(loader: DataLoader[Any]) -> Any:
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None:
        batches: Any = loader.batch_sampler
        sampler = batches.sampler if type(batches) is BatchSampler else batches
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(sampler.indices))
    drawn = isinstance(sampler, RandomSampler) and (
        sampler.replacement or sampler.num_samples != len(loader.dataset)  # type: ignore[arg-type]
    )
    # Anything else is the sampler of a data set without length, which is told of as such.
    if drawn or not (
        isinstance(sampler, (SequentialSampler, RandomSampler, DistributedSampler))
        or type(sampler).__name__ == "_InfiniteConstantSampler"
    ):
        raise ValueError(
            f"the DataLoader draws its images by {type(sampler).__name__}, and batches are made here; give "
            "its `dataset`, or torch.utils.data.Subset(dataset, indices) of the images that are meant"
        )
    return loader.dataset


def is_table(data: object) -> bool:
    """Whether this is a data set of named columns, as Hugging Face's are."""
    return isinstance(getattr(data, "features", None), Mapping) and hasattr(data, "column_names")


def innermost(data: Any) -> Any:
    """What a part, or several data sets in one, are made of: of several the first."""
    while True:
        if hasattr(data, "dataset"):
            data = data.dataset
        elif getattr(data, "datasets", None) and hasattr(data, "cumulative_sizes"):
            data = data.datasets[0]
        else:
            return data


def columns(names: Iterable[str], table: Any) -> tuple[str, str]:
    """Which columns are the image and its label, by their types where the table has such, else by name.

    Raises `ValueError` where that is not clear.
    """
    features = table.features if is_table(table) else {}
    known = list(names)
    images = [name for name in known if type(features.get(name)).__name__ == "Image"]
    labels = [name for name in known if type(features.get(name)).__name__ == "ClassLabel"]
    image = _one(images, IMAGE_COLUMNS, known, "an image")
    label = _one(labels, LABEL_COLUMNS, known, "a label")
    return image, label


def _one(typed: list[str], usual: tuple[str, ...], known: list[str], what: str) -> str:
    if len(typed) == 1:
        return typed[0]
    found = [name for name in usual if name in (typed or known)]
    if not found:
        raise ValueError(
            f"items have {', '.join(map(repr, known))}, and which of them is {what} is not clear; name it "
            f"{usual[0]!r} (of a Hugging Face data set: data.rename_column(..., {usual[0]!r})), and leave "
            "transforms out that make other columns"
        )
    return found[0]


def class_names(table: Any) -> tuple[str, ...] | None:
    """The names of a table's `ClassLabel`; None where its labels stand for themselves."""
    _, label = columns(table.column_names, table)
    names = getattr(table.features.get(label), "names", None)
    return None if names is None else tuple(names)


def check_transforms(data: Any) -> None:
    """Raise `ValueError` for a data set whose transforms normalise: the learner does that itself."""
    for owner in (data, innermost(data)):
        for name in ("transform", "transforms"):
            if _normalises(getattr(owner, name, None)):
                raise ValueError(
                    f"the transforms of {type(owner).__name__} end in Normalize; leave that out, the learner "
                    "normalises as its backbone needs it: ToTensor, or no transform at all, is right"
                )


def _normalises(transform: Any, depth: int = 0) -> bool:
    if type(transform).__name__ == "Normalize":
        return True
    inside = getattr(transform, "transforms", None)
    inside = inside if isinstance(inside, (list, tuple)) else [getattr(transform, "transform", None)]
    return depth < 8 and any(_normalises(one, depth + 1) for one in inside if one is not None)
