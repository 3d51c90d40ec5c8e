"""The pictures of a report: what a benchmark found, as matplotlib figures.

Colours are those of Okabe and Ito ("Color Universal Design", 2008) and matplotlib's cividis, which
look different to the colour-blind, too; lines differ by marker and dashes as well.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from everlearn.measure import OWN, Run, Score

Floats = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":")
NAMED_CLASSES = 25  # with more, their names would lie on one another
NUMBERED_TASKS = 12


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
            ceilings.append((mean[-1], colour, f"{seeds[0].method} (all at once)"))
            continue
        axes.plot(
            tasks,
            mean,
            color=colour,
            linestyle=dashes,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4.5,
            linewidth=1.6,
            label=seeds[0].method,
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
    _bars(axes, runs, [[own(run).forgetting for run in seeds] for seeds in runs], 100, "{:.1f}")
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
    """Seconds of learning, bytes kept between tasks, and parameters trained."""
    figure = _figure(11, _height(runs))
    first, second, third = figure.subplots(1, 3, sharey=True)
    _bars(first, runs, [[run.seconds for run in seeds] for seeds in runs], 1, "{:,.0f}", log=True)
    features = [np.mean([run.reused or 0 for run in seeds]) for seeds in runs]
    if any(features):
        places = np.arange(len(runs))[::-1]
        starts = [np.mean([run.seconds for run in seeds]) for seeds in runs]
        first.barh(
            places,
            features,
            left=starts,
            height=0.62,
            color="white",
            edgecolor=COLOURS[0],
            hatch="////",
            label="shared features",
        )
        first.legend(loc="upper right", fontsize=8, bbox_to_anchor=(1, -0.12), frameon=False)
    first.set_xlabel("seconds of learning")
    _bars(second, runs, [[own(run).bytes / 1e6 for run in seeds] for seeds in runs], 1, "{:,.2f}", log=True)
    second.set_xlabel("MB kept between tasks")
    _bars(third, runs, [[run.trained for run in seeds] for seeds in runs], 1, "{:,.0f}", log=True)
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
    axes.set_title(seeds[0].method, fontsize=11)
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
    axes.set_title(f"{run.method}, seed {run.seed}", fontsize=11)
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


def _bars(
    axes: Axes,
    runs: Sequence[Sequence[Run]],
    values: Sequence[Sequence[float | None]],
    factor: float,
    form: str,
    log: bool = False,
) -> None:
    """A bar for the mean of each method, its number behind it."""
    _name(axes, runs)
    known = [factor * np.array([value for value in row if value is not None]) for row in values]
    means = [float(row.mean()) if len(row) else float("nan") for row in known]
    spreads = [float(row.std()) if len(row) > 1 else 0.0 for row in known]
    places = np.arange(len(runs))[::-1]
    for place, mean, spread in zip(places, means, spreads, strict=True):
        if not np.isnan(mean):
            axes.barh(place, mean, height=0.62, color=COLOURS[0], alpha=0.85)
            if spread:
                axes.errorbar(mean, place, xerr=spread, color="black", linewidth=1.1)
        text = "not measured" if np.isnan(mean) else form.format(mean)
        axes.annotate(
            text,
            (0 if np.isnan(mean) else max(mean + spread, 0), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    if log and max(means, default=0) > 0:
        smallest = min((mean for mean in means if mean > 0), default=1)
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.4)
    axes.margins(x=0.18)
