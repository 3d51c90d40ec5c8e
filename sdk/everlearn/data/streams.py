"""Streams of tasks: how a data set becomes something to learn bit by bit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from everlearn.checks import whole
from everlearn.data.images import Images
from everlearn.data.pairs import as_images


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
    there; None keeps them sorted. In place of these three, `tasks` may list the classes of
    each task; images of classes that it does not name are left out.

    Raises `ValueError` when there are test images of classes without a training image, or none of
    the others, when `classes_per_task` or `first` is not between 1 and the number of classes, or when
    `tasks` is empty, has an empty task, names a class twice or one without a training image.

    >>> from everlearn.data import digits
    >>> stream = ClassIncremental(*digits(), classes_per_task=4, seed=1993)
    >>> [task.classes for task in stream]
    [('4', '2', '7', '6'), ('0', '3', '5', '8'), ('9', '1')]
    >>> ClassIncremental(*digits(), tasks=[["7", "1"], ["0"]]).tasks
    (('7', '1'), ('0',))
    """

    def __init__(
        self,
        train: object,
        test: object,
        classes_per_task: int | None = None,
        first: int | None = None,
        seed: int | None = None,
        *,
        tasks: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self._train, self._test = as_images(train), as_images(test, part="test")
        if tasks is None:
            names, ends = self._by_number(classes_per_task, first, seed)
        else:
            given = {"classes_per_task": classes_per_task, "first": first, "seed": seed}
            if both := [name for name, value in given.items() if value is not None]:
                raise ValueError(
                    f"tasks and {both[0]}; tasks says which classes come when, leave {both[0]} out"
                )
            names, ends = self._as_listed(tasks)
        self.classes: tuple[str, ...] = names
        """All classes, in the order in which they arrive."""
        self._ends = self._with_a_test(ends)

    def _by_number(
        self, classes_per_task: int | None, first: int | None, seed: int | None
    ) -> tuple[tuple[str, ...], list[int]]:
        """The order of the classes, and where tasks end."""
        names = self._train.classes
        _check_classes(self._train, self._test)
        first = classes_per_task if first is None else first
        for argument, value in (("classes_per_task", classes_per_task), ("first", first)):
            number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not number or value is None or not 1 <= value <= len(names):
                raise ValueError(f"{argument} is {value}; expected 1 to {len(names)}, the number of classes")
        assert first is not None
        assert classes_per_task is not None
        seed = None if seed is None else whole("seed", seed, least=0)
        if seed is not None:
            # RandomState gives the same numbers as np.random.seed and leaves the global state alone.
            order = np.random.RandomState(seed).permutation(len(names)).tolist()
            names = tuple(names[i] for i in order)
        return names, [*range(first, len(names), classes_per_task), len(names)]

    def _as_listed(self, tasks: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[int]]:
        """The same, as `tasks` says."""
        if isinstance(tasks, str) or not all(isinstance(task, (list, tuple)) and task for task in tasks):
            raise ValueError(f"tasks is {tasks!r}; give a list of lists of class names, none empty")
        names = tuple(str(name) for task in tasks for name in task)
        if not names:
            raise ValueError("tasks is empty; give a list of lists of class names")
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"tasks names {_some(tuple(twice))} more than once; every class arrives once")
        self._train = self._train.of_classes(names)
        self._test = _tested(self._test, names)
        _check_classes(self._train, self._test)
        return names, np.cumsum([len(task) for task in tasks]).tolist()

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


@dataclass(frozen=True)
class Domain:
    """One step of a stream of domains."""

    index: int
    """Position in the stream, from 0."""
    name: str
    """What the domain is called."""
    train: Images = field(repr=False)
    """Its training images."""
    test: Images = field(repr=False)
    """Its test images."""


class DomainIncremental:
    """The same classes in one domain after the other: by day, at night, in the rain.

    What changes is how things look, not what there is ("domain-incremental", van de Ven, Tuytelaars and
    Tolias 2022, "Three types of incremental learning", Nature Machine Intelligence 4). `Learner.run` learns
    one domain after the other, and measures all of them after each: how much of an earlier one is forgotten,
    and what a later one gains before it is learned.

    Args:
        domains: name to training and test images, each anything that `as_images` takes, in the order in which
            they are learned.

    Raises:
        ValueError: no domain, or one with test images of classes that neither it nor an earlier one has
            training images of.

    >>> from everlearn.data import digits
    >>> train, test = digits()
    >>> stream = DomainIncremental({"plain": (train, test), "again": (train, test)})
    >>> [domain.name for domain in stream]
    ['plain', 'again']
    """

    def __init__(self, domains: Mapping[str, tuple[object, object]]) -> None:
        if not isinstance(domains, Mapping) or not domains:
            raise ValueError(
                f"domains is {type(domains).__name__}; give a dict of a name to training and test images"
            )
        learned = dict[str, None]()
        self._domains: list[Domain] = []
        for index, (name, both) in enumerate(domains.items()):
            if not isinstance(both, (tuple, list)) or len(both) != 2:
                raise ValueError(f"domain {name!r} is no pair; give its training and its test images")
            train, test = as_images(both[0]), as_images(both[1], part="test")
            learned.update(dict.fromkeys(train.classes))
            if unlearned := test.unknown_to(tuple(learned)):
                raise ValueError(
                    f"domain {name!r} tests classes that nothing before teaches: {_some(unlearned)}; "
                    "leave them "
                    "out with Images.of_classes"
                )
            self._domains.append(Domain(index, str(name), train, test))
        self.classes: tuple[str, ...] = tuple(learned)
        """All classes, in the order in which they arrive."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the domains are called, in their order."""
        return tuple(domain.name for domain in self._domains)

    def __len__(self) -> int:
        return len(self._domains)

    def __getitem__(self, index: int) -> Domain:
        return self._domains[index]

    def __iter__(self) -> Iterator[Domain]:
        return iter(self._domains)


def _tested(test: Images, classes: tuple[str, ...]) -> Images:
    known = frozenset(test.classes)
    return test.of_classes(name for name in classes if name in known)


def _check_classes(train: Images, test: Images) -> None:
    unlearned, untested = test.unknown_to(train.classes), train.unknown_to(test.classes)
    if unlearned:
        raise ValueError(
            f"classes in test but not in train: {_some(unlearned)}; all that are tested must be learned "
            "(`Images.of_classes` leaves classes out)"
        )
    if untested:
        warnings.warn(
            f"{len(untested)} of {len(train.classes)} classes have no test image, so they are learned "
            f"and not tested: {_some(untested)}",
            stacklevel=4,
        )


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more
