"""A method by name."""

from everlearn import methods
from everlearn.choices import what
from everlearn.methods.base import Method


def choose_method(given: object) -> Method:
    """A method, of an instance or a name; NTK-CL for None.

    Raises:
        ValueError: neither, or no method has this name.
    """
    if given is None:
        return methods.NTKCL()
    if isinstance(given, str):
        named = {name.casefold(): name for name in methods.__all__}
        if (key := given.casefold().replace("-", "")) not in named:
            raise ValueError(f"no method is named {given!r}; take one of {', '.join(methods.__all__)}")
        made: Method = getattr(methods, named[key])()
        return made
    if not isinstance(given, Method):
        raise ValueError(
            f"method is {what(given, Method)}; give a method, for example NTKCL() or Frozen(), or its name"
        )
    return given
