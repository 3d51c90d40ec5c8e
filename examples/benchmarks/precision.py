"""What a graph of 16 or 8 bits costs in accuracy, and saves in time and bytes, on this CPU.

    python examples/benchmarks/precision.py data/tiny_imagenet_b.npz --out runs/precision [--methods Frozen]

Every method learns the stream of ten tasks; after each it is exported in every precision, and the test images
seen so far go through the bundle's own graph and head, as on a device. Time is that of one graph over the
32-bit one's, run in turn, one thread.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from measure import parser
from numpy.typing import NDArray

from everlearn import NTKCL, Frozen, Learner, Method, npz
from everlearn.bench import bench
from everlearn.tables import aligned

PRECISIONS = ("fp32", "fp16", "int8")
METHODS: dict[str, Callable[[], Method]] = {"Frozen": lambda: Frozen(patches=True), "NTKCL": NTKCL}


class Timer:
    """One graph on one thread, and how long its calls have taken."""

    def __init__(self, graph: Path, images: NDArray[np.uint8]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.feed = {self.session.get_inputs()[0].name: images}
        self.session.run(None, self.feed)
        self.seconds: list[float] = []

    def run(self) -> None:
        """Call it once more."""
        start = time.perf_counter()
        self.session.run(None, self.feed)
        self.seconds.append(time.perf_counter() - start)


def speed(learner: Learner, folder: Path, rounds: int = 60) -> str:
    """A table of milliseconds, ratios and bytes of the learner's graphs."""
    rows = [["graph", "MB", "ms, batch 1", "times faster", "ms, batch 16", "times faster"]]
    graphs = {}
    for precision in PRECISIONS:
        learner.export(folder / precision, precision=precision, overwrite=True)
        graphs[precision] = folder / precision / "features.onnx"
    random = np.random.default_rng(0)
    cells: dict[str, list[str]] = {name: [] for name in graphs}
    for batch in (1, 16):
        images = random.integers(0, 256, (batch, *learner.backbone.input.shape), dtype=np.uint8)
        timers = {name: Timer(graph, images) for name, graph in graphs.items()}
        for _ in range(rounds):
            for timer in timers.values():
                timer.run()
        for name, timer in timers.items():
            ratio = np.median(np.array(timers["fp32"].seconds) / np.array(timer.seconds))
            cells[name] += [f"{1e3 * np.median(timer.seconds):.2f}", f"{ratio:.2f}"]
    rows += [[name, f"{graph.stat().st_size / 1e6:.1f}", *cells[name]] for name, graph in graphs.items()]
    return aligned(rows, left=[0])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=list(METHODS), default=["Frozen"])
    arguments = options.parse_args()
    train, test = npz(arguments.data)
    found = bench(
        train,
        test,
        arguments.out,
        classes_per_task=10,
        methods={name: METHODS[name] for name in arguments.methods},
        seeds=arguments.seeds,
        exported=PRECISIONS,
        precision=arguments.precision,
        say=print,
    )
    print(found.table())
    learner = Learner(method=Frozen(patches=True), progress=False).fit(train.subset(range(0, len(train), 50)))
    print(speed(learner, arguments.out / "speed"))


if __name__ == "__main__":
    main()
