"""How sure the device may be: calibration, the unknown, wrong labels, canaries, and a stream that turns dark.

    python examples/benchmarks/how_sure.py DATA.npz --out FOLDER [--far DATA ...] [--heads LDA ...]
        [--depths auto]

Features of the bundled backbone (CLS and mean patch; with ``--depths auto`` of several depths) for a data
set as ``everlearn train`` takes it, computed once and kept in the folder. In each of five draws a fifth of
the classes is unknown; of the others the head learns some images, and then judges and learns more, one by
one, as a device does. What is told of the test images then is measured: mean and standard deviation over
the draws, in percent where no unit is said. Far sets are scikit-learn's digits and what ``--far`` names.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
from numpy.typing import NDArray

import everlearn
from everlearn import LDA, Frozen, Images, Learner, Prototypes, Ridge, digits
from everlearn.analysis.sureness import BINS, auroc, reliability
from everlearn.data import load
from everlearn_runtime import Canaries, DriftWatch, Head, WhitenedCosine, from_state
from everlearn_runtime.guard import doubtful, refusal, suspects
from everlearn_runtime.heads.confidence import Look

HEADS: dict[str, Callable[[], Head]] = {
    "WhitenedCosine": WhitenedCosine,
    "LDA": LDA,
    "Ridge(0.01)": lambda: Ridge(0.01),
    "Prototypes": Prototypes,
}
DARK = (0.5, 0.25, 0.1)
RATES = (0.01, 0.05, 0.1)
BASE, SOME_IMAGES, CANARIES = 150, 1000, 5
Array = NDArray[np.float64]
Rows = NDArray[np.float32]


@dataclass
class Sets:
    """Features and labels of all images."""

    train: Rows
    train_labels: NDArray[np.str_]
    test: Rows
    test_labels: NDArray[np.str_]
    dark: dict[float, Rows]
    far: dict[str, Rows]


@dataclass
class Draw:
    """One choice of what is known, and a head that has learned some of it."""

    seed: int
    head: Head
    stream: Rows  # what it may learn next
    stream_labels: list[str]
    test: Rows
    test_labels: NDArray[np.str_]
    near: Rows  # test images of the unknown classes
    tests: NDArray[np.bool_]  # which test images are of known classes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the features and pictures")
    parser.add_argument("--far", nargs="*", default=[], metavar="DATA", help="more sets of unknown images")
    parser.add_argument("--heads", nargs="*", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--depths", choices=["auto"], help="features of several depths")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sets = features(arguments.data, arguments.far, arguments.depths, arguments.out / "features.npz")
    for name in arguments.heads:
        print(f"\n# {name}, temperature before figures {HEADS[name]().usual_temperature}")
        new = HEADS[name]
        drawn = [[draw(sets, new, seed, shots) for seed in range(arguments.draws)] for shots in (BASE, 20, 5)]
        unknown(sets, drawn)
        curve = calibration(drawn)
        alarms(sets, drawn)
        wrong_labels(drawn[0])
        swapped(drawn)
        dark(sets, drawn[0])
        pictures(arguments.out, name, sets, drawn[0], curve)


def features(data: str, far: list[str], depths: str | None, file: Path) -> Sets:
    """The features of all images, from the file if it is there."""
    if not file.is_file():
        train, test = load(data)
        learner = Learner(method=Frozen(patches=True, depths=depths or ()), device="cpu")
        some = test.subset(np.random.default_rng(0).permutation(len(test))[:SOME_IMAGES].tolist())
        found: dict[str, Any] = {
            "train": learner.features(train),
            "train_labels": np.array(train.labels),
            "test": learner.features(test),
            "test_labels": np.array(test.labels),
            "far digits": learner.features(digits()[1]),
        }
        for factor in DARK:
            found[f"dark {factor}"] = learner.features(darkened(some, factor))
        for name in far:
            images = load(name)[1]
            chosen = np.random.default_rng(0).permutation(len(images))[:SOME_IMAGES]
            found[f"far {Path(name).stem}"] = learner.features(images.subset(chosen.tolist()))
        np.savez(file, **found)
    with np.load(file) as kept:
        named = {name: kept[name] for name in kept.files}
    return Sets(
        named["train"],
        named["train_labels"],
        named["test"],
        named["test_labels"],
        dark={factor: named[f"dark {factor}"] for factor in DARK},
        far={name[4:]: rows for name, rows in named.items() if name.startswith("far ")},
    )


def darkened(images: Images, factor: float) -> Images:
    """The same images, each pixel times a factor."""
    return everlearn.arrays(
        np.stack([(np.asarray(image) * factor).astype(np.uint8) for image, _ in images]), list(images.labels)
    )


def draw(sets: Sets, new: Callable[[], Head], seed: int, shots: int) -> Draw:
    """A head that knows four fifths of the classes by so many images each."""
    random = np.random.default_rng(seed)
    names = random.permutation(np.unique(sets.train_labels))
    known = names[: len(names) * 4 // 5]
    first, rest = [], []
    for name in known:
        places = random.permutation(np.flatnonzero(sets.train_labels == name))
        first.append(places[:shots])
        rest.append(places[BASE:])  # the same for all shots
    head, learned = new(), np.concatenate(first)
    head.update(sets.train[learned], sets.train_labels[learned].tolist())
    stream, tests = random.permutation(np.concatenate(rest)), np.isin(sets.test_labels, known)
    return Draw(
        seed,
        head,
        sets.train[stream],
        sets.train_labels[stream].tolist(),
        sets.test[tests],
        sets.test_labels[tests],
        sets.test[~tests],
        tests,
    )


def judging(draw: Draw, images: int) -> Head:
    """A copy of a draw's head that has judged and learned so many images, one by one."""
    head = from_state(draw.head.state())
    for row, label in zip(draw.stream[:images], draw.stream_labels[:images], strict=True):
        judgement = head.judge(row[None], [label])
        assert judgement is not None
        head.update(row[None], [label])
        head.note(judgement)
    return head


def spread(values: Any) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):6.1f} ± {np.std(values):4.1f}"


def unknown(sets: Sets, drawn: list[list[Draw]]) -> None:
    """AUROC of the strangeness."""
    print(f"\n{'AUROC, images a class':24}" + "".join(f"{name:>16}" for name in ("near", *sets.far)))
    for shots, draws in zip((BASE, 20, 5), drawn, strict=True):
        found = []
        for one in draws:
            known = one.head.strangeness(one.test)
            found.append(
                [100 * auroc(known, one.head.strangeness(x)) for x in (one.near, *sets.far.values())]
            )
        print(f"{shots:<24}" + "".join(f"{spread(column):>16}" for column in zip(*found, strict=True)))


def calibration(drawn: list[list[Draw]]) -> dict[int, list[float]]:
    """Calibration error over the number of images that were judged and learned."""
    steps = (50, 100, 200, 400, 1000)
    print(f"\n{'calibration error after':24}" + "".join(f"{step:>16}" for step in (0, *steps)))
    curve: dict[int, list[float]] = {}
    for shots, draws in zip((BASE, 20, 5), drawn, strict=True):
        rows, temperatures = [], []
        for one in draws:
            errors = [100 * reliability(one.head, one.test, one.test_labels).error]
            for step in steps:
                head = judging(one, step)
                # What the figures say, enough of them or not.
                temperature = head.confidence.temperature
                errors.append(100 * reliability(head, one.test, one.test_labels, temperature).error)
            temperatures.append(head.confidence.temperature)
            rows.append(errors)
        print(
            f"{f'{shots} images a class':24}"
            + "".join(f"{spread(column):>16}" for column in zip(*rows, strict=True))
            + f"   T {np.mean(temperatures):.3g}"
        )
        curve[shots] = np.mean(rows, axis=0).tolist()
    return curve


def alarms(sets: Sets, drawn: list[list[Draw]]) -> None:
    """Known images that are called unknown, against the rate asked for, and unknown images that are told."""
    print(f"\n{'called unknown':24}{'judged':>8}{'asked':>8}{'known':>16}{'near':>16}", end="")
    print("".join(f"{name:>16}" for name in sets.far))
    for shots, draws in zip((BASE, 5), (drawn[0], drawn[2]), strict=True):
        for images in (200, 1000):
            heads = [judging(one, images) for one in draws]
            for rate in RATES:
                found = []
                for head, one in zip(heads, draws, strict=True):
                    limit = head.confidence.threshold(rate)
                    found.append(
                        [
                            100 * float((head.strangeness(x) > limit).mean())
                            for x in (one.test, one.near, *sets.far.values())
                        ]
                    )
                columns = "".join(f"{spread(column):>16}" for column in zip(*found, strict=True))
                print(f"{f'{shots} images a class':24}{images:8}{100 * rate:8.0f}{columns}")


def wrong_labels(draws: list[Draw], share: float = 0.1, images: int = 1000) -> None:
    """A stream of which a tenth has the name of another class."""
    print(f"\n{'suspects among 1,000':24}{'asked':>8}{'wrong found':>16}{'false alarms':>16}")
    for rate in (0.02, 0.05, 0.1):
        rows = []
        for one in draws:
            random, head = np.random.default_rng(one.seed), judging(one, images)
            hits, total = [0, 0], [0, 0]
            for place in range(images, 2 * images):
                wrong = bool(random.random() < share)
                label = one.stream_labels[place]
                if wrong:
                    label = str(random.choice([name for name in head.classes if name != label]))
                row = one.stream[place][None]
                opinion = head.opinion(row, [label])
                told = any(found.reason == "label" for found in suspects(head, opinion, rate))
                hits[wrong] += told
                total[wrong] += 1
                head.update(row, [label])
                assert opinion.judgement is not None
                head.note(opinion.judgement)
            rows.append([100 * hits[1] / total[1], 100 * hits[0] / total[0]])
        columns = "".join(f"{spread(column):>16}" for column in zip(*rows, strict=True))
        print(f"{'':24}{100 * rate:8.0f}{columns}")


def swapped(drawn: list[list[Draw]], pairs: int = 10) -> None:
    """Batches of two classes under each other's name, and the same under their own; five canaries a class."""
    print(
        f"\n{'refused of batches of two classes':36}{'guard':>8}{'swapped':>10}{'right':>10}{'by doubts':>16}"
    )
    for shots, draws in zip((BASE, 5), (drawn[0], drawn[2]), strict=True):
        heads = [judging(one, 400) for one in draws]
        for size, limit in ((5, 0.1), (20, 0.1), (40, 0.0), (40, 0.1), (40, 0.2)):
            counts = {swap: np.zeros(2, dtype=int) for swap in (True, False)}
            for one, head in zip(draws, heads, strict=True):
                random, labels = np.random.default_rng(one.seed), np.array(one.stream_labels)
                watched = canaries(one)
                for _ in range(pairs):
                    two = random.choice(head.classes, 2, replace=False)
                    # Images that the head has not learned; the last of each class are canaries.
                    fresh = [np.flatnonzero(labels[400:] == name)[:-CANARIES][:size] + 400 for name in two]
                    places = np.concatenate(fresh)
                    own = labels[places]
                    other = np.where(own == two[0], two[1], two[0])
                    for swap, names in ((True, other.tolist()), (False, own.tolist())):
                        rows = one.stream[places]
                        doubts = doubtful(len(rows), suspects(head, head.opinion(rows, names), 0.05), 0.05)
                        falls = refusal(head, watched, rows, names, limit)
                        counts[swap] += [falls is not None or doubts is not None, doubts is not None]
            shares = {swap: 100 * found / (pairs * len(draws)) for swap, found in counts.items()}
            doubted = f"{shares[True][1]:.0f} and {shares[False][1]:.0f}"
            print(
                f"{f'{shots} known, {size} taught of each':36}{limit:8.2f}{shares[True][0]:10.0f}"
                f"{shares[False][0]:10.0f}{doubted:>16}"
            )


def canaries(draw: Draw, each: int = CANARIES) -> Canaries:
    """The last images of each class in the stream, which nobody learns here."""
    labels = np.array(draw.stream_labels)
    chosen = np.concatenate([np.flatnonzero(labels == name)[-each:] for name in draw.head.classes])
    return Canaries(draw.stream[chosen], tuple(labels[chosen].tolist()))


def dark(sets: Sets, draws: list[Draw]) -> None:
    """How many images it takes to tell that a stream has turned dark, or shows something else."""
    heads = [judging(one, 1000) for one in draws]
    wrongly, known, alone, classes = 0, 0, 0, 0
    for head, one in zip(heads, draws, strict=True):
        watch, look = (
            DriftWatch(),
            head.look(one.test[np.random.default_rng(one.seed).permutation(len(one.test))]),
        )
        known += len(one.test)
        while (told := told_after(watch, head, look)) is not None:
            wrongly, look = wrongly + 1, Look(*(each[told:] for each in look))
            watch.reset()
        for name in head.classes:  # as where a camera looks at one thing for long
            classes += 1
            only = head.look(one.test[one.test_labels == name])
            alone += told_after(DriftWatch(), head, only) is not None
    print(
        f"\ndrift told wrongly: {wrongly} times in {known:,} images; in {alone} of {classes} streams "
        "of one class"
    )
    print(f"{'a stream turns':24}{'told after':>24}")
    chosen = np.random.default_rng(0).permutation(len(sets.test))[:SOME_IMAGES]
    streams = {f"dark, pixels times {factor}": rows for factor, rows in sets.dark.items()} | sets.far
    for name, rows in {**streams, "near": np.zeros(0, np.float32)}.items():
        after = []
        for head, one in zip(heads, draws, strict=True):
            shown = (
                rows[one.tests[chosen]] if name.startswith("dark") else one.near if name == "near" else rows
            )
            order = np.random.default_rng(one.seed).permutation(len(shown))
            after.append(told_after(DriftWatch(), head, head.look(shown[order])))
        found = [count for count in after if count is not None]
        said = f"{np.median(found):.0f} ({min(found)} to {max(found)})" if found else "not"
        less = f"  in {len(found)} of {len(after)} draws" if len(found) < len(after) else ""
        print(f"{name:24}{said:>24}{less}")


def told_after(watch: DriftWatch, head: Head, look: Look) -> int | None:
    """After how many images drift is told, if it is."""
    for place in range(len(look.strangeness)):
        watch.see(head.confidence, Look(*(each[place : place + 1] for each in look)))
        if watch.told:
            return place + 1
    return None


def pictures(out: Path, name: str, sets: Sets, draws: list[Draw], curve: dict[int, list[float]]) -> None:
    """Reliability, calibration error over images learned, and how strange the known and the unknown are."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    head = judging(draws[0], 1000)
    bins = reliability(head, draws[0].test, draws[0].test_labels)
    full, middles = bins.shares > 0, (np.arange(BINS) + 0.5) / BINS
    left.bar(middles[full], bins.is_right[full], width=0.9 / BINS, alpha=0.5, label="right answers")
    left.plot([0, 1], [0, 1], "k--", label="as it says")
    left.set(xlabel="probability", ylabel="share right", title=f"reliability, error {100 * bins.error:.1f} %")
    left.legend()
    for shots, values in curve.items():
        middle.plot((0, 50, 100, 200, 400, 1000), values, marker="o", label=f"{shots} images a class")
    middle.set(xlabel="images judged", ylabel="calibration error, %", xscale="symlog", title="calibration")
    middle.set_xticks([0, 50, 100, 200, 400, 1000], ["0", "50", "", "200", "", "1,000"])
    middle.legend()
    shown = {"known": draws[0].test, "near": draws[0].near, **sets.far}
    strange = {label: head.strangeness(rows) for label, rows in shown.items()}
    low, high = np.percentile(np.concatenate(list(strange.values())), [0.5, 99.8]).tolist()
    edges = np.linspace(low, high, 50).tolist()
    for label, found in strange.items():
        right.hist(found, edges, density=True, histtype="step", label=label)
    right.axvline(head.confidence.threshold(), color="k", linestyle="--", label="threshold, 5 %")
    right.set(xlabel="strangeness", title="known and unknown")
    right.legend()
    figure.savefig(out / f"how_sure {name}.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
