"""How accuracy goes from task to task."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from everlearn.evaluation.run import Run
from everlearn.report.pictures.fonts import plain
from everlearn.report.pictures.style import (
    COLOURS,
    DASHES,
    INK,
    MARKERS,
    NUMBERED_TASKS,
    canvas,
    every,
    legend,
    widen,
)
from everlearn.report.record import own


def accuracy(runs: Sequence[Sequence[Run]]) -> Figure:
    """Accuracy over all classes seen so far, after each task.

    Args:
        runs: of each method, one for each seed; in the order of the legend.
    """
    figure = canvas(3.3)
    axes = figure.add_subplot()
    ceilings = []
    for number, seeds in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        dashes = DASHES[number // len(COLOURS) % len(DASHES)]
        seen = 100 * np.array([own(run).seen for run in seeds], dtype=float)
        tasks = np.arange(1, seen.shape[1] + 1)
        mean, spread = seen.mean(axis=0), seen.std(axis=0)
        if len(tasks) > 1 and np.isnan(mean[:-1]).all():
            ceilings.append((mean[-1], colour, plain(f"{seeds[0].method} (all at once)")))
            continue
        axes.plot(
            tasks,
            mean,
            color=colour,
            linestyle=dashes,
            marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
            markersize=5,
            linewidth=1.8,
            label=plain(seeds[0].method),
        )
        if len(seeds) > 1:
            axes.fill_between(tasks, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
        elif len(runs) == 1 and len(tasks) <= NUMBERED_TASKS:
            for task, value in zip(tasks, mean, strict=True):
                axes.annotate(
                    f"{value:.1f}",
                    (task, value),
                    (3, 5),
                    textcoords="offset points",
                    fontsize=10,
                )
    for height, colour, label in ceilings:
        axes.axhline(height, color=colour, linestyle=(0, (6, 2, 1, 2)), linewidth=1.4, label=label)
    axes.set_xlabel("after task")
    axes.set_ylabel("all classes seen (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.08, y=0.12)
    widen(axes)
    axes.grid(axis="y")
    if len(runs) > 1:
        legend(figure, len(runs))
    return figure


def matrix(seeds: Sequence[Run]) -> Figure:
    """Accuracy on each task after each task, the mean over the seeds."""
    values = 100 * np.array([own(run).matrix for run in seeds], dtype=float).mean(axis=0)
    figure = canvas(4.2)
    axes = figure.add_subplot()
    picture = axes.imshow(values, cmap="cividis", vmin=0, vmax=100)
    if len(values) <= NUMBERED_TASKS:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(
                    column,
                    row,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=10,
                    color="#fefefe" if value < 55 else "#010101",  # on the squares, light or dark the page
                )
    ticks = list(range(0, len(values), every(len(values))))
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_xlabel("test images of task")
    axes.set_ylabel("after task")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, label="accuracy (%)", shrink=0.85)
    bar.outline.set_edgecolor(INK)
    return figure
