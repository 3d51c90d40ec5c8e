"""Heads by their kind: what a state is brought back by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from everlearn_runtime.heads.base import Head
    from everlearn_runtime.heads.statistics import ClassStatistics

_HEADS: dict[str, type[Head]] = {}


@dataclass(frozen=True)
class HeadState:
    """All that a head knows, as plain data.

    Args:
        kind: Which head this is: ``Head.kind``.
        classes: Names in the order of first appearance.
        options: The constructor's arguments, as JSON.
        arrays: Named numpy arrays; ``counts`` int64 (C,), ``means`` float64 (C, F), and the
            head's own.
    """

    kind: str
    classes: tuple[str, ...]
    options: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def register(head: type[Head]) -> None:
    """Make a head known by its kind; a class that has a ``kind`` in its body comes here by itself.

    The same class defined once more, as when a module is loaded again, takes the earlier one's place.

    Raises:
        ValueError: a kind that is no name, or that another class has.
    """
    kind = vars(head)["kind"]
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"the kind of {head.__qualname__} is {kind!r}; give a name, for example 'my_head'")
    known = _HEADS.get(kind, head)
    if (known.__module__, known.__qualname__) != (head.__module__, head.__qualname__):
        raise ValueError(
            f"{head.__module__}.{head.__qualname__} and {known.__module__}.{known.__qualname__} are both "
            f"heads of kind {kind!r}; a kind is of one class alone, so give one of them another"
        )
    _HEADS[kind] = head


def own_kind(head: type[ClassStatistics]) -> str:
    """The kind by which this very class comes back from a state.

    Raises:
        ValueError: it has only that of the class it is made from.
    """
    if "kind" not in vars(head):
        inherited = getattr(head, "kind", None)
        becomes = f"its state would come back as a {inherited!r} head" if inherited else "it cannot be saved"
        raise ValueError(
            f"{head.__qualname__} has no kind of its own, so {becomes}; give the class one, for example "
            f'kind = "{head.__name__.lower()}"'
        )
    return head.kind


def by_kind(kind: str) -> type[Head]:
    """The class of heads of a kind.

    Raises:
        ValueError: there is none.
    """
    if kind not in _HEADS:
        raise ValueError(
            f"unknown head {kind!r}; give one of {', '.join(_HEADS)}, or import the module that defines "
            "it first"
        )
    return _HEADS[kind]


def make(kind: str, options: Mapping[str, Any]) -> Head:
    """A new head, from its kind and options.

    Raises:
        ValueError: no such kind, or options that it does not take.
    """
    head = by_kind(kind)
    try:
        return head(**head.read_options(options))
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"wrong options for head {kind!r}: {error}") from None


def from_state(state: HeadState) -> Head:
    """Rebuild a head of whatever kind the state is.

    Args:
        state: What ``Head.state()`` gave.

    Raises:
        ValueError: An unknown kind, or statistics that do not fit together.

    >>> from everlearn_runtime.heads import LDA
    >>> from_state(LDA(shrinkage=0.1).state()).options
    {'shrinkage': 0.1}
    """
    return by_kind(state.kind).from_state(state)
