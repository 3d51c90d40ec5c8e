"""What a device has learned, after its model was replaced: carried over, forgotten, or learned anew.

    python examples/benchmarks/migrate.py [--seeds 3] [--shots 20]

A bundle of `Frozen(patches=True)` knows six of scikit-learn's digits; the device learns the other four
from a few images each. The bundle that replaces it is NTK-CL's, trained on the same six, with the map
fitted on up to 512 of their training images: none of the four is among them. Figures are the
accuracy on test images in percent, mean and standard deviation over seeds, which set the classes.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from everlearn import LDA, NTKCL, Frozen, Images, Learner, Method, Ridge, digits
from everlearn_runtime import EdgeLearner, Head

HEADS = {"LDA": LDA, "Ridge": Ridge}
COLUMNS = ("taught", "known", "all")
KNOWN = 6


def answers(edge: EdgeLearner, images: Images) -> list[str]:
    """What a device says of images."""
    return edge.predict([image for image, _ in images]).labels


def accuracy(found: list[str], images: Images, taught: list[str]) -> list[float]:
    """Share of right answers on the classes the device was taught, the others, and all."""
    right = np.array([a == b for a, b in zip(found, images.labels, strict=True)])
    own = np.isin(images.labels, taught)
    return [100 * float(right[own].mean()), 100 * float(right[~own].mean()), 100 * float(right.mean())]


def fit(method: Method, head: Head, images: Images, seed: int) -> Learner:
    """A learner that knows these images."""
    return Learner(method=method, head=head, seed=seed, device="cpu", progress=False).fit(images)


def once(name: str, seed: int, shots: int, folder: Path) -> tuple[dict[str, list[float]], list[float]]:
    """The rows of one seed, and how good the map was: share of variance, agreement.

    Last of these, the share of test images that are named alike carried over and learned anew.
    """
    train, test = digits()
    order = [str(label) for label in np.random.default_rng(seed).permutation(train.classes)]
    known, taught = order[:KNOWN], order[KNOWN:]
    own = train.of_classes(known)
    test = test.subset(range(0, len(test), 2))
    lessons = []
    for label in taught:
        every = train.of_classes([label])
        lessons.append([every[i][0] for i in range(min(shots, len(every)))])

    def learn(edge: EdgeLearner) -> None:
        for label, images in zip(taught, lessons, strict=True):
            edge.learn(images, [label] * len(images))

    state = folder / "device.db"
    fit(Frozen(patches=True), HEADS[name](), own, seed).export(folder / "old")
    new = fit(NTKCL(), HEADS[name](), own, seed)
    new.export(folder / "new", images=own, replaces=folder / "old")
    rows = {}
    with EdgeLearner.open(folder / "old", state=state) as edge:
        learn(edge)
        rows["before the move"] = accuracy(answers(edge, test), test, taught)
    with EdgeLearner.open(folder / "new", state=state, migrate=True) as edge:
        assert edge.migrated is not None
        assert edge.migrated.agreement is not None
        carried = answers(edge, test)
        rows["carried over"] = accuracy(carried, test, taught)
        quality = [edge.migrated.explained, edge.migrated.agreement]
    with EdgeLearner.open(folder / "new") as edge:
        rows["forgotten"] = accuracy(answers(edge, test), test, taught)
        learn(edge)
        anew = answers(edge, test)
        rows["learned anew"] = accuracy(anew, test, taught)
    quality.append(float(np.mean([one == other for one, other in zip(carried, anew, strict=True)])))
    return rows, quality


def main() -> None:
    """Print a table for each head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, default=20, help="images of each class that the device learns")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    arguments = parser.parse_args()
    for name in arguments.heads:
        every, qualities = [], []
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                rows, quality = once(name, seed, arguments.shots, Path(folder))
            every.append(rows)
            qualities.append(quality)
        explained, agreement, alike = np.mean(qualities, axis=0)
        print(f"\n{name}: the map explains {explained:.3f} of the variance, {agreement:.3f} of classes agree")
        print(f"carried over and learned anew name {100 * alike:.1f} % of test images alike")
        print(f"{'':16}" + "".join(f"{column:>14}" for column in COLUMNS))
        for row in every[0]:
            values = np.array([rows[row] for rows in every])
            cells = [
                f"{m:.1f} ± {s:.1f}" for m, s in zip(values.mean(axis=0), values.std(axis=0), strict=True)
            ]
            print(f"{row:16}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
