"""What noise on deltas costs: accuracy of the merged head over epsilon.

    python examples/benchmarks/fleet_noise.py DATA.npz [--features FILE.npz] [--devices 10]
        [--epsilon 2 4 8 16]

It needs: pip install "everlearn[cpu,train,privacy]"

On CLS and mean patch of the bundled backbone, frozen. The bundle knows half of the classes, by all their
training images; of the others each device has an equal part of the images, and hands in what it has learned
of them with noise of that epsilon for ``--target-delta``. Accuracy on the test images of all classes, and of
those that only devices have seen: mean and standard deviation over the seeds, which say which classes these
are, who has which image, and the noise (for devices there is no seed).

The three ways of handing in are: class means, with noise that follows the bundle's covariance, which is what
everlearn does; the same with noise that is alike in all directions; and class means with the sum of products,
alike in all directions, from which the covariance within classes follows. The last is one Gaussian mechanism
on both, each over its bound, with three quarters of the squared sensitivity for the means: products of rows
no longer than c move by at most c^2 (Dwork, Talwar, Thakurta and Zhang 2014, "Analyze Gauss", algorithm 1),
and what noise makes negative is set to zero after all are added up.

Each time the clip is chosen among eight on a quarter of the training images, which then nobody learns from;
it is told as a share of the root mean square of what the bundle's own images have for a length.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from few_images import Array, Split, features, held_out
from numpy.typing import NDArray

from everlearn_runtime import LDA, GaussianNoise, Head, HeadState, Prototypes, WhitenedCosine, from_state
from everlearn_runtime.fleet.noise import add_means, clipped, metric, noisy_means
from everlearn_runtime.heads.gram import GramSum

HEADS: dict[str, Callable[[], Head]] = {"LDA, auto": lambda: LDA("auto"), "WhitenedCosine": WhitenedCosine}
CLIPS = (0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4)
MEANS = 0.75  # of the squared sensitivity, where products are handed in, too


class Case(NamedTuple):
    """A bundle's head, and what devices have: features of each class."""

    base: Head
    known: Array
    devices: list[dict[str, Array]]
    draw: Callable[[int], Array]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA.npz", help="as `everlearn train` takes it; or: digits")
    parser.add_argument("--features", type=Path, metavar="FILE.npz", help="where its features are kept")
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[2.0, 4.0, 8.0, 16.0])
    parser.add_argument("--target-delta", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    handed_in = ways(arguments.epsilon, arguments.target_delta)
    split = features(arguments.data, arguments.features, None)
    print(f"{'head':16} {'handed in':34} {'epsilon':>7} {'noise':>6} {'clip':>5} {'all':>13} {'new':>13}")
    for name, make in HEADS.items():
        for way, epsilon, multiplier, hand_in in handed_in:
            clip = choose(hand_in, make, held_out(split, 0), arguments.devices) if epsilon else 0.0
            found = [
                measure(hand_in, clip, make, split, arguments.devices, seed)
                for seed in range(arguments.seeds)
            ]
            both = "".join(
                f" {100 * np.mean(one):6.1f} +- {100 * np.std(one):3.1f}" for one in zip(*found, strict=True)
            )
            said = f"{epsilon:7g} {multiplier:6.2f} {clip:5.2f}" if epsilon else f"{'':20}"
            print(f"{name:16} {way:34} {said}{both}", flush=True)


HandIn = Callable[[Case, float], Head]


def ways(epsilons: list[float], target: float) -> list[tuple[str, float, float, HandIn]]:
    """What is handed in, with its epsilon (0: no noise) and noise multiplier, and who merges it."""
    found: list[tuple[str, float, float, HandIn]] = [
        ("all sums, no noise", 0, 0, exact),
        ("class means, no noise", 0, 0, lambda case, _: means(case, None)),
        ("nothing", 0, 0, lambda case, _: case.base),
    ]
    for epsilon in epsilons:
        multiplier = multiplier_of(epsilon, target)

        def own(case: Case, clip: float, multiplier: float = multiplier) -> Head:
            length = np.sqrt(((case.known @ metric(case.base)[0]) ** 2).sum(axis=1).mean())
            return means(case, GaussianNoise(multiplier, clip * length))

        def alike(case: Case, clip: float, multiplier: float = multiplier) -> Head:
            return means_alike(case, multiplier, clip)

        def products(case: Case, clip: float, multiplier: float = multiplier) -> Head:
            return with_products(case, multiplier, clip)

        found.append(("class means, as the covariance", epsilon, multiplier, own))
        found.append(("class means, alike", epsilon, multiplier, alike))
        found.append(("class means and products, alike", epsilon, multiplier, products))
    return found


def multiplier_of(epsilon: float, target: float) -> float:
    """The noise multiplier that gives it, by bisection."""
    low, high = 1e-2, 1e3
    while high / low > 1 + 1e-6:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if GaussianNoise(middle, 1.0, target).epsilon <= epsilon else (middle, high)
    return high


def choose(hand_in: HandIn, make: Callable[[], Head], split: Split, devices: int) -> float:
    """The clip with the best accuracy over all classes, on images that nobody learns from."""
    scores = [measure(hand_in, clip, make, split, devices, 100)[0] for clip in CLIPS]
    return CLIPS[int(np.argmax(scores))]


def measure(
    hand_in: HandIn, clip: float, make: Callable[[], Head], split: Split, devices: int, seed: int
) -> tuple[float, float]:
    """Accuracy over all classes, and over those that only the devices have seen."""
    generator = np.random.default_rng(seed)
    classes = generator.permutation(int(split.labels.max()) + 1)
    new = classes[len(classes) // 2 :]
    is_new = np.isin(split.labels, new)
    base = make()
    base.update(split.rows[~is_new], names(split.labels[~is_new]))
    owner = generator.permutation(np.arange(len(split.labels)) % devices)
    own = [
        {name: split.rows[who & (split.labels == int(name))] for name in names(np.unique(split.labels[who]))}
        for who in (is_new & (owner == device) for device in range(devices))
    ]
    known = split.rows[~is_new] - base.prototypes.mean(axis=0)
    head = hand_in(Case(base, known, own, generator.standard_normal), clip)
    right = np.array(names(split.truth)) == np.array(head.predict(split.probes))
    return float(right.mean()), float(right[np.isin(split.truth, new)].mean())


def names(labels: NDArray[np.int64]) -> list[str]:
    return [str(label) for label in labels.tolist()]


def exact(case: Case, _: float) -> Head:
    """All sums, without noise."""
    for device in case.devices:
        for name, rows in device.items():
            case.base.update(rows, [name] * len(rows))
    return case.base


def means(case: Case, noise: GaussianNoise | None) -> Head:
    """Class means, as everlearn merges them."""
    total = Prototypes()
    for device in case.devices:
        if noise is None:
            for name, rows in device.items():
                total.update(rows, [name] * len(rows))
        else:
            total.merge(from_state(noisy_means(device, noise, case.base, case.draw)))
    return add_means(case.base, total)


def means_alike(case: Case, multiplier: float, clip: float) -> Head:
    """Class means, with noise that is alike in all directions."""
    total, _, _ = alike(case, multiplier, clip, 1.0)
    return add_means(case.base, total)


def with_products(case: Case, multiplier: float, clip: float) -> Head:
    """Class means and the sum of products; what the scatter is follows when all are added up."""
    total, products, centre = alike(case, multiplier, clip, MEANS)
    gaps = total.prototypes - centre
    scatter = products - (total.counts[:, None] * gaps).T @ gaps
    known, state = case.base.state(), add_means(case.base, total).state()
    scatter += GramSum.from_packed(known.arrays["scatter"], len(scatter)).value()
    values, vectors = np.linalg.eigh(scatter)
    whole = GramSum(len(scatter))
    whole.add((vectors * np.sqrt(np.maximum(values, 0))).T)
    arrays = {**state.arrays, "scatter": whole.packed()}
    return from_state(HeadState(state.kind, state.classes, state.options, arrays))


def alike(case: Case, multiplier: float, clip: float, share: float) -> tuple[Head, Array, Array]:
    """`Prototypes` of all devices, the sum of products around the centre, and the centre.

    ``share``: of the squared sensitivity that is the means'.
    """
    centre = case.base.prototypes.mean(axis=0)
    length = clip * float(np.sqrt((case.known**2).sum(axis=1).mean()))
    total, width = Prototypes(), len(centre)
    products = np.zeros((width, width))
    for device in case.devices:
        rows = {name: clipped(own - centre, length) for name, own in device.items()}
        counts = np.array([len(own) for own in rows.values()], dtype=np.int64)
        sums = np.stack([own.sum(axis=0) for own in rows.values()])
        sums += multiplier * length / np.sqrt(share) * case.draw(sums.size).reshape(sums.shape)
        arrays = {"counts": counts, "means": centre + sums / counts[:, None]}
        total.merge(from_state(HeadState(Prototypes.kind, tuple(rows), Prototypes().options, arrays)))
        if share < 1:
            everything = np.concatenate(list(rows.values()))
            upper = np.triu(case.draw(width * width).reshape(width, width))
            products += everything.T @ everything
            products += multiplier * length**2 / np.sqrt(1 - share) * (upper + np.triu(upper, 1).T)
    return total, products, centre


if __name__ == "__main__":
    main()
