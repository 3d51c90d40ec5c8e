"""Text in columns, for tables that are printed."""

from collections.abc import Collection, Sequence


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
