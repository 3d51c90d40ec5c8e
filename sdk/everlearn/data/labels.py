"""From any label to the name of a class, and the one order that class names have."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from everlearn_runtime.names import check_name

# No longer: `int` refuses thousands of digits.
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,600}")


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order that everything here has them in.

    Where every name is a whole number (decimal digits, perhaps with a sign), they are in numeric
    order, equal numbers as text; otherwise all are in the order of text. So the classes of a data
    set that numbers them are in the order of their numbers, which a seed of published code shuffles.

    >>> sort_classes(["10", "9", "-1", "09"])
    ('-1', '09', '9', '10')
    >>> sort_classes(["10", "9", "mug"])
    ('10', '9', 'mug')
    """
    found = list(names)
    if all(_WHOLE_NUMBER.fullmatch(name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def checked_name(name: object, index: int) -> str:
    """A class name as a plain ``str``, by the rule of `everlearn_runtime.names`.

    Raises `ValueError`, that says which label it is, for anything else.
    """
    try:
        return check_name(name)
    except ValueError as error:
        raise ValueError(
            f"label {index} is {name!r}; expected a class name, text that is not blank and valid Unicode, "
            "and has no characters that cannot be seen"
        ) from error


def class_name(label: Any, classes: Sequence[Any] | None, index: int) -> str:
    """The name that a label stands for: itself, or for a whole number one of ``classes``.

    Without ``classes`` a whole number is a name by its digits. An array or tensor of one element is
    that element. Raises `ValueError`, that says which label it is, for one that stands for no name;
    a float and a truth value do not.
    """
    if hasattr(label, "dtype") and hasattr(label, "item"):
        with suppress(ValueError, RuntimeError, TypeError):  # it has more than one element, or none
            label = label.item()
    if isinstance(label, str):
        return checked_name(label, index)
    try:
        number = operator.index(label)
    except TypeError:
        number = None
    if number is None or isinstance(label, bool):
        raise ValueError(f"label {index} is {label!r}; expected a class name or an int") from None
    if classes is None:
        return str(number)
    if not 0 <= number < len(classes):
        raise ValueError(
            f"label {index} is {number}, but the data set has {len(classes)} `classes`; "
            f"expected 0 to {len(classes) - 1}"
        )
    return checked_name(classes[number], index)


def label_list(labels: Iterable[Any]) -> list[Any]:
    """Labels one by one, of any sequence, array, tensor or column of a table.

    Raises `ValueError` where they are not one after the other: one text, a dict, a set, or an array
    that is neither (N,) nor (N, 1).
    """
    if isinstance(labels, str):
        raise ValueError(
            f"labels is {labels!r}, one text; give one label for each image, [{labels!r}] * len(images) "
            "where all are of this class"
        )
    if isinstance(labels, (set, frozenset, Mapping, bytes)) or not isinstance(labels, Iterable):
        raise ValueError(f"labels is {type(labels).__name__}; expected a list with one label for each image")
    shape = getattr(labels, "shape", None)
    if shape is None:
        return list(labels)
    if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 1):
        raise ValueError(
            f"labels have shape {tuple(shape)}; expected one label for each image, (N,): "
            "of one-hot rows give labels.argmax(1)"
        )
    column: Any = labels
    found: list[Any] = (column if len(shape) == 1 else column.reshape(-1)).tolist()
    return found
