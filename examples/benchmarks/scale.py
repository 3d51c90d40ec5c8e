"""What many classes, much data and many callers cost, as ratios within one run.

    python examples/benchmarks/scale.py [TABLE ...]

`classes`: thousands of classes that arrive one at a time, two single samples each, against one batch
of the same samples, for every head; and the same classes forgotten one at a time, against the batch.
How far from 1 the ratio may be is set by the price of a call, some 5 microseconds, against what
learning a sample costs: with few features there is nothing left that a batch could share. For
`Linear` a batch is no measure of one-by-one: each of its gradient steps goes through all classes for
all samples, and each update has 20 of them, whatever it holds.

`stream`: a stream of tasks that is evaluated after each, against the sum of the images looked at.
Features are random numbers at hand, and the head's own time, which grows with the classes, is taken
out: what is left is finding the tasks' images, their labels and their features. That has to cost as
much for an image in a stream of 100 tasks as in one of 25.

`beside`: predicting one image while another thread learns batches of 64, against predicting alone,
in milliseconds of the clock: with as many threads as there are cores, and with one.

`memory`: the most memory in use during one update, of a ridge that holds out against a plain one.

Times are of the processor, of one thread where the environment says so (OPENBLAS_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import device_learn
import numpy as np
from numpy.typing import NDArray

from everlearn import ClassIncremental, arrays
from everlearn.evaluation.metrics import accuracy
from everlearn_runtime.heads import (
    LDA,
    Aggregate,
    EvidenceLDA,
    FeCAM,
    Head,
    HeldOutRidge,
    Linear,
    Prototypes,
    Ridge,
    StreamingLDA,
)

Features = NDArray[np.float32]


def halves(width: int) -> Head:
    """Two heads, each on half the features."""
    return Aggregate([width // 2, width - width // 2], [LDA(), Ridge(0.01)])


# What makes each head for a width, and the parts of --width and --classes that it is asked for:
# FeCAM keeps a matrix for each class, and a batch of Linear takes samples times classes.
HEADS: dict[str, tuple[Callable[[int], Head], float, float]] = {
    "Prototypes": (lambda width: Prototypes(), 1, 1),
    "LDA": (lambda width: LDA(), 1, 1),
    "EvidenceLDA": (lambda width: EvidenceLDA(tasks=10), 1, 1),
    "StreamingLDA": (lambda width: StreamingLDA(), 1, 1),
    "StreamingLDA, fixed": (lambda width: StreamingLDA(covariance="fixed"), 1, 1),
    "Ridge": (lambda width: Ridge(), 1, 1),
    "Ridge, projected": (lambda width: Ridge(projection=2 * width), 1, 1),
    "HeldOutRidge": (lambda width: HeldOutRidge(), 1, 1),
    "FeCAM": (lambda width: FeCAM(), 1 / 24, 1),
    "Aggregate": (halves, 1, 1),
    "Linear": (lambda width: Linear(), 1 / 4, 1 / 5),
}


def classes(arguments: argparse.Namespace) -> None:
    """Print, for each head, classes one by one against all of them at once."""
    print("\nclasses that come one at a time, two samples each, against one batch; processor time")
    print(f"{'':22}{'width':>7}{'classes':>9}{'batch, s':>10}{'one by one':>12}{'forgotten':>12}")
    for name, (make, of_width, of_classes) in HEADS.items():
        if arguments.heads and name not in arguments.heads:
            continue
        width, many = int(of_width * arguments.width), int(of_classes * arguments.classes)
        rows = np.random.default_rng(0).normal(size=(2 * many, width)).astype(np.float32)
        labels = [f"class {number // 2}" for number in range(2 * many)]
        batch, single, gone = (
            min(times)
            for times in zip(
                *(one_and_all(make, width, rows, labels) for _ in range(arguments.repeats)), strict=True
            )
        )
        ratios = f"{single / batch:12.2f}{gone / batch:12.2f}"
        print(f"{name:22}{width:7}{many:9,}{batch:10.2f}{ratios}", flush=True)


def one_and_all(
    make: Callable[[int], Head], width: int, rows: Features, labels: list[str]
) -> tuple[float, float, float]:
    """Seconds to learn all at once, to learn one by one, and to forget one by one."""
    head = make(width)
    start = time.process_time()
    head.update(rows, labels)
    batch = time.process_time() - start
    head = make(width)
    start = time.process_time()
    for number, label in enumerate(labels):
        head.update(rows[number : number + 1], [label])
    learned = head.counts  # with all that waits worked in
    single = time.process_time() - start
    if len(learned) * 2 != len(labels):
        raise RuntimeError(f"{len(learned)} classes of {len(labels)} samples")
    start = time.process_time()
    for label in labels[::2]:
        head.remove(label)
    return batch, single, time.process_time() - start


def stream(arguments: argparse.Namespace) -> None:
    """Print, for streams of more and more tasks, what an image looked at costs."""
    print("\na stream of tasks evaluated after each, less the head's own time")
    print(f"{'tasks':>5}{'images looked at':>20}{'microseconds an image':>25}{'to the first':>16}")
    first = None
    for tasks in (25, 50, 100):
        seen, whole, head = stream_seconds(tasks, 100_000)
        each = 1e6 * (whole - head) / seen
        first = first or each
        print(f"{tasks:5}{seen:20,}{each:25.2f}{each / first:16.2f}", flush=True)


def stream_seconds(tasks: int, images: int) -> tuple[int, float, float]:
    """Images looked at, seconds of the stream, and those of them that the head took."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(images) % tasks)
    features = rng.normal(size=(images, 16)).astype(np.float32)
    start = time.perf_counter()
    train, test = arrays(np.zeros((images, 1, 1), np.uint8), labels).split(0.5, seed=0)
    head, seen, alone = Prototypes(), 0, 0.0

    for task in ClassIncremental(train, test, classes_per_task=1, seed=1993):
        rows, names = features[task.train.positions_in(train)], task.train.labels
        began = time.perf_counter()
        head.update(rows, names)
        alone += time.perf_counter() - began
        so_far = task.test_so_far
        rows = features[so_far.positions_in(test)]
        began = time.perf_counter()
        predicted = head.predict(rows)
        alone += time.perf_counter() - began
        accuracy(predicted, so_far.labels)
        seen += len(task.train) + len(so_far)
    return seen, time.perf_counter() - start, alone


def memory(arguments: argparse.Namespace) -> None:
    """Print the most memory in use during one update."""
    print("\nmemory at most, MB, during one update of 20,000 samples of 384 features, projected to 2,000")
    print(f"{'':22}{'arrays':>10}{'ratio':>8}{'process':>10}{'ratio':>8}")
    first: list[float] = []
    for kind in (Ridge, HeldOutRidge):
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process knows its highest mark only
            process = pool.apply(peak, (kind, False))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = [pool.apply(peak, (kind, True)), process]
        first = first or found
        cells = [f"{mine:10.0f}{mine / plain:8.2f}" for mine, plain in zip(found, first, strict=True)]
        print(f"{kind.__name__:22}" + "".join(cells), flush=True)


def peak(kind: Callable[..., Head], traced: bool) -> float:
    """MB of arrays during the update, or of the process until its end."""
    rows = np.random.default_rng(0).standard_normal(size=(20_000, 384), dtype=np.float32)
    labels = [str(number % 100) for number in range(len(rows))]
    head = kind(projection=2000)
    if traced:
        tracemalloc.start()
        head.update(rows, labels)
        return tracemalloc.get_traced_memory()[1] / 1e6
    head.update(rows, labels)
    return highest() / 1e6


def highest() -> float:
    """The most bytes that this process has had in memory."""
    status = Path("/proc/self/status")
    if status.exists():  # a new process on Linux has `ru_maxrss` from the one that started it
        return 1024.0 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def beside(arguments: argparse.Namespace) -> None:
    """Print what predicting costs beside a thread that learns, against alone."""
    with tempfile.TemporaryDirectory() as name:
        device_learn.beside(device_learn.make_bundle(Path(name) / "bundle"), Path(name))


TABLES: dict[str, Callable[[argparse.Namespace], Any]] = {
    "classes": classes,
    "stream": stream,
    "beside": beside,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; default: all")
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", nargs="*", choices=list(HEADS), metavar="NAME", help="default: all")
    parser.add_argument("--repeats", type=int, default=2, help="the least time of so many counts")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    for name in arguments.tables or TABLES:
        TABLES[name](arguments)


if __name__ == "__main__":
    main()
