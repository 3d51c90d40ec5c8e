"""Which classes are taken for which."""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from everlearn.evaluation.run import Run
from everlearn.report.pictures.style import canvas, every, plain
from everlearn.report.record import own

NAMED_CLASSES = 25  # with more, their names would lie on one another


def confusion(run: Run) -> Figure:
    """For each class, what the last model took its test images for; lines part the tasks."""
    counts = np.zeros((len(run.classes), len(run.classes)))
    for actual, predicted, count in own(run).confusion:
        counts[actual, predicted] = count
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(run.classes) <= NAMED_CLASSES
    figure = canvas(*((6.4, 5.6) if few else (6.0, 5.2)))
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
        step = every(len(ends))
        middles = (ends - np.array(run.tasks) / 2 - 0.5)[::step]
        names = [f"task {number + 1}" for number in range(0, len(ends), step)]
        axes.set_xticks(middles, names, rotation=90, fontsize=8)
        axes.set_yticks(middles, names, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(plain(f"{run.method}, seed {run.seed}"), fontsize=11)
    ticks = [0, 1, 5, 20, 50, 100]
    figure.colorbar(picture, ax=axes, label="share of the class (%)", shrink=0.85, ticks=ticks)
    return figure
