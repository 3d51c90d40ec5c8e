"""Compare with reference numbers, and remember how far each group of them was missed.

`LARGEST` holds the largest error of each group; `pytest -v tests/fidelity` prints it at its end,
and `make fidelity` writes it into `docs/fidelity.md`.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Oracle = dict[str, NDArray[Any]]

LARGEST: dict[str, dict[str, tuple[float, int]]] = {}
"""By test file and group: the largest absolute error, and how many numbers were compared."""


def read(name: str) -> Oracle:
    """All arrays of a file of reference numbers, from the folder EVERLEARN_ORACLES where it is set."""
    folder = os.environ.get("EVERLEARN_ORACLES") or Path(__file__).parents[1] / "data" / "oracles"
    with np.load(Path(folder) / name) as stored:
        return {key: stored[key] for key in stored.files}


def close(group: str, got: Any, expected: NDArray[Any], atol: float = 1e-9) -> None:
    """Hold numbers to `atol`, and what is stored as float32 to its rounding on top."""
    value = np.asarray(got.detach().numpy() if isinstance(got, Tensor) else got, dtype=np.float64)
    assert value.shape == expected.shape, f"{group}: {value.shape} is not {expected.shape}"
    file = Path(os.environ["PYTEST_CURRENT_TEST"].split("::")[0]).name  # by pytest
    groups = LARGEST.setdefault(file, {})
    error, many = np.abs(value - expected), groups.get(group, (0.0, 0))
    groups[group] = max(many[0], float(error.max(initial=0))), many[1] + error.size
    rounding = 2.0**-24 * np.abs(expected) if expected.dtype == np.float32 else 0.0
    assert (error <= atol + rounding).all(), f"{group}: off by up to {error.max():.3g}, allowed {atol:g}"


def table(file: str) -> str:
    """What a test file has compared so far, in Markdown."""
    lines = [
        f"| {group} | {f'{error:.1e}' if error else '0'} | {count:,} |"
        for group, (error, count) in LARGEST[file].items()
    ]
    return "\n".join(["| what | largest error | numbers |", "|---|---:|---:|", *lines])


def write(page: Path) -> None:
    """Put the tables of this run into a page, each behind the comment that names its test file."""
    text = page.read_text()
    for file in LARGEST:
        mark = f"<!-- table: {file} -->\n"
        if mark not in text:
            raise ValueError(f"{page} has no place for the table of {file}; give it a line {mark.strip()}")
        before, behind = text.split(mark)
        old = re.match(r"(\|.*\n)*", behind)
        assert old is not None
        text = before + mark + table(file) + "\n" + behind[old.end() :]
    page.write_text(text)
