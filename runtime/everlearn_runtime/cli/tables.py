"""Tables as a terminal shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from everlearn_runtime.info import lines
from everlearn_runtime.names import shown


def table(facts: Mapping[str, Any], *, as_json: bool = False) -> str:
    """What is known of something, see `everlearn_runtime.info.describe`, as it is printed."""
    if as_json:
        return json.dumps(facts)
    text = aligned(None, lines(facts))
    classes = facts.get("classes") or ()
    if isinstance(classes, Mapping):
        samples = [(name, f"{count:,}") for name, count in classes.items()]
        return text + ("\n\n" + aligned(("class", "samples"), samples) if samples else "")
    return text + ("\n\n" + "\n".join(map(shown, classes)) if classes else "")


def aligned(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, with a header or without."""
    table = [[shown(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    if not table:
        return ""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
