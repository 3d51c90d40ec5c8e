"""Methods beside each other, by one figure of each."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from everlearn.evaluation.run import Run
from everlearn.report.pictures.style import BEHIND, COLOURS, INK, PAPER, canvas, height, legend, name_methods
from everlearn.report.record import own
from everlearn.tables import seconds


def forgetting(runs: Sequence[Sequence[Run]]) -> Figure:
    """Forgetting of each method: a bar for the mean, a line for the spread over the seeds."""
    figure = canvas(height(runs))
    axes = figure.add_subplot()
    values = [[own(run).forgetting for run in seeds] for seeds in runs]
    _bars(axes, runs, [[None if value is None else 100 * value for value in row] for row in values])
    axes.set_xlabel("forgetting (points of accuracy)")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    return figure


def errors(runs: Sequence[Sequence[Run]]) -> Figure:
    """Where the last model errs: accuracy, share of right tasks, and accuracy within the right task."""
    figure = canvas(height(runs))
    axes = figure.add_subplot()
    places = np.arange(len(runs))[::-1]
    kinds = (
        ("accuracy", COLOURS[0], "o"),
        ("right task", COLOURS[1], "s"),
        ("right class, task given", COLOURS[2], "D"),
    )
    for figure_of, (label, colour, marker) in zip(zip(*map(_shares, runs), strict=True), kinds, strict=True):
        values = [100 * np.array(value, dtype=float) for value in figure_of]
        axes.errorbar(
            [value.mean() for value in values],
            places,
            xerr=[value.std() for value in values],
            fmt=marker,
            color=colour,
            markersize=6,
            linewidth=1.2,
            label=label,
        )
    name_methods(axes, runs)
    axes.set_xlabel("of all test images, after the last task (%)")
    axes.grid(axis="x")
    legend(figure, len(kinds))
    return figure


def learning_time(runs: Sequence[Sequence[Run]]) -> Figure:
    """Seconds of learning; a hollow dot where the seconds that shared features have taken are added."""
    shared = [float(np.mean([run.reused or 0 for run in seeds])) for seeds in runs]
    return _dots(
        runs, [[run.seconds for run in seeds] for seeds in runs], "seconds of learning", seconds, shared
    )


def memory(runs: Sequence[Sequence[Run]]) -> Figure:
    """Megabytes kept between tasks."""
    values = [[own(run).bytes / 1e6 for run in seeds] for seeds in runs]
    return _dots(runs, values, "MB kept between tasks", "{:,.2f}".format)


def parameters(runs: Sequence[Sequence[Run]]) -> Figure:
    """The largest number of parameters that a task has trained."""
    return _dots(
        runs, [[run.trained for run in seeds] for seeds in runs], "parameters trained", "{:,.0f}".format
    )


def _shares(seeds: Sequence[Run]) -> tuple[list[float | None], ...]:
    scores = [own(run) for run in seeds]
    return (
        [score.last for score in scores],
        [score.task_id[-1] for score in scores],
        [score.within_task[-1] for score in scores],
    )


def _bars(axes: Axes, runs: Sequence[Sequence[Run]], values: Sequence[Sequence[float | None]]) -> None:
    """A bar for the mean of each method, a line for the spread, and the number behind."""
    name_methods(axes, runs)
    for place, row in zip(range(len(runs))[::-1], values, strict=True):
        known = np.array([value for value in row if value is not None])
        if len(known) == 0:
            axes.annotate("not measured", (0, place), **BEHIND)
            continue
        mean, spread = float(known.mean()), float(known.std())
        axes.barh(place, mean, height=0.62, color=COLOURS[0])
        if len(known) > 1:
            axes.errorbar(mean, place, xerr=spread, color=INK, linewidth=1.1)
        axes.annotate(f"{mean:.1f}", (max(mean + spread, 0), place), **BEHIND)
    axes.margins(x=0.18)


def _dots(
    runs: Sequence[Sequence[Run]],
    values: Sequence[Sequence[float]],
    label: str,
    text: Callable[[float], str],
    more: Sequence[float] | None = None,
) -> Figure:
    """A dot for the mean of each method on a logarithmic scale, and a hollow one with ``more`` added.

    A line reaches from the least to the most over the seeds.
    """
    figure = canvas(height(runs))
    axes = figure.add_subplot()
    name_methods(axes, runs)
    added = more or [0.0] * len(runs)
    means = [float(np.mean(row)) for row in values]
    least = min((mean for mean in means if mean > 0), default=1.0)
    for place, row, mean, extra in zip(range(len(runs))[::-1], values, means, added, strict=True):
        if mean == 0:  # lies left of every logarithmic scale
            axes.annotate("0", (0, place), xycoords=("axes fraction", "data"), **BEHIND)
            continue
        axes.plot(row, [place] * len(row), color=COLOURS[0], linewidth=1.2)
        axes.plot(mean, place, "o", color=COLOURS[0])
        number = text(mean)
        if extra:
            axes.plot(mean + extra, place, "o", color=COLOURS[0], markerfacecolor=PAPER)
            number += f" + {text(extra)}"
        axes.annotate(number, (max(*row, mean + extra), place), **BEHIND)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low = 10.0 ** np.floor(np.log10(min(low, least / 2)))  # powers of ten have room for their labels
    axes.set_xlim(low, max(high * max(high / low, 10.0) ** 0.4, 20 * low))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x")
    axes.set_xlabel(label)
    return figure
