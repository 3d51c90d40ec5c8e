"""Heads at few images: new classes beside well-known ones, and classes known from nothing.

    python examples/benchmarks/few_images.py DATA.npz [--features FILE.npz] [--picture FILE.png]
        [--depths auto] [--choose]

On CLS and mean patch of the bundled backbone, frozen; with ``--depths auto`` on several depths. First 80 of
100 classes (four fifths) have all their training images and the others k each: accuracy on the test images
of old classes, of new ones, the harmonic mean of the two, and the accuracy over all test images. Then all
classes have k images each. Both are means over draws of which classes are new and which images are seen;
the harmonic mean is taken in each draw. What stands behind +- is the standard deviation over the draws.
``digits`` in place of DATA.npz are scikit-learn's.

With ``--choose`` a quarter of the training images, fixed by ``--seed``, takes the place of the test
images, and the heads are those with other settings of shrinkage and correction. The default of
`WhitenedCosine` is the correction with the largest sum of both figures, harmonic mean and all
images, over all k of the first table.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads import LDA, BalancedRidge, FeCAM, Head, Prototypes, Ridge, WhitenedCosine

HEADS: dict[str, Callable[[], Head]] = {
    "WhitenedCosine (default)": WhitenedCosine,
    "WhitenedCosine, correction 0": lambda: WhitenedCosine(correction=0.0),
    "WhitenedCosine, correction 1": lambda: WhitenedCosine(correction=1.0),
    "WhitenedCosine, projection 1000": lambda: WhitenedCosine(projection=1000),
    "LDA, auto, projection 1000": lambda: LDA("auto", correction=0.7, projection=1000),
    "LDA, auto, correction 1": lambda: LDA("auto", correction=1.0),
    "LDA, auto": lambda: LDA("auto"),
    "LDA, .01": LDA,
    "LDA, .1": lambda: LDA(0.1),
    "LDA, .5": lambda: LDA(0.5),
    "Prototypes": Prototypes,
    "BalancedRidge": BalancedRidge,
    "Ridge, GCV": Ridge,
    "FeCAM": FeCAM,
    "FeCAM, pooling .25": lambda: FeCAM(pooling=0.25),
}
BASELINES = ("Prototypes", "WhitenedCosine, correction 0", "LDA, auto", "LDA, .01", "LDA, .1", "LDA, .5")
CHOICES = np.arange(0, 1.01, 0.1).round(1).tolist()
Array = NDArray[np.float64]


class Split(NamedTuple):
    """Features (N, F) and classes (N,) to learn from, and those to ask about."""

    rows: Array
    labels: NDArray[np.int64]
    probes: Array
    truth: NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA.npz", help="as `everlearn train` takes it; or: digits")
    parser.add_argument("--features", type=Path, metavar="FILE.npz", help="where its features are kept")
    parser.add_argument("--depths", choices=["auto"], help="features of several depths")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="accuracy over k, as a picture")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 5, 10, 20], metavar="K")
    parser.add_argument("--from-nothing", type=int, nargs="+", default=[2, 5, 10, 20], metavar="K")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--choose", action="store_true", help="settings, by held-out training images")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(HEADS), metavar="NAME")
    arguments = parser.parse_args()
    split = features(arguments.data, arguments.features, arguments.depths)
    heads = {name: make for name, make in HEADS.items() if name not in arguments.skip}
    if arguments.choose:
        split = held_out(split, arguments.seed)
        heads = {f"correction {c}": partial(WhitenedCosine, correction=c) for c in CHOICES}
        heads |= {f"LDA, correction {c}": partial(LDA, "auto", correction=c) for c in CHOICES}
    beside = table(heads, split, arguments.images, arguments.draws, arguments.seed, beside_known)
    print_beside(beside, arguments.images)
    if arguments.choose:
        print_choice(beside)
        return
    nothing = table(heads, split, arguments.from_nothing, arguments.draws, arguments.seed, from_nothing)
    print_nothing(nothing, arguments.from_nothing)
    if arguments.picture:
        draw(arguments.picture, beside, arguments.images, nothing, arguments.from_nothing)


def features(data: str, kept: Path | None, depths: str | None) -> Split:
    """Of the training and test images, from the file they are kept in, if there is one."""
    if kept is None or not kept.exists():
        from everlearn import Frozen, Learner, digits, npz

        train, test = digits() if data == "digits" else npz(data)
        learner = Learner(method=Frozen(patches=True, depths=depths or ()), head=Prototypes())
        numbers = {name: number for number, name in enumerate(sorted(set(train.labels)))}
        found = Split(
            learner.features(train).astype(np.float64),
            np.array([numbers[name] for name in train.labels]),
            learner.features(test).astype(np.float64),
            np.array([numbers[name] for name in test.labels]),
        )
        if kept is None:
            return found
        np.savez(kept, rows=found.rows, labels=found.labels, probes=found.probes, truth=found.truth)
    with np.load(kept) as archive:
        return Split(*(archive[name] for name in Split._fields))


def held_out(split: Split, seed: int) -> Split:
    """The training images alone, a quarter of each class held out."""
    random, learn, ask = np.random.default_rng(seed), [], []
    for number in np.unique(split.labels):
        own = random.permutation(np.flatnonzero(split.labels == number))
        ask.append(own[: len(own) // 4])
        learn.append(own[len(own) // 4 :])
    rows, probes = np.concatenate(learn), np.concatenate(ask)
    return Split(split.rows[rows], split.labels[rows], split.rows[probes], split.labels[probes])


Measure = Callable[[dict[str, Callable[[], Head]], Split, int, np.random.Generator], dict[str, list[float]]]


def table(
    heads: dict[str, Callable[[], Head]],
    split: Split,
    images: list[int],
    draws: int,
    seed: int,
    measure: Measure,
) -> dict[str, Array]:
    """Of each head what was measured, (k, draws, figures)."""
    found: dict[str, list[list[list[float]]]] = {name: [] for name in heads}
    for k in images:
        each = [measure(heads, split, k, np.random.default_rng([seed, k, number])) for number in range(draws)]
        for name in heads:
            found[name].append([one[name] for one in each])
    return {name: 100 * np.array(figures) for name, figures in found.items()}


def drawn(split: Split, k: int, classes: NDArray[np.int64], random: np.random.Generator) -> Split:
    """The split with only k images of these classes to learn from."""
    kept = [np.flatnonzero(~np.isin(split.labels, classes))]
    kept += [random.permutation(np.flatnonzero(split.labels == number))[:k] for number in classes]
    rows = np.concatenate(kept)
    return split._replace(rows=split.rows[rows], labels=split.labels[rows])


def right(new: Callable[[], Head], split: Split) -> NDArray[np.bool_]:
    """Whether each probe is named rightly."""
    head = new()
    head.update(split.rows, [str(label) for label in split.labels])
    named = np.array([int(name) for name in head.predict(split.probes)])
    return np.asarray(named == split.truth)


def beside_known(
    heads: dict[str, Callable[[], Head]], split: Split, k: int, random: np.random.Generator
) -> dict[str, list[float]]:
    """Old, new, their harmonic mean, all; a fifth of the classes being new."""
    classes = np.unique(split.labels)
    new = random.permutation(classes)[: len(classes) // 5]
    few, is_new = drawn(split, k, new, random), np.isin(split.truth, new)
    figures = {}
    for name, make in heads.items():
        ok = right(make, few)
        old, recent = float(ok[~is_new].mean()), float(ok[is_new].mean())
        figures[name] = [old, recent, 2 * old * recent / (old + recent or 1.0), float(ok.mean())]
    return figures


def from_nothing(
    heads: dict[str, Callable[[], Head]], split: Split, k: int, random: np.random.Generator
) -> dict[str, list[float]]:
    """Accuracy where each class has k images."""
    few = drawn(split, k, np.unique(split.labels), random)
    return {name: [float(right(make, few).mean())] for name, make in heads.items()}


def print_beside(found: dict[str, Array], images: list[int]) -> None:
    print("\na fifth of the classes with k images, the others with all: old / new / harmonic +- / all +-")
    print(f"{'':30}" + "".join(f"{f'k = {k}':>37}" for k in images))
    for name, figures in found.items():
        cells = []
        for each in figures:
            old, new, both, every = each.mean(axis=0)
            spread = each.std(axis=0)
            cells.append(
                f"{old:7.1f} /{new:5.1f} /{both:5.1f} +- {spread[2]:3.1f} /{every:5.1f} +- {spread[3]:3.1f}"
            )
        print(f"{name:30}" + "".join(cells))


def print_choice(found: dict[str, Array]) -> None:
    for kind in ("correction", "LDA"):
        sums = {name: each.mean(axis=1)[:, 2:].sum() for name, each in found.items() if name.startswith(kind)}
        for name, total in sums.items():
            print(f"{name:30} harmonic + all, over all k: {total:6.1f}")
        print(f"the largest: {max(sums, key=lambda name: sums[name])}")


def print_nothing(found: dict[str, Array], images: list[int]) -> None:
    print("\nevery class with k images: accuracy +-")
    print(f"{'':30}" + "".join(f"{f'k = {k}':>16}" for k in images))
    for name, figures in found.items():
        cells = (f"{each.mean():9.1f} +- {each.std():3.1f}" for each in figures)
        print(f"{name:30}" + "".join(cells))
    best = np.max([found[name].mean(axis=(1, 2)) for name in BASELINES if name in found], axis=0)
    below = best - next(iter(found.values())).mean(axis=(1, 2))
    print(f"{'the first, below the best of':30}" + "".join(f"{gap:9.1f}{'':7}" for gap in below))
    print(f"({'; '.join(BASELINES)})")


def draw(
    path: Path, beside: dict[str, Array], images: list[int], nothing: dict[str, Array], few: list[int]
) -> None:
    """Write the picture: new classes, the harmonic mean and all images over k, and from nothing."""
    from everlearn.report.pictures.style import COLOURS, DASHES, MARKERS, canvas

    figure = canvas(4.2, 13)
    axes = figure.subplots(1, 4)
    panels = [(images, beside, column) for column in (1, 2, 3)] + [(few, nothing, 0)]
    titles = (
        "new classes",
        "harmonic mean of old and new",
        "all test images",
        "from nothing, all classes at k",
    )
    for panel, title, (ks, found, column) in zip(axes, titles, panels, strict=True):
        for number, (name, figures) in enumerate(found.items()):
            panel.plot(
                ks,
                figures.mean(axis=1)[:, column],
                color=COLOURS[number % len(COLOURS)],
                linestyle=DASHES[number // len(COLOURS)],
                marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
                markersize=4.5,
                linewidth=1.6,
                label=name,
            )
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log")
        panel.set_xticks(ks, [str(k) for k in ks])
        panel.minorticks_off()
        panel.set_xlabel("images of a class, k")
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("accuracy (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
