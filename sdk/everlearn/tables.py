"""Figures as text, and text in columns, for tables that are printed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """Give rows of cells as lines, each column as wide as its widest cell, two spaces between.

    Args:
        rows: the same number of cells each; the titles are a row like the others.
        left: numbers of the columns whose cells begin at the same place, counted from 0; those of
            the others, such as numbers, end at the same place.

    >>> print(aligned([["method", "A_T"], ["NTKCL", "44.20"], ["Joint", "45.5"]], left=[0]))
    method    A_T
    NTKCL   44.20
    Joint    45.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation in percent, or a dash where nothing was measured.

    >>> spread([0.5, 0.52]), spread([0.5]), spread([None, None])
    ('51.00 ± 1.00', '50.00', '-')
    """
    known = 100 * np.array([value for value in values if value is not None])
    if len(known) == 0:
        return "-"
    return f"{known.mean():.2f} ± {known.std():.2f}" if len(known) > 1 else f"{known[0]:.2f}"


def duration(value: float) -> str:
    """A length of time as people say it.

    >>> duration(7.4), duration(200), duration(3900)
    ('7 s', '3 min 20 s', '1 h 5 min')
    """
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def seconds(value: float) -> str:
    """Seconds as text, with a decimal where there are few.

    >>> seconds(3.14159), seconds(1234.5)
    ('3.1', '1,234')
    """
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


@dataclass(frozen=True)
class Table:
    """A table that is printed, or shown on a page.

    Attributes:
        title: what it is of, with the unit.
        head: of the columns.
        rows: the same number of cells each; the first names the row.

    >>> print(Table("Accuracy, %", ["task", "now"], [["task 1", "44.2"]]).text())
    Accuracy, %
      task   now
    task 1  44.2
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Give it in aligned lines, the title above."""
        return f"{self.title}\n{aligned([self.head, *self.rows])}"
