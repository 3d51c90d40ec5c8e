"""Every method keeps the contract; a new one joins by its name in `everlearn.methods.__all__`."""

from functools import partial
from pathlib import Path

import pytest

from everlearn import NTKCL, Method, methods

from .contract import CHECKS, Check, MakeMethod

METHODS: dict[str, MakeMethod] = {name: getattr(methods, name) for name in methods.__all__}
METHODS["NTKCL(view='hybrid')"] = partial(NTKCL, view="hybrid")
METHODS["NTKCL(variant='released')"] = partial(NTKCL, variant="released")
METHODS["NTKCL(view='hybrid', ptm=True)"] = partial(NTKCL, view="hybrid", ptm=True)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_contract(make: MakeMethod, check: Check, tmp_path: Path) -> None:
    check(make, tmp_path)


def test_the_suite_finds_every_method() -> None:
    assert METHODS.keys() >= {"Frozen", "NTKCL"}
    assert all(issubclass(getattr(methods, name), Method) for name in methods.__all__)
    assert len(CHECKS) == len({check.__name__ for check in CHECKS}) > 10
