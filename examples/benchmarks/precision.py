"""What a graph of 16 or 8 bits costs in accuracy, and saves in time and bytes, on this CPU.

    python examples/benchmarks/precision.py data/tiny_imagenet_b.npz --out runs/precision [--methods Frozen]

Every method learns the stream of ten tasks; after each it is exported in every precision, and the test images
seen so far go through the bundle's own graph and head, as on a device. Time is that of one graph over the
32-bit one's, run in turn, one thread.
"""

from collections.abc import Callable
from pathlib import Path

from graphs import measure
from measure import parser

from everlearn import NTKCL, Frozen, Learner, Method, npz
from everlearn.bench import bench
from everlearn.tables import aligned
from everlearn_runtime import OnnxRuntime

PRECISIONS = ("fp32", "fp16", "int8")
METHODS: dict[str, Callable[[], Method]] = {"Frozen": lambda: Frozen(patches=True), "NTKCL": NTKCL}


def speed(learner: Learner, folder: Path, rounds: int = 60) -> str:
    """A table of milliseconds, ratios and bytes of the learner's graphs."""
    files = {}
    for precision in PRECISIONS:
        learner.export(folder / precision, precision=precision, overwrite=True)
        files[precision] = folder / precision / "features.onnx"
    graphs = {name: OnnxRuntime(file, threads=1) for name, file in files.items()}
    medians = [measure(graphs, batch, rounds) for batch in (1, 16)]
    rows = [["graph", "MB", "ms, batch 1", "times faster", "ms, batch 16", "times faster"]]
    for name, file in files.items():
        cells = [(f"{1e3 * one[name]:.2f}", f"{one['fp32'] / one[name]:.2f}") for one in medians]
        rows.append([name, f"{file.stat().st_size / 1e6:.1f}", *cells[0], *cells[1]])
        graphs[name].close()
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
