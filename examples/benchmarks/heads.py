"""Learning a sample at a time: the heads beside other incremental classifiers, on the same features.

    python examples/benchmarks/heads.py [DATA.npz] [--widths 192 384 768] [--features FILE.npz]

First seconds for a sample, learning only, and learning and predicting in turn, on Gaussian classes
of each width; every classifier gets the same 100 classes and the same samples before the clock starts.
Then accuracy after one pass, sample by sample, and on a fifth of the training images that nothing
learned from: features of the bundled backbone for a data set as ``everlearn train`` takes it.
Last the bytes a head keeps after 1,000 and 10,000 samples.

Times are of the processor, of one thread, so that other programs do not decide; what counts is the
ratios. The others are optional (``pip install avalanche-lib scikit-learn river``): one that is missing
is skipped, and named. Where they need an environment of their own, ``--features`` keeps the backbone's
features in a file, so that the environment that runs the others needs no everlearn but the runtime.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import importlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads import LDA, BalancedRidge, Head, Prototypes, Ridge, WhitenedCosine

CLASSES = 100
Features = NDArray[np.float32]


class Classifier(Protocol):
    """Learns one sample, predicts some."""

    def learn(self, row: Features, label: int) -> None:
        """Learn from features (F,)."""

    def predict(self, rows: Features) -> NDArray[np.int64]:
        """Labels (B,) for features (B, F)."""


class Ours:
    """A head of this project."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def learn(self, row: Features, label: int) -> None:
        """Learn."""
        self.head.update(row[None], [str(label)])

    def predict(self, rows: Features) -> NDArray[np.int64]:
        """Predict."""
        return np.array([int(name) for name in self.head.predict(rows)])


class StreamingLDA:
    """avalanche-lib's ``StreamingLDA``, its ``fit`` and ``predict`` without the training loop."""

    def __init__(self, width: int) -> None:
        import torch

        original = importlib.import_module("avalanche.training.supervised.deep_slda").StreamingLDA
        torch.set_num_threads(1)
        self.tensor = torch.as_tensor
        self.slda = original(
            slda_model=torch.nn.Identity(),
            criterion=torch.nn.CrossEntropyLoss(),
            input_size=width,
            num_classes=CLASSES,
            evaluator=None,
        )

    def learn(self, row: Features, label: int) -> None:
        """Learn."""
        self.slda.fit(self.tensor(row[None]), self.tensor([label]))

    def predict(self, rows: Features) -> NDArray[np.int64]:
        """Predict."""
        scores: NDArray[np.float32] = self.slda.predict(self.tensor(rows)).numpy()
        return np.asarray(scores.argmax(axis=1))


class ScikitLearn:
    """A classifier of scikit-learn with ``partial_fit``."""

    def __init__(self, module: str, name: str, **options: Any) -> None:
        self.model = getattr(importlib.import_module(f"sklearn.{module}"), name)(**options)
        self.classes = np.arange(CLASSES)

    def learn(self, row: Features, label: int) -> None:
        """Learn."""
        self.model.partial_fit(row[None], [label], self.classes)

    def predict(self, rows: Features) -> NDArray[np.int64]:
        """Predict."""
        return np.asarray(self.model.predict(rows))


class River:
    """A classifier of River; a sample is a dict there, and making it counts."""

    def __init__(self, module: str, name: str, **options: Any) -> None:
        self.model = getattr(importlib.import_module(f"river.{module}"), name)(**options)

    def learn(self, row: Features, label: int) -> None:
        """Learn."""
        self.model.learn_one(dict(enumerate(row.tolist())), label)

    def predict(self, rows: Features) -> NDArray[np.int64]:
        """Predict."""
        guesses = [self.model.predict_one(dict(enumerate(row))) for row in rows.tolist()]
        return np.array([-1 if guess is None else guess for guess in guesses])


MAKERS: dict[str, Callable[[int], Classifier]] = {
    "everlearn LDA": lambda width: Ours(LDA()),
    "everlearn WhitenedCosine": lambda width: Ours(WhitenedCosine()),
    "everlearn BalancedRidge": lambda width: Ours(BalancedRidge()),
    "everlearn Ridge(0.01)": lambda width: Ours(Ridge(0.01)),
    "everlearn Prototypes": lambda width: Ours(Prototypes()),
    "avalanche StreamingLDA": StreamingLDA,
    "sklearn SGDClassifier": lambda width: ScikitLearn("linear_model", "SGDClassifier", random_state=0),
    "sklearn PassiveAggressive": lambda width: ScikitLearn(
        "linear_model", "SGDClassifier", loss="hinge", penalty=None, learning_rate="pa1", eta0=1.0
    ),
    "sklearn GaussianNB": lambda width: ScikitLearn("naive_bayes", "GaussianNB"),
    "river GaussianNB": lambda width: River("naive_bayes", "GaussianNB"),
    "river SoftmaxRegression": lambda width: River("linear_model", "SoftmaxRegression"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA.npz", nargs="?", help="training images; default: speed only")
    parser.add_argument("--features", type=Path, metavar="FILE.npz", help="where DATA's features are kept")
    parser.add_argument("--widths", type=int, nargs="*", default=[192, 384, 768])
    parser.add_argument("--samples", type=int, default=1000, help="learned before the clock starts")
    parser.add_argument(
        "--pass", dest="limit", type=int, help="samples of the pass for accuracy; default: all"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each number")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(MAKERS), metavar="NAME")
    arguments = parser.parse_args()
    names = [name for name in MAKERS if name not in arguments.skip and installed(name)]
    if arguments.features and arguments.data and not arguments.features.exists():
        found = backbone_features(arguments.data)
        np.savez(arguments.features, rows=found[0], labels=found[1], probes=found[2], truth=found[3])
    for width in arguments.widths:
        speed(names, width, arguments.samples, arguments.seconds)
    if arguments.features:
        with np.load(arguments.features) as kept:
            parts = [kept[part] for part in ("rows", "labels", "probes", "truth")]
        accuracy(names, parts[0][: arguments.limit], parts[1][: arguments.limit], *parts[2:])
    elif arguments.data:
        rows, labels, probes, truth = backbone_features(arguments.data)
        accuracy(names, rows[: arguments.limit], labels[: arguments.limit], probes, truth)
    memory(arguments.widths)


def installed(name: str) -> bool:
    """Whether a classifier can be made; says so if not."""
    try:
        MAKERS[name](2)
    except (ImportError, RuntimeError) as error:  # the latter by a torchvision of another torch
        print(f"{name}: not installed ({error})")
        return False
    return True


def gaussian_classes(width: int, samples: int) -> tuple[Features, NDArray[np.int64]]:
    """Samples of 100 Gaussian classes; the first hundred are of one class each."""
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(CLASSES), random.integers(CLASSES, size=samples - CLASSES)])
    centres = random.normal(size=(CLASSES, width))
    features = centres[labels] + random.normal(size=(samples, width))
    return features.astype(np.float32), labels


def speed(names: list[str], width: int, before: int, seconds: float) -> None:
    """Print microseconds for a sample, and how many times the first classifier's that is."""
    rows, labels = gaussian_classes(width, before + 4096)
    print(f"\nwidth {width}, {CLASSES} classes, microseconds of processor time for a sample")
    print(f"{'':28}{'learn':>14}{'ratio':>10}{'and predict':>14}{'ratio':>10}")
    first: list[float] = []
    for name in names:
        classifier = MAKERS[name](width)
        for row, label in zip(rows[:before], labels[:before].tolist(), strict=True):
            classifier.learn(row, label)
        later = list(zip(rows[before:], labels[before:].tolist(), strict=True))
        times = [per_sample(classifier, later, seconds, predicts) for predicts in (False, True)]
        first = first or times
        cells = [f"{found:14.1f}{found / ours:10.2f}" for found, ours in zip(times, first, strict=True)]
        print(f"{name:28}" + "".join(cells), flush=True)


def per_sample(
    classifier: Classifier, samples: list[tuple[Features, int]], seconds: float, predicts: bool
) -> float:
    """Microseconds for a sample, the clock read more and more rarely so that reading it does not count."""
    stream, done, size, spent = itertools.cycle(samples), 0, 1, 0.0
    while spent < seconds:
        start = time.process_time()
        for row, label in itertools.islice(stream, size):
            classifier.learn(row, label)
            if predicts:
                classifier.predict(row[None])
        spent += time.process_time() - start
        done += size
        size = min(2 * size, 512)
    return 1e6 * spent / done


def backbone_features(data: str) -> tuple[Features, NDArray[np.int64], Features, NDArray[np.int64]]:
    """Features and labels of four fifths of the training images of 100 classes, and of the rest."""
    from everlearn import Frozen, Learner, npz

    train, _ = npz(data)
    learner = Learner(method=Frozen(), head=Prototypes())
    features = np.asarray(learner.features(train), dtype=np.float32)
    numbers = {name: number for number, name in enumerate(sorted(set(train.labels)))}
    labels = np.array([numbers[name] for name in train.labels])
    order = np.random.default_rng(0).permutation(np.flatnonzero(labels < CLASSES))
    held, kept = np.split(order, [len(order) // 5])
    return features[kept], labels[kept], features[held], labels[held]


def accuracy(
    names: list[str],
    rows: Features,
    labels: NDArray[np.int64],
    probes: Features,
    truth: NDArray[np.int64],
) -> None:
    """Print accuracy on held-out samples after one pass, and seconds of processor time for the pass."""
    print(f"\none pass over {len(rows)} samples of {rows.shape[1]} features, {len(probes)} held out")
    print(f"{'':28}{'accuracy':>12}{'seconds':>10}")
    for name in names:
        classifier = MAKERS[name](rows.shape[1])
        start = time.process_time()
        for row, label in zip(rows, labels.tolist(), strict=True):
            classifier.learn(row, label)
        spent = time.process_time() - start
        right = float((classifier.predict(probes) == truth).mean())
        print(f"{name:28}{right:12.2%}{spent:10.2f}", flush=True)


def memory(widths: list[int]) -> None:
    """Print the bytes that heads keep."""
    print("\nkilobytes kept after 1,000 and 10,000 samples of 100 classes")
    for width in widths:
        rows, labels = gaussian_classes(width, 10_000)
        names = list(map(str, labels))
        for head in (LDA(), Ridge(0.01), Prototypes()):
            sizes = []
            for start in range(0, len(rows), 1000):
                head.update(rows[start : start + 1000], names[start : start + 1000])
                sizes.append(head.nbytes / 1e3)
            print(f"width {width:4} {head.kind:12}{sizes[0]:12,.1f}{sizes[-1]:12,.1f}")


if __name__ == "__main__":
    main()
