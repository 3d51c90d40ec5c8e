"""Streams of tasks: how a data set becomes something to learn bit by bit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from everlearn.checks import whole
from everlearn.data.images import Images
from everlearn.data.pairs import as_images
from everlearn_runtime.words import plural, some


@dataclass(frozen=True)
class Task:
    """One step of a stream; its images are looked up when they are asked for."""

    index: int
    """Position in the stream, from 0."""
    classes: tuple[str, ...]
    """The classes that are new in this task, in the stream's order."""
    classes_so_far: tuple[str, ...]
    """All classes up to and including this task, in the stream's order."""
    _train: Images = field(repr=False)
    _test: Images = field(repr=False)

    @cached_property
    def train(self) -> Images:
        """Training images of the new classes."""
        return self._train.of_classes(self.classes)

    @cached_property
    def test(self) -> Images:
        """Test images of the new classes."""
        return _tested(self._test, self.classes)

    @cached_property
    def test_so_far(self) -> Images:
        """Test images of all classes up to and including this task."""
        return _tested(self._test, self.classes_so_far)


class ClassIncremental:
    """Splits a data set into tasks with disjoint classes: the field's standard benchmark.

    `train` and `test` are anything that `as_images` takes. A class without a test image is learned and
    not tested, and a `UserWarning` names it; a task of such classes only is joined to the one before it, or
    at the beginning to the next. Every task brings `classes_per_task` new classes, the first one
    `first` where given (7 and then 5 at a time, say); the last may bring fewer. `seed` shuffles the
    sorted classes (`Images.classes`: whole numbers in numeric order, other names
    as text) as the published code does (`np.random.seed(seed)`, then
    `np.random.permutation`), so that a seed means the same class order here as
    there; None keeps them sorted.

    Raises `ValueError` when there are test images of classes without a training image, or none of
    the others, or when `classes_per_task` or `first` is not between 1 and the number of classes.

    >>> from everlearn.data import digits
    >>> stream = ClassIncremental(*digits(), classes_per_task=4, seed=1993)
    >>> [task.classes for task in stream]
    [('4', '2', '7', '6'), ('0', '3', '5', '8'), ('9', '1')]
    """

    def __init__(
        self,
        train: object,
        test: object,
        classes_per_task: int,
        first: int | None = None,
        seed: int | None = None,
    ) -> None:
        self._train, self._test = as_images(train), as_images(test, part="test")
        names = self._train.classes
        _check_classes(self._train, self._test)
        first = classes_per_task if first is None else first
        for argument, value in (("classes_per_task", classes_per_task), ("first", first)):
            number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not number or not 1 <= value <= len(names):
                raise ValueError(f"{argument} is {value}; expected 1 to {len(names)}, the number of classes")
        seed = None if seed is None else whole("seed", seed, least=0)
        if seed is not None:
            # RandomState gives the same numbers as np.random.seed and leaves the global state alone.
            order = np.random.RandomState(seed).permutation(len(names)).tolist()
            names = tuple(names[i] for i in order)
        self.classes: tuple[str, ...] = names
        """All classes, in the order in which they arrive."""
        self._ends = self._with_a_test([*range(first, len(names), classes_per_task), len(names)])

    def __repr__(self) -> str:
        sizes = [len(classes) for classes in self.tasks]
        each = f"{sizes[0]} classes each" if len(set(sizes)) == 1 else f"{', '.join(map(str, sizes))} classes"
        images = f"{len(self._train):,} images to train, {len(self._test):,} to test"
        return f"<ClassIncremental: {plural(len(sizes), 'task')} of {each}, {images}>"

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Task:
        index = range(len(self))[index]
        start, end = ([0, *self._ends])[index : index + 2]
        return Task(index, self.classes[start:end], self.classes[:end], self._train, self._test)

    @property
    def tasks(self) -> tuple[tuple[str, ...], ...]:
        """The classes of each task."""
        starts = [0, *self._ends[:-1]]
        return tuple(self.classes[start:end] for start, end in zip(starts, self._ends, strict=True))

    def fingerprints(self) -> list[str]:
        """`Images.fingerprint` of the training images and of the test images."""
        return [self._train.fingerprint(), self._test.fingerprint()]

    def at_once(self) -> ClassIncremental:
        """The same data and the same order of classes as a single task: what a ceiling learns."""
        whole = copy.copy(self)
        whole._ends = [len(self.classes)]
        return whole

    def __iter__(self) -> Iterator[Task]:
        return (self[index] for index in range(len(self)))

    def _with_a_test(self, ends: list[int]) -> list[int]:
        """Where tasks end, so that each has a class with a test image."""
        tested = frozenset(self._test.classes)
        kept: list[int] = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            if not tested.isdisjoint(self.classes[start:end]):
                kept.append(end)
            elif kept:
                kept[-1] = end
        return kept


def _tested(test: Images, classes: tuple[str, ...]) -> Images:
    known = frozenset(test.classes)
    return test.of_classes(name for name in classes if name in known)


def _check_classes(train: Images, test: Images) -> None:
    unlearned, untested = test.unknown_to(train.classes), train.unknown_to(test.classes)
    if unlearned:
        raise ValueError(
            f"classes in test but not in train: {some(unlearned)}; all that are tested must be learned "
            "(`Images.of_classes` leaves classes out)"
        )
    if untested:
        warnings.warn(
            f"{len(untested)} of {len(train.classes)} classes have no test image, so they are learned "
            f"and not tested: {some(untested)}",
            stacklevel=3,
        )
