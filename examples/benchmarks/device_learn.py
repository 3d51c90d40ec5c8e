"""What learning costs on the device, as a multiple of predicting the same batch.

    python examples/benchmarks/device_learn.py [BUNDLE]

Without a bundle it exports the bundled backbone with an LDA of 100 classes, learned from noise. Both are
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
            print(f"{'batch':>5} {'predict':>12} {'learn':>12} {'learn / predict':>16} {'then predict':>14}")
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
    """Print median milliseconds of predicting and of learning one batch, and their ratio.

    The last column is the first prediction after an update, which solves the head anew.
    """
    spec = edge.bundle.manifest.input
    images = np.random.default_rng(0).integers(0, 256, (batch, *spec.shape), dtype=np.uint8)
    labels = list(edge.classes[:batch])
    steps: list[tuple[str, Callable[[], object]]] = [
        ("predict", lambda: edge.predict(images)),
        ("learn", lambda: edge.learn(images, labels)),
        ("then predict", lambda: edge.predict(images)),
    ]
    times: dict[str, list[float]] = {name: [] for name, _ in steps}
    edge.predict(images)  # the first call of all warms up, and solves the head
    for _ in range(rounds):
        for name, step in steps:
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    predict, learn, then = (float(np.median(times[name])) for name, _ in steps)
    print(f"{batch:5} {predict:9.2f} ms {learn:9.2f} ms {learn / predict:16.3f} {then:11.2f} ms")


if __name__ == "__main__":
    main()
