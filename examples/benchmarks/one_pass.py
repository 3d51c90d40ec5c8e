"""What the adapters cost on the device: latency in onnxruntime, beside the plain backbone.

    python examples/benchmarks/one_pass.py

Three exported graphs of the bundled backbone take turns on the same images: plain, NTK-CL in one
pass (the default), and NTK-CL in its four passes (the hybrid view). Printed are medians, and what
multiple of the plain one they are. What the passes are worth in accuracy, `ablation.py` measures.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from everlearn import NTKCL, Frozen, Learner, Method
from everlearn_runtime.backends import OnnxRuntime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default %(default)s")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    methods = {"plain": Frozen(), "one pass": NTKCL(), "four passes": NTKCL(view="hybrid")}
    with tempfile.TemporaryDirectory() as folder:
        graphs = {
            name: OnnxRuntime(export(method, Path(folder) / name), threads=arguments.threads)
            for name, method in methods.items()
        }
        print(f"{'batch':>5}" + "".join(f"{name:>24}" for name in graphs))
        for batch in arguments.batches:
            medians = measure(graphs, batch, arguments.rounds)
            cells = [f"{1000 * s:.2f} ms, x {s / medians['plain']:.3f}" for s in medians.values()]
            print(f"{batch:>5}" + "".join(f"{cell:>24}" for cell in cells))
        for graph in graphs.values():
            graph.close()


def export(method: Method, path: Path) -> Path:
    """The features' graph of a method whose head has seen noise."""
    learner = Learner(method=method)
    width = sum(method.sections)
    learner.head.update(np.random.default_rng(0).normal(size=(20, width)), list("ab") * 10)
    learner.export(path)
    return path / "features.onnx"


def measure(graphs: dict[str, OnnxRuntime], batch: int, rounds: int) -> dict[str, float]:
    """Median seconds a batch, the graphs in turn."""
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(rounds + 5):
        images = random.integers(0, 256, size=(batch, 64, 64, 3), dtype=np.uint8)
        for name, graph in graphs.items():
            start = time.perf_counter()
            graph.run(images)
            if turn >= 5:  # the first ones set up memory
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


if __name__ == "__main__":
    main()
