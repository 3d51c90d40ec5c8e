"""What all pictures have in common: colours, sizes, and how methods are named.

Colours are those of Okabe and Ito ("Color Universal Design", 2008) and matplotlib's cividis, which
look different to the colour-blind, too; lines differ by marker and dashes as well. Pictures are as wide
as a phone, so that their text can be read there, and have no background, so that they fit a dark page.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from everlearn.evaluation.run import Run
from everlearn.report.pictures.fonts import families, plain

INK, RULE, PAPER = "#1c1c1d", "#c8c8c9", "#fdfdfe"
"""Text and axes, grid lines, background: a page puts its own in their place."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":")
NUMBERED_TASKS = 12  # with more, their numbers would lie on one another
WIDTH = 5.0
"""Of every picture, in inches."""

LEAST_RANGE = 20
"""Points of percent on the axis of accuracies."""

STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "svg.fonttype": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
}

BEHIND: dict[str, Any] = {
    "xytext": (6, 0),
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 10,
}
"""How a number stands behind a bar or a dot."""


def style() -> Any:
    """The context in which pictures are made and saved."""
    settings: Any = {**STYLE, "font.family": list(families())}
    return matplotlib.rc_context(settings)


def canvas(height: float, width: float = WIDTH) -> Figure:
    """Make an empty figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained", dpi=150, facecolor=PAPER)


def height(runs: Sequence[Sequence[Run]]) -> float:
    """Give the height in inches that a picture with a line for each method needs."""
    return 1.1 + 0.32 * max(len(runs), 2)


def name_methods(axes: Axes, runs: Sequence[Sequence[Run]]) -> None:
    """Name the methods on the left, the first one at the top."""
    places = np.arange(len(runs))[::-1]
    axes.set_yticks(places, [plain(_short(seeds[0].method)) for seeds in runs])
    axes.set_ylim(-0.6, len(runs) - 0.4)
    axes.tick_params(axis="y", length=0)


def legend(figure: Figure, count: int) -> None:
    """Put the legend of so many entries below the picture, and make room for it."""
    rows = -(-count // 2)
    figure.set_figheight(figure.get_figheight() + 0.22 * rows)
    figure.legend(loc="outside lower center", ncols=2)


def widen(axes: Axes) -> None:
    """Show at least `LEAST_RANGE` points of percent, so that tenths of a point do not look like cliffs."""
    low, high = axes.get_ylim()
    if high - low < LEAST_RANGE:
        high = min((low + high + LEAST_RANGE) / 2, 101.0)
        axes.set_ylim(high - LEAST_RANGE, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def every(count: int) -> int:
    """Give the step from one numbered task to the next, so that not too many are."""
    return max(1, -(-count // NUMBERED_TASKS))


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"
