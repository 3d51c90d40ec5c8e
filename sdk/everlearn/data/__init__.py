"""Labelled images, where they come from, and how they become tasks and batches."""

from everlearn.data.augmentation import Augmentation
from everlearn.data.images import Images
from everlearn.data.labels import sort_classes
from everlearn.data.pairs import as_images
from everlearn.data.sources import (
    IMAGE_SUFFIXES,
    arrays,
    digits,
    folder,
    folder_splits,
    load,
    npz,
    photographs,
)
from everlearn.data.streams import ClassIncremental, Task

__all__ = [
    "IMAGE_SUFFIXES",
    "Augmentation",
    "ClassIncremental",
    "Images",
    "Task",
    "arrays",
    "as_images",
    "digits",
    "folder",
    "folder_splits",
    "load",
    "npz",
    "photographs",
    "sort_classes",
]
