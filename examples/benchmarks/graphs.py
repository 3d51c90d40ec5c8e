"""What the benchmarks of exported graphs share: how one is made, and how several are timed in turn."""

import statistics
import time
from pathlib import Path

import numpy as np

from everlearn import Learner, Method
from everlearn_runtime import OnnxRuntime


def export(method: Method, path: Path) -> Path:
    """The features' graph of a method on the bundled backbone, whose head has seen noise."""
    learner = Learner(method=method)
    width = sum(method.sections)
    learner.head.update(np.random.default_rng(0).normal(size=(20, width)), list("ab") * 10)
    learner.export(path)
    return path / "features.onnx"


def measure(graphs: dict[str, OnnxRuntime], batch: int, rounds: int) -> dict[str, float]:
    """Median seconds a batch of 64-pixel images, the graphs in turn, each time in another order."""
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(rounds + 5):
        images = random.integers(0, 256, size=(batch, 64, 64, 3), dtype=np.uint8)
        for name in random.permutation(list(graphs)):
            start = time.perf_counter()
            graphs[name].run(images)
            if turn >= 5:  # the first ones set up memory
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
