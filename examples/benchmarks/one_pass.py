"""What the adapters cost on the device: latency in onnxruntime, beside the plain backbone.

    python examples/benchmarks/one_pass.py

Three exported graphs of the bundled backbone take turns on the same images: plain, NTK-CL in one
pass (the default), and NTK-CL in its four passes (the hybrid view). Printed are medians, and what
multiple of the plain one they are. What the passes are worth in accuracy, `ablation.py` measures.
"""

import argparse
import tempfile
from pathlib import Path

from graphs import export, measure

from everlearn import NTKCL, Frozen
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


if __name__ == "__main__":
    main()
