"""Names of a package that are imported only when they are asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def names(
    package: str, where: Mapping[str, str], *, before: Callable[[str], None] = lambda module: None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and the ``__dir__`` of a package that imports its names, and its modules, late.

    The package says the same imports once more under ``if TYPE_CHECKING``, for type checkers and documents.

    Args:
        package: Its ``__name__``.
        where: The module that each name comes from. None of them may be the name of a module of the package:
            importing that would put the module in its place.
        before: Is told of the module that is about to be imported, and may refuse.
    """

    def get(name: str) -> Any:
        module = where.get(name)
        if module is None:
            module = f"{package}.{name}"
            if name.startswith("_") or not find_spec(module):
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
        before(module)
        found = import_module(module)
        value = getattr(found, name) if name in where else found
        setattr(sys.modules[package], name, value)
        return value

    def known() -> list[str]:
        there = vars(sys.modules[package])
        return sorted({*there, *where, *there.get("__all__", ())})

    return get, known
