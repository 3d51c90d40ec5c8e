"""How sure a learner is, and how sure it may be."""

import numpy as np
from matplotlib.figure import Figure

from everlearn.analysis.sureness import BINS, Sureness
from everlearn.report.pictures.style import COLOURS, canvas


def reliability(found: Sureness) -> Figure:
    """Share of right answers over the probability that they were given; below, how often it was given."""
    figure = canvas(5.2, 5.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins, full = found.reliability, found.reliability.shares > 0
    middles = (np.arange(BINS) + 0.5) / BINS
    above.bar(middles[full], 100 * bins.is_right[full], 0.9 / BINS, color=COLOURS[5], label="right answers")
    above.plot([0, 1], [0, 100], color="black", linewidth=1, linestyle="--", label="as it says")
    above.plot(bins.says[full], 100 * bins.is_right[full], "o", color=COLOURS[0], markersize=4)
    above.set_ylabel("right (%)")
    above.set_ylim(0, 100)
    above.legend(frameon=False, fontsize=9, loc="upper left")
    above.set_title(f"calibration error {100 * bins.error:.1f} %", fontsize=11)
    below.bar(middles, 100 * bins.shares, 0.9 / BINS, color=COLOURS[0])
    below.set_xlim(0, 1)
    below.set_xlabel("probability of the answer")
    below.set_ylabel("images (%)")
    return figure


def strangers(found: Sureness) -> Figure:
    """How strange images of known classes are, and those of classes that were taken out."""
    figure = canvas(6.2, 3.6)
    axes = figure.add_subplot()
    values = np.concatenate([found.known, found.unknown])
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-9), 41).tolist()
    for rows, name, colour in ((found.known, "known", COLOURS[0]), (found.unknown, "unknown", COLOURS[1])):
        shares = np.full(len(rows), 100 / len(rows))
        axes.hist(rows, edges, weights=shares, histtype="stepfilled", alpha=0.35, color=colour)
        axes.hist(rows, edges, weights=shares, histtype="step", color=colour, label=name)
    axes.axvline(
        found.threshold, color="black", linestyle="--", linewidth=1, label="threshold, 5 % false alarms"
    )
    axes.set_xlabel("strangeness")
    axes.set_ylabel("images (%)")
    axes.legend(frameon=False, fontsize=9)
    axes.set_title(f"AUROC {100 * found.auroc:.1f} %", fontsize=11)
    return figure
