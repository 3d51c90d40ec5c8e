"""Features of several depths: accuracy, the head's bytes and the graph's latency of sets of them.

    python examples/benchmarks/depths.py DATA [--test] [--rounds 100]

DATA is a data set as ``everlearn train`` takes it. First the exported graphs of the bundled backbone
take turns on the same images, with onnxruntime: medians as multiples of the plain backbone's. Then LDA and
whitened cosine learn from three quarters of the training images and name the rest, three splits: mean and
standard deviation, beside the bytes that either keeps, as 32-bit numbers. With ``--test`` they learn from all
of them and name the test images too; do so once, when the set is chosen.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from graphs import export, measure

from everlearn import Frozen, Images, Learner
from everlearn.data import load
from everlearn_runtime.backends import OnnxRuntime
from everlearn_runtime.heads import LDA, Head, WhitenedCosine

HEADS: dict[str, Callable[[], Head]] = {"LDA": LDA, "whitened cosine": WhitenedCosine}
ALL = ["mean", "std", "mean@9", "mean@8", "mean@7", "mean@6", "cls@9", "cls@8"]
SETS = {
    "cls alone": [],
    "patches": ["mean"],
    "and std": ["mean", "std"],
    "and block 9": ["mean", "std", "mean@9"],
    "auto": ["mean", "std", "mean@9", "mean@7"],
    "8, CLS too": ["mean", "cls@8", "mean@8"],
    "std, 8, CLS too": ["mean", "std", "cls@8", "mean@8"],
    "three blocks": ["mean", "std", "mean@9", "mean@8", "mean@6"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--test", action="store_true", help="name the test images, too")
    parser.add_argument("--rounds", type=int, default=100, help="of the latency; default %(default)s")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    ratios = latencies(arguments.batches, arguments.rounds)
    train, test = load(arguments.data)
    learner = Learner(method=Frozen(depths=ALL))
    columns = {name: place for place, name in enumerate(["", *ALL])}
    features = [parts(learner, images) for images in (train, test)]
    heading = [f"batch {batch}" for batch in arguments.batches]
    print(f"{'':>16}{'width':>7}{'MB':>7}" + "".join(f"{one:>10}" for one in heading), end="")
    for kind in HEADS:
        print(f"{kind + ', held out':>26}" + (f"{'test':>8}" if arguments.test else ""), end="")
    print(flush=True)
    labels = np.array(train.labels)
    for name, depths in SETS.items():
        seen, unseen = (
            part[:, [columns[one] for one in ["", *depths]]].reshape(len(part), -1) for part in features
        )
        width = seen.shape[1]
        size = 4e-6 * (width * (width + 1) / 2 + (width + 1) * len(set(train.labels)))
        cells = "".join(f"{'x ' + format(ratio, '.3f'):>10}" for ratio in ratios[name])
        print(f"{name:>16}{width:>7}{size:>7.2f}{cells}", end="")
        for new in HEADS.values():
            found = [held_out(new(), seen, labels, seed) for seed in range(3)]
            print(f"{np.mean(found):>19.2f} ± {np.std(found, ddof=1):4.2f}", end="")
            if arguments.test:
                head = new()
                head.update(seen, list(labels))
                print(f"{accuracy(head, unseen, test.labels):>8.2f}", end="")
        print(flush=True)


def parts(learner: Learner, images: Images) -> np.ndarray:
    """All parts of each image, float32 (N, parts, d)."""
    features = learner.features(images)
    return features.reshape(len(features), len(learner.method.sections), -1)


def held_out(head: Head, features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Accuracy in percent on a quarter of each class's images, by a head that learns the rest."""
    random = np.random.default_rng(seed)
    out = np.zeros(len(labels), bool)
    for name in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == name))
        out[places[: len(places) // 4]] = True
    head.update(features[~out], list(labels[~out]))
    return accuracy(head, features[out], list(labels[out]))


def accuracy(head: Head, features: np.ndarray, labels: Sequence[str]) -> float:
    """Percent of these images that are named right."""
    return 100 * float(np.mean(np.array(head.predict(features)) == np.array(labels)))


def latencies(batches: list[int], rounds: int) -> dict[str, list[float]]:
    """Medians of each set's graph at each batch, as multiples of the plain backbone's."""
    with tempfile.TemporaryDirectory() as folder:
        graphs = {
            name: OnnxRuntime(export(Frozen(depths=depths), Path(folder) / str(number)), threads=1)
            for number, (name, depths) in enumerate(SETS.items())
        }
        medians = [measure(graphs, batch, rounds) for batch in batches]
        for graph in graphs.values():
            graph.close()
    return {name: [one[name] / one["cls alone"] for one in medians] for name in SETS}


if __name__ == "__main__":
    main()
