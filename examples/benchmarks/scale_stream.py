"""What a stream's bookkeeping costs, as ratios in one run: 100 tasks against their images.

python examples/benchmarks/scale_stream.py
"""

import time
from collections.abc import Sequence

import numpy as np

from everlearn import ClassIncremental, arrays
from everlearn.evaluation.metrics import accuracy
from everlearn_runtime.heads import Prototypes

WIDTH = 16


def stream_table(tasks: Sequence[int] = (25, 50, 100), images: int = 100_000) -> str:
    """A stream evaluated after each task, against the sum of the images looked at: linear.

    Every task is learned by a head, and then all classes so far are predicted. Features are
    random numbers at hand, and the head's own time, which grows with the classes, is counted apart:
    what is left is finding the tasks' images, their labels and their features. That has to cost as
    much for an image in a stream of 100 tasks as in one of 25.
    """
    lines = ["tasks    images looked at    microseconds an image    to the first    share of the whole"]
    first = None
    for count in tasks:
        seen, whole, head = _stream_seconds(count, images)
        each = 1e6 * (whole - head) / seen
        first = first or each
        lines.append(f"{count:5}{seen:20,}{each:25.2f}{each / first:16.2f}{1 - head / whole:22.2f}")
    return "\n".join(lines)


def _stream_seconds(tasks: int, images: int) -> tuple[int, float, float]:
    """Images looked at, seconds of the stream, and those of them that the head took."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(images) % tasks)
    features = rng.normal(size=(images, WIDTH)).astype(np.float32)
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


if __name__ == "__main__":
    print(stream_table())
