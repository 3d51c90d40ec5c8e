"""Whether another checkout trains every method to the same bits: what a refactoring has to keep.

    git worktree add ../before COMMIT
    python examples/benchmarks/same_features.py ../before

Each side is run in a process of its own, on three tasks of the digits with a fixed seed, and each
method's features of the test images are compared after the last task. A difference is named with
its size. ``--carry`` also moves the heads' statistics along, whose prototypes NTK-CL trains with.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("sdk", "export", "runtime")


def methods() -> dict[str, Any]:
    """Every method, and the forms of it that train differently; by what this checkout calls them."""
    import everlearn

    own = {name: getattr(everlearn, name)() for name in everlearn.methods.__all__}
    return own | {
        "NTKCL, released": everlearn.NTKCL(variant="released"),
        "NTKCL, hybrid": everlearn.NTKCL(view="hybrid", ptm=True),
        "SAFE, released": everlearn.SAFE(variant="released"),
        "SAFE, ssf": everlearn.SAFE(adapter="ssf"),
        "SAFE, vpt": everlearn.SAFE(adapter="vpt"),
        "DualLoRA, evidence": everlearn.DualLoRA(evidence=True),
        "DualLoRA, inflora": everlearn.DualLoRA(subspace="inflora", energy=(0.7, 0.8)),
        "ILoRA, delta": everlearn.ILoRA(average="delta"),
    }


def train(out: str, carry: bool) -> None:
    """Write the features of every method as this checkout trains it."""
    import torch

    import everlearn

    torch.set_num_threads(1)
    train, test = everlearn.digits()
    few = train.subset(range(0, len(train), 8))
    some = test.subset(range(0, len(test), 8))
    stream = everlearn.ClassIncremental(few, some, classes_per_task=4, seed=1993)
    backbone = everlearn.load_backbone()
    found: dict[str, Any] = {}
    for name, method in methods().items():
        learner = everlearn.Learner(
            backbone, method, epochs=2, batch_size=32, seed=7, carry=carry, progress=False
        )
        for task in stream:
            learner.fit(task.train)
        found[name] = learner.features(some)
        print(f"  {name}", flush=True)
    np.savez(out, **found)


def main() -> int:
    """Compare, and say so; 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", metavar="CHECKOUT", help="the checkout to compare with")
    parser.add_argument("--carry", action="store_true", help="carry the heads' statistics along")
    parser.add_argument("--train", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.carry)
        return 0
    here = Path(__file__).resolve().parents[2]
    sides = []
    with tempfile.TemporaryDirectory() as folder:
        for side, root in (("there", Path(arguments.other).resolve()), ("here", here)):
            print(f"{side}: {root.name}", flush=True)
            file = Path(folder) / f"{side}.npz"
            paths = os.pathsep.join(str(root / part) for part in PARTS)
            command = [sys.executable, __file__, arguments.other, "--train", str(file)]
            command += ["--carry"] if arguments.carry else []
            environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, env=environment, cwd=root)
            with np.load(file) as stored:
                sides.append({name: stored[name] for name in stored.files})
    there, now = sides
    verdicts = {}
    for name in there:
        if name not in now or there[name].shape != now[name].shape:
            verdicts[name] = "is not there any more, or has another shape"
        elif there[name].tobytes() != now[name].tobytes():
            gap = float(np.abs(there[name].astype(float) - now[name]).max())
            verdicts[name] = f"differs by up to {gap:.2g}"
    print(json.dumps({"methods": len(there), "same bits": len(there) - len(verdicts), **verdicts}, indent=1))
    return int(bool(verdicts))


if __name__ == "__main__":
    sys.exit(main())
