"""The pictures of a report: what a benchmark found, as matplotlib figures.

Colours are those of Okabe and Ito ("Color Universal Design", 2008) and matplotlib's cividis, which
look different to the colour-blind, too; lines differ by marker and dashes as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from everlearn.evaluation.bench import seconds
from everlearn.evaluation.run import OWN, Run, Score

Floats = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":")
NAMED_CLASSES = 25  # with more, their names would lie on one another
NUMBERED_TASKS = 12

_BEHIND: dict[str, Any] = {
    "xytext": (6, 0),
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 8.5,
}


def accuracy(runs: Sequence[Sequence[Run]]) -> Figure:
    """Accuracy over all classes seen so far, after each task.

    Args:
        runs: of each method, one for each seed; in the order of the legend.
    """
    figure = _figure(9.5, 5.2)
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
            markersize=4.5,
            linewidth=1.6,
            label=plain(seeds[0].method),
        )
        if len(seeds) > 1:
            axes.fill_between(tasks, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
    for height, colour, label in ceilings:
        axes.axhline(height, color=colour, linestyle=(0, (6, 2, 1, 2)), linewidth=1.4, label=label)
    axes.set_xlabel("after task")
    axes.set_ylabel("accuracy over all classes seen (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def forgetting(runs: Sequence[Sequence[Run]]) -> Figure:
    """Forgetting of each method: a bar for the mean, a line for the spread over the seeds."""
    figure = _figure(8, _height(runs))
    axes = figure.add_subplot()
    values = [[own(run).forgetting for run in seeds] for seeds in runs]
    _bars(axes, runs, [[None if value is None else 100 * value for value in row] for row in values])
    axes.set_xlabel("forgetting (points of accuracy)")
    axes.axvline(0, color="black", linewidth=0.8)
    return figure


def errors(runs: Sequence[Sequence[Run]]) -> Figure:
    """Where the last model errs: accuracy, share of right tasks, and accuracy within the right task."""
    figure = _figure(9.5, _height(runs))
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
    _name(axes, runs)
    axes.set_xlabel("test images of all classes, after the last task (%)")
    axes.grid(axis="x", alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def cost(runs: Sequence[Sequence[Run]]) -> Figure:
    """Seconds of learning, bytes kept between tasks, and parameters trained, on logarithmic scales.

    A dot for the mean, a line from the least to the most over the seeds; a hollow dot where the
    seconds that shared features have taken are added.
    """
    figure = _figure(11, _height(runs))
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


def matrix(seeds: Sequence[Run]) -> Figure:
    """Accuracy on each task after each task, the mean over the seeds."""
    values = 100 * np.array([own(run).matrix for run in seeds], dtype=float).mean(axis=0)
    figure = _figure(4.9, 4.2)
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
                    fontsize=8,
                    color="white" if value < 55 else "black",
                )
    every = max(1, -(-len(values) // NUMBERED_TASKS))
    ticks = list(range(0, len(values), every))
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_xlabel("test images of task")
    axes.set_ylabel("after task")
    axes.set_title(plain(seeds[0].method), fontsize=11)
    figure.colorbar(picture, ax=axes, label="accuracy (%)", shrink=0.85)
    return figure


def confusion(run: Run) -> Figure:
    """For each class, what the last model took its test images for; lines part the tasks."""
    counts = np.zeros((len(run.classes), len(run.classes)))
    for actual, predicted, count in own(run).confusion:
        counts[actual, predicted] = count
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(run.classes) <= NAMED_CLASSES
    figure = _figure(*((6.4, 5.6) if few else (6.0, 5.2)))
    axes = figure.add_subplot()
    picture = axes.imshow(
        shares, cmap="cividis", norm=PowerNorm(0.5, 0, 100), interpolation="nearest", aspect="equal"
    )
    ends = np.cumsum(run.tasks)
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="white", linewidth=0.6, alpha=0.7)
        axes.axvline(end - 0.5, color="white", linewidth=0.6, alpha=0.7)
    if few:
        names = [plain(name if len(name) <= 18 else f"{name[:17]}…") for name in run.classes]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    else:
        every = max(1, -(-len(ends) // NUMBERED_TASKS))
        middles = (ends - np.array(run.tasks) / 2 - 0.5)[::every]
        names = [f"task {number + 1}" for number in range(0, len(ends), every)]
        axes.set_xticks(middles, names, rotation=90, fontsize=8)
        axes.set_yticks(middles, names, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(plain(f"{run.method}, seed {run.seed}"), fontsize=11)
    ticks = [0, 1, 5, 20, 50, 100]
    figure.colorbar(picture, ax=axes, label="share of the class (%)", shrink=0.85, ticks=ticks)
    return figure


def own(run: Run) -> Score:
    """The score of a run's own head."""
    return run.scores[OWN]


def plain(text: str) -> str:
    """The text as matplotlib shows it as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _shares(seeds: Sequence[Run]) -> tuple[list[float | None], ...]:
    scores = [own(run) for run in seeds]
    return (
        [score.last for score in scores],
        [score.task_id[-1] for score in scores],
        [score.within_task[-1] for score in scores],
    )


def _figure(width: float, height: float) -> Figure:
    with matplotlib.rc_context({"font.size": 10}):
        return Figure(figsize=(width, height), layout="constrained", dpi=130)


def _height(runs: Sequence[Sequence[Run]]) -> float:
    return 1.2 + 0.34 * max(len(runs), 2)


def _name(axes: Axes, runs: Sequence[Sequence[Run]]) -> None:
    places = np.arange(len(runs))[::-1]
    axes.set_yticks(places, [plain(seeds[0].method) for seeds in runs])
    axes.set_ylim(-0.6, len(runs) - 0.4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _bars(axes: Axes, runs: Sequence[Sequence[Run]], values: Sequence[Sequence[float | None]]) -> None:
    """A bar for the mean of each method, a line for the spread, and the number behind."""
    _name(axes, runs)
    for place, row in zip(range(len(runs))[::-1], values, strict=True):
        known = np.array([value for value in row if value is not None])
        if len(known) == 0:
            axes.annotate("not measured", (0, place), **_BEHIND)
            continue
        mean, spread = float(known.mean()), float(known.std())
        axes.barh(place, mean, height=0.62, color=COLOURS[0], alpha=0.85)
        if len(known) > 1:
            axes.errorbar(mean, place, xerr=spread, color="black", linewidth=1.1)
        axes.annotate(f"{mean:.1f}", (max(mean + spread, 0), place), **_BEHIND)
    axes.margins(x=0.18)


def _dots(
    axes: Axes,
    runs: Sequence[Sequence[Run]],
    values: Sequence[Sequence[float]],
    text: Callable[[float], str],
    more: Sequence[float] | None = None,
) -> None:
    """A dot for the mean of each method on a logarithmic scale, and a hollow one with ``more`` added."""
    _name(axes, runs)
    added = more or [0.0] * len(runs)
    means = [float(np.mean(row)) for row in values]
    least = min((mean for mean in means if mean > 0), default=1.0)
    for place, row, mean, extra in zip(range(len(runs))[::-1], values, means, added, strict=True):
        if mean == 0:  # lies left of every logarithmic scale
            axes.annotate("0", (0, place), xycoords=("axes fraction", "data"), **_BEHIND)
            continue
        axes.plot(row, [place] * len(row), color=COLOURS[0], linewidth=1.2)
        axes.plot(mean, place, "o", color=COLOURS[0])
        label = text(mean)
        if extra:
            axes.plot(mean + extra, place, "o", color=COLOURS[0], markerfacecolor="white")
            label += f" + {text(extra)}"
        axes.annotate(label, (max(*row, mean + extra), place), **_BEHIND)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low = 10.0 ** np.floor(np.log10(min(low, least / 2)))  # powers of ten have room for their labels
    axes.set_xlim(low, high * max(high / low, 10.0) ** 0.25)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.25)
