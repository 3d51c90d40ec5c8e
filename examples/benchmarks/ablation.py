"""What each part of NTK-CL is worth, measured on held-out training images.

    python examples/benchmarks/ablation.py DATA.npz --out runs/ablation

The test images stay out of it: a quarter of the training images is held out and takes their place,
so defaults may be chosen by this table. Each row is the default with one thing changed; the
difference to the default is taken seed by seed. Results are kept as they come: the same command
goes on where a stopped one was.
"""

import argparse
from functools import partial
from typing import Any

import numpy as np
from measure import parser, remembered

from everlearn import NTKCL, Augmentation, ClassIncremental, Frozen, Images, Learner, npz
from everlearn.choices import HEADS
from everlearn.evaluation.bench import Bench
from everlearn.evaluation.run import Run
from everlearn.evaluation.runner import measure

CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "nothing trained": {},
    "statistics not carried": {"carry": False},
    "crops from 5 %": {"crops": 0.05},
    "classifier scale from 1": {"sharpness": 1.0},
    "without L_dis": {"dissimilarity": 0.0},
    "without L_orth": {"orthogonality": 0.0},
    "without L_reg": {"regularisation": 0.0},
    "L_reg a hundredfold": {"regularisation": 0.1},
    "bottlenecks of 16, scale 0.1": {"hidden": 16, "scale": 0.1},
    "four passes": {"view": "hybrid"},
}
TRAINING = ("epochs", "lr", "carry")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--changes", nargs="+", choices=list(CHANGES), default=list(CHANGES))
    options.add_argument("--tasks", type=int, default=10, help="of ten classes each; default %(default)s")
    arguments = options.parse_args()
    images, _ = npz(arguments.data)
    runs = [
        remembered(
            arguments.out / f"{change}-{arguments.tasks}-{seed}.json", run, change, seed, images, arguments
        )
        for change in dict.fromkeys(["default", *arguments.changes])
        for seed in arguments.seeds
    ]
    found = Bench({}, tuple(runs))
    print(found.table())
    print("\nA_T, difference to the default, in points")
    rows = found.rows()
    for (change, head), seeds in rows.items():
        difference = [
            100 * (a.scores[head].last - b.scores[head].last)
            for a, b in zip(seeds, rows["default", head], strict=True)
        ]
        print(f"{change:32}{head:16}{np.mean(difference):+8.2f} ± {np.std(difference):.2f}")


def run(change: str, seed: int, images: Images, arguments: argparse.Namespace) -> Run:
    """The figures of each head, on images held out of the training images."""
    train, held_out = images.split(0.75, seed)
    stream = ClassIncremental(train, held_out, classes_per_task=10, seed=seed)
    kept = [name for task in list(stream)[: arguments.tasks] for name in task.classes]
    stream = ClassIncremental(
        train.of_classes(kept), held_out.of_classes(kept), classes_per_task=10, seed=seed
    )
    changed = dict(CHANGES[change])
    crops = changed.pop("crops", None)
    method = NTKCL(**{name: value for name, value in changed.items() if name not in TRAINING})
    learner = Learner(
        method=Frozen(patches=True, depths="auto") if change == "nothing trained" else method,
        augmentation=Augmentation(scale=(crops, 1.0)) if crops else Augmentation(),
        precision=arguments.precision,
        seed=seed,
        **{name: value for name, value in changed.items() if name in TRAINING},
    )
    say = partial(print, f"{change}, seed {seed},", flush=True)
    heads = {name: make(seed) for name, make in HEADS.items()}
    return measure(learner, stream, heads=heads, name=change, after_task=say)


if __name__ == "__main__":
    main()
