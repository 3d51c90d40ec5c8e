"""What is taken for what."""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from everlearn.evaluation.run import Run
from everlearn.report.pictures.fonts import drawable, plain
from everlearn.report.pictures.style import INK, canvas, every
from everlearn.report.record import own

NAMED_CLASSES = 25
"""With more, tasks stand at the axes in their place."""


def numbered(run: Run) -> bool:
    """Whether numbers stand for the names of classes in `confusion`, as no font here has some of them."""
    return len(run.classes) <= NAMED_CLASSES and not all(map(drawable, run.classes))


def confusion(run: Run) -> Figure:
    """For each class, what the last model took its test images for; lines part the tasks."""
    counts = np.zeros((len(run.classes), len(run.classes)))
    for actual, predicted, count in own(run).confusion:
        counts[actual, predicted] = count
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(run.classes) <= NAMED_CLASSES
    figure = canvas(5.0 if few else 4.4)
    axes = figure.add_subplot()
    picture = axes.imshow(
        shares, cmap="cividis", norm=PowerNorm(0.5, 0, 100), interpolation="nearest", aspect="equal"
    )
    ends = np.cumsum(run.tasks)
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="#fefefe", linewidth=0.7, alpha=0.7)
        axes.axvline(end - 0.5, color="#fefefe", linewidth=0.7, alpha=0.7)
    if few:
        names = [plain(name if len(name) <= 14 else f"{name[:13]}…") for name in run.classes]
        if numbered(run):
            names = [str(number) for number in range(1, len(names) + 1)]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=9.5)
        axes.set_yticks(range(len(names)), names, fontsize=9.5)
    else:
        step = every(len(ends))
        middles = (ends - np.array(run.tasks) / 2 - 0.5)[::step]
        names = [f"task {number + 1}" for number in range(0, len(ends), step)]
        axes.set_xticks(middles, names, rotation=90, fontsize=9.5)
        axes.set_yticks(middles, names, fontsize=9.5)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.spines[:].set_visible(False)
    ticks = [0, 1, 5, 20, 50, 100]
    bar = figure.colorbar(picture, ax=axes, label="share of the class (%)", shrink=0.62, ticks=ticks)
    bar.outline.set_edgecolor(INK)
    return figure
