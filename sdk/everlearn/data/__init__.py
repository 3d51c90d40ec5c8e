"""Labelled images, where they come from, and how they become tasks and batches."""

from everlearn.data.augmentation import Augmentation
from everlearn.data.finding import Found
from everlearn.data.folders import folder, folder_splits, look
from everlearn.data.images import Images
from everlearn.data.labels import sort_classes
from everlearn.data.pairs import as_images
from everlearn.data.sources import (
    arrays,
    digits,
    load,
    npz,
    photographs,
)
from everlearn.data.streams import ClassIncremental, Domain, DomainIncremental, Task
from everlearn.data.unlabelled import any_images
from everlearn_runtime.decoding import IMAGE_SUFFIXES

__all__ = [
    "IMAGE_SUFFIXES",
    "Augmentation",
    "ClassIncremental",
    "Domain",
    "DomainIncremental",
    "Found",
    "Images",
    "Task",
    "any_images",
    "arrays",
    "as_images",
    "digits",
    "folder",
    "folder_splits",
    "load",
    "look",
    "npz",
    "photographs",
    "sort_classes",
]
