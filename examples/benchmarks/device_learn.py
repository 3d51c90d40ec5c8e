"""What learning costs on the device, as a multiple of predicting the same batch.

    python examples/benchmarks/device_learn.py [BUNDLE]

Without a bundle it exports the bundled backbone with 100 classes of random prototypes. Both are
measured in turn, batch by batch, in one process; the ratio is of their medians, so that a busy
machine slows both alike. The state file is on, as on a device.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from everlearn import LDA, Frozen, Learner
from everlearn_runtime import EdgeLearner


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else make_bundle(Path(folder) / "bundle")
        with EdgeLearner.open(bundle, state=Path(folder) / "device.db") as edge:
            print(f"{'batch':>5} {'predict':>10} {'learn':>10} {'learn / predict':>16}")
            for batch in (1, 16, 32):
                measure(edge, batch)


def make_bundle(path: Path) -> Path:
    """Export the bundled backbone with an LDA head of 100 classes, learned from noise."""
    learner = Learner(method=Frozen(), head=LDA())
    names = [f"class {i % 100}" for i in range(400)]
    learner.head.update(np.random.default_rng(0).normal(size=(400, learner.backbone.width)), names)
    learner.export(path)
    return path


def measure(edge: EdgeLearner, batch: int, rounds: int = 60) -> None:
    """Print median seconds of predicting and of learning one batch, and their ratio."""
    spec = edge.bundle.manifest.input
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8)
    labels = list(edge.classes[:batch])

    def predict() -> None:
        edge.predict(images)

    def learn() -> None:
        edge.learn(images, labels)

    predict()  # warm up
    learn()
    spent: dict[Callable[[], None], list[float]] = {predict: [], learn: []}
    for _ in range(rounds):
        # The head is solved at the first prediction after an update: not counted, see the note below.
        edge.predict(images)
        for call, times in spent.items():
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    asking, learning = (float(np.median(times)) for times in spent.values())
    print(f"{batch:5} {1e3 * asking:7.2f} ms {1e3 * learning:7.2f} ms {learning / asking:16.3f}")


if __name__ == "__main__":
    main()
