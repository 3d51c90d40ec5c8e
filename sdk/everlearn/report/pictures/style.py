"""What all pictures have in common: colours, sizes, and how methods are named.

Colours are those of Okabe and Ito ("Color Universal Design", 2008) and matplotlib's cividis, which
look different to the colour-blind, too; lines differ by marker and dashes as well.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from everlearn.evaluation.run import Run

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":")
NUMBERED_TASKS = 12  # with more, their numbers would lie on one another

BEHIND: dict[str, Any] = {
    "xytext": (6, 0),
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 8.5,
}
"""How a number stands behind a bar or a dot."""


def canvas(width: float, height: float) -> Figure:
    """Make an empty figure of this size in inches."""
    with matplotlib.rc_context({"font.size": 10}):
        return Figure(figsize=(width, height), layout="constrained", dpi=130)


def height(runs: Sequence[Sequence[Run]]) -> float:
    """Give the height in inches that a picture with a line for each method needs."""
    return 1.2 + 0.34 * max(len(runs), 2)


def plain(text: str) -> str:
    """The text as matplotlib shows it as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def name_methods(axes: Axes, runs: Sequence[Sequence[Run]]) -> None:
    """Name the methods on the left, the first one at the top."""
    places = np.arange(len(runs))[::-1]
    axes.set_yticks(places, [plain(seeds[0].method) for seeds in runs])
    axes.set_ylim(-0.6, len(runs) - 0.4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def beside(axes: Axes) -> None:
    """Put the legend on the right, outside of the picture."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def every(count: int) -> int:
    """Give the step from one numbered task to the next, so that not too many are."""
    return max(1, -(-count // NUMBERED_TASKS))
