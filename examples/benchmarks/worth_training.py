"""What NTK-CL's training is worth: beside the same features frozen, and beside all tasks at once.

    python examples/benchmarks/worth_training.py DATA.npz --out runs/worth_training --seeds 0 1 2

All rows have features of several depths (``depths="auto"``). NTK-CL, the frozen backbone and Joint have
the same head, whitened cosine; RanPAC has its own. Joint learns all tasks at once, and its head what its
last model makes of all images. The differences are taken seed by seed. MB are those of adapters and head:
as they are kept, the head's sums in float64, and with all floating-point numbers as float32.
Test images are used to report, never to choose. Results are kept as they come: the same command
goes on where a stopped one was, in the middle of a run too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from measure import parser
from tqdm import tqdm

from everlearn import NTKCL, Frozen, Joint, Learner, Method, RanPAC
from everlearn.data import load
from everlearn.evaluation.bench import bench
from everlearn.evaluation.run import OWN, Run
from everlearn.files import read_json, write_json
from everlearn_runtime.heads import Head, WhitenedCosine


class FrozenCosine(Frozen):
    """The frozen backbone with NTK-CL's head."""

    def head(self) -> Head:
        """Whitened cosine."""
        return WhitenedCosine()


class JointCosine(Joint):
    """Joint with NTK-CL's head."""

    def head(self) -> Head:
        """Whitened cosine."""
        return WhitenedCosine()


METHODS: dict[str, Callable[[], Method]] = {
    "NTK-CL": NTKCL,
    "Frozen": lambda: FrozenCosine(patches=True, depths="auto"),
    "RanPAC": lambda: RanPAC(depths="auto"),
    "Joint": lambda: JointCosine(depths="auto"),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options.add_argument("--classes", type=int, default=10, help="a task; default %(default)s")
    options.add_argument("--epochs", type=int, help="default: the method's")
    options.add_argument("--lr", type=float, help="default: the method's")
    arguments = options.parse_args()
    train, test = load(arguments.data)

    def keep_size(run: Run, learner: Learner) -> None:
        write_json(size_file(arguments.out, run), {"bytes": float32_bytes(learner)})

    found = bench(
        train,
        test,
        arguments.out,
        classes_per_task=arguments.classes,
        methods={name: METHODS[name] for name in arguments.methods},
        seeds=arguments.seeds,
        precision=arguments.precision,
        say=tqdm.write,
        finished=keep_size,
        **{name: getattr(arguments, name) for name in ("epochs", "lr") if getattr(arguments, name)},
    )
    print(found.table())
    rows = {method: runs for (method, _), runs in found.rows().items()}
    ours = {run.seed: run.scores[OWN].last for run in rows.get("NTK-CL", [])}
    print(f"\n{'':10}{'head':18}{'A_T':>14}{'NTK-CL is ahead by':>22}{'MB':>8}{'as float32':>12}")
    for method, runs in rows.items():
        scores = [run.scores[OWN] for run in runs]
        ahead = [ours[run.seed] - run.scores[OWN].last for run in runs if run.seed in ours]
        size = np.mean([read_json(size_file(arguments.out, run), "a size")["bytes"] for run in runs])
        print(
            f"{method:10}{scores[0].kind:18}{spread([score.last for score in scores]):>14}"
            f"{spread(ahead, sign='+') if ahead else '-':>22}{scores[0].bytes / 1e6:>8.2f}{size / 1e6:>12.2f}"
        )


def spread(shares: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over the seeds, in percent."""
    deviation = np.std(shares, ddof=1) if len(shares) > 1 else 0.0
    return f"{100 * np.mean(shares):{sign}.2f} ± {100 * deviation:.2f}"


def size_file(out: Path, run: Run) -> Path:
    """Where the size of a run's learner lies."""
    return out / "sizes" / f"{run.method}-{run.seed}.json"


def float32_bytes(learner: Learner) -> int:
    """Of adapters and head, floating-point numbers in four bytes and others as they are."""
    kept = [value.cpu().numpy() for value in learner.method.learned().values()]
    arrays = [*kept, *learner.head.state().arrays.values()]
    return sum(4 * array.size if array.dtype.kind == "f" else array.nbytes for array in arrays)


if __name__ == "__main__":
    main()
