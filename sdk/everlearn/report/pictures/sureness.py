"""How sure a learner is, how sure it may be, and what it makes of a few images."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from everlearn.analysis.few import FewImages
from everlearn.analysis.sureness import BINS, Sureness
from everlearn.report.pictures.style import COLOURS, INK, MARKERS, canvas, legend, widen


def reliability(found: Sureness) -> Figure:
    """Share of right answers over the probability that they were given; below, how often it was given."""
    figure = canvas(4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins, full = found.reliability, found.reliability.shares > 0
    middles = 100 * (np.arange(BINS) + 0.5) / BINS
    above.bar(
        middles[full],
        100 * bins.is_right[full],
        90 / BINS,
        color=COLOURS[0],
        alpha=0.5,
        label="right answers",
    )
    above.plot([0, 100], [0, 100], color=INK, linewidth=1.2, linestyle="--", label="as many as it says")
    above.plot(100 * bins.says[full], 100 * bins.is_right[full], "o", color=INK, markersize=4, clip_on=False)
    above.set_ylabel("right (%)")
    above.set_ylim(0, 100)
    above.legend(loc="upper left")
    below.bar(middles, 100 * bins.shares, 90 / BINS, color=COLOURS[0])
    below.set_xlim(0, 100)
    below.set_xlabel("probability of the answer (%)")
    below.set_ylabel("images (%)")
    return figure


def strangers(found: Sureness) -> Figure:
    """How strange images of known classes are, and those of classes that were taken out."""
    figure = canvas(3.4)
    axes = figure.add_subplot()
    values = np.concatenate([found.known, found.unknown])
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-9), 41).tolist()
    kinds = ((found.known, "known", COLOURS[0], "-"), (found.unknown, "unknown", COLOURS[1], "--"))
    for rows, name, colour, dashes in kinds:
        shares = np.full(len(rows), 100 / len(rows))
        axes.hist(rows, edges, weights=shares, histtype="stepfilled", alpha=0.3, color=colour)
        axes.hist(
            rows,
            edges,
            weights=shares,
            histtype="step",
            color=colour,
            linestyle=dashes,
            linewidth=1.5,
            label=name,
        )
    axes.axvline(
        found.threshold, color=INK, linestyle=":", linewidth=1.6, label="threshold, 5 % false alarms"
    )
    axes.set_xlabel("strangeness")
    axes.set_ylabel("images (%)")
    legend(figure, 3)
    return figure


def over_images(found: FewImages) -> Figure:
    """Accuracy over the number of images of each new class: mean over the draws, and their spread."""
    figure = canvas(3.3)
    axes = figure.add_subplot()
    kinds = (
        ("new classes", found.new, COLOURS[1], "--"),
        ("other classes", found.old, COLOURS[0], ":"),
        ("harmonic mean", found.harmonic, COLOURS[2], "-"),
    )
    for (name, rows, colour, dashes), marker in zip(kinds, MARKERS, strict=False):
        mean, spread = 100 * rows.mean(axis=0), 100 * rows.std(axis=0)
        axes.plot(
            found.images, mean, color=colour, linestyle=dashes, marker=marker, linewidth=1.8, label=name
        )
        axes.fill_between(found.images, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(found.images, [str(count) for count in found.images])
    axes.xaxis.set_minor_locator(NullLocator())
    widen(axes)
    axes.set_xlabel("images of each new class")
    axes.set_ylabel("test images right (%)")
    axes.grid(axis="y")
    legend(figure, 3)
    return figure
