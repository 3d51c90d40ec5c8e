"""Methods beside each other, by one figure of each."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from everlearn.evaluation.run import Run
from everlearn.report.pictures.style import BEHIND, COLOURS, beside, canvas, height, name_methods
from everlearn.report.record import own
from everlearn.tables import seconds


def forgetting(runs: Sequence[Sequence[Run]]) -> Figure:
    """Forgetting of each method: a bar for the mean, a line for the spread over the seeds."""
    figure = canvas(8, height(runs))
    axes = figure.add_subplot()
    values = [[own(run).forgetting for run in seeds] for seeds in runs]
    _bars(axes, runs, [[None if value is None else 100 * value for value in row] for row in values])
    axes.set_xlabel("forgetting (points of accuracy)")
    axes.axvline(0, color="black", linewidth=0.8)
    return figure


def errors(runs: Sequence[Sequence[Run]]) -> Figure:
    """Where the last model errs: accuracy, share of right tasks, and accuracy within the right task."""
    figure = canvas(9.5, height(runs))
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
    axes.set_xlabel("test images of all classes, after the last task (%)")
    axes.grid(axis="x", alpha=0.25)
    beside(axes)
    return figure


def cost(runs: Sequence[Sequence[Run]]) -> Figure:
    """Seconds of learning, bytes kept between tasks, and parameters trained, on logarithmic scales.

    A dot for the mean, a line from the least to the most over the seeds; a hollow dot where the
    seconds that shared features have taken are added.
    """
    figure = canvas(11, height(runs))
    first, second, third = figure.subplots(1, 3, sharey=True)
    spent = [[run.seconds for run in seeds] for seeds in runs]
    shared = [float(np.mean([run.reused or 0 for run in seeds])) for seeds in runs]
    _dots(first, runs, spent, seconds, shared)
    first.set_xlabel("seconds of learning")
    _dots(second, runs, [[own(run).bytes / 1e6 for run in seeds] for seeds in runs], "{:,.2f}".format)
    second.set_xlabel("MB kept between tasks")
    _dots(third, runs, [[run.trained for run in seeds] for seeds in runs], "{:,.0f}".format)
    third.set_xlabel("parameters trained")
    for axes in (second, third):
        axes.tick_params(axis="y", length=0)
    return figure


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
        axes.barh(place, mean, height=0.62, color=COLOURS[0], alpha=0.85)
        if len(known) > 1:
            axes.errorbar(mean, place, xerr=spread, color="black", linewidth=1.1)
        axes.annotate(f"{mean:.1f}", (max(mean + spread, 0), place), **BEHIND)
    axes.margins(x=0.18)


def _dots(
    axes: Axes,
    runs: Sequence[Sequence[Run]],
    values: Sequence[Sequence[float]],
    text: Callable[[float], str],
    more: Sequence[float] | None = None,
) -> None:
    """A dot for the mean of each method on a logarithmic scale, and a hollow one with ``more`` added."""
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
        label = text(mean)
        if extra:
            axes.plot(mean + extra, place, "o", color=COLOURS[0], markerfacecolor="white")
            label += f" + {text(extra)}"
        axes.annotate(label, (max(*row, mean + extra), place), **BEHIND)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low = 10.0 ** np.floor(np.log10(min(low, least / 2)))  # powers of ten have room for their labels
    axes.set_xlim(low, high * max(high / low, 10.0) ** 0.25)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.25)
