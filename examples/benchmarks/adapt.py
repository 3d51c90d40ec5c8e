"""What training the adapters on is worth on the device: accuracy of new and old classes, with and without.

    python examples/benchmarks/adapt.py DATA.npz --out FOLDER [--seeds 0 1 2] [--choose]

NTK-CL's one-pass form on the bundled backbone learns two tasks of ten classes and is exported with a
training step. The device learns k images of each of three further classes, and then trains its adapters on
these images. Accuracy is over all 23 classes, on test images of the new ones and of the old ones. One line
for each setting, the first of which is learning alone: mean and standard deviation over the seeds, which draw
the classes, their order and the images, and of the differences to learning alone.

With ``--choose`` a quarter of the training images, fixed by the seed, takes the place of the test images, and
a grid of settings is tried; the last goes a quarter of the way to the mean of all tasks' adapters, as
`NTKCL(later=0.25)` does on the workstation. What was trained is kept in FOLDER.

Last, what it costs every prediction: the graph with other adapters put into its bytes, and the graph with its
adapters as inputs that have default values, each against the graph as shipped; all take turns, and the ratios
are of medians.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from everlearn import NTKCL, Images, Learner, npz
from everlearn_runtime import Bundle, EdgeLearner, prepare_batch
from everlearn_runtime.adapt import RATE, STEPS
from everlearn_runtime.backends.graph import put_weights
from everlearn_runtime.train_step import as_weights, places_of

TASKS, SIZE, NEW = 2, 10, 3
GRID = [(steps, rate, 1.0) for steps in (20, 60) for rate in (3e-4, 1e-3, 3e-3)] + [(STEPS, RATE, 0.25)]


class Split(NamedTuple):
    """Images for the workstation, for the device, and to ask about."""

    tasks: list[Images]
    device: Images
    old: Images
    new: Images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA.npz", help="as `everlearn train` takes it")
    parser.add_argument("--out", type=Path, required=True, help="where bundles are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--blocks", nargs="+", choices=["last2", "all"], default=["last2", "all"])
    parser.add_argument("--images", type=int, default=20, metavar="K", help="of each new class")
    parser.add_argument("--epochs", type=int, help="on the workstation; the method's own by default")
    parser.add_argument("--repeats", type=int, default=60, help="of each measurement of time")
    parser.add_argument("--choose", action="store_true", help="try a grid, by held-out training images")
    arguments = parser.parse_args()
    splits = [split(arguments.data, seed, arguments.images, arguments.choose) for seed in arguments.seeds]
    for seed, part in zip(arguments.seeds, splits, strict=True):
        make(arguments.out / f"{seed}", part.tasks, seed, arguments.epochs, arguments.blocks)
    for blocks in arguments.blocks:
        compare(blocks, arguments, splits)
    if not arguments.choose:
        latency(arguments.out / f"{arguments.seeds[0]}" / arguments.blocks[-1], arguments.repeats)


def split(data: str, seed: int, count: int, choose: bool) -> Split:
    """The images of one seed; a quarter of those for training is always held out."""
    train, test = npz(data)
    random = np.random.default_rng(seed)
    names = [str(name) for name in random.permutation(train.classes)[: TASKS * SIZE + NEW]]
    old, new = names[:-NEW], names[-NEW:]
    learned, held_out = [], []
    labels = np.array(train.labels)
    for name in names:
        places = random.permutation(np.flatnonzero(labels == name))
        held_out += places[: len(places) // 4].tolist()
        learned += places[len(places) // 4 :].tolist()
    seen, asked = train.subset(learned), train.subset(held_out) if choose else test
    few = seen.of_classes(new)
    mine = np.array(few.labels)
    return Split(
        [seen.of_classes(old[start : start + SIZE]) for start in range(0, len(old), SIZE)],
        few.subset([int(place) for name in new for place in np.flatnonzero(mine == name)[:count]]),
        asked.of_classes(old),
        asked.of_classes(new),
    )


def make(folder: Path, tasks: list[Images], seed: int, epochs: int | None, blocks: list[str]) -> None:
    """Train and export, unless that was done before."""
    if not (folder / "run").exists():
        method = NTKCL()
        epochs = method.defaults.epochs if epochs is None else epochs
        learner = Learner(method=method, epochs=epochs, seed=seed, precision="bf16", device="cpu")
        for task in tasks:
            learner.fit(task)
        folder.mkdir(parents=True, exist_ok=True)
        learner.save(folder / "run")
    for name in blocks:
        if not (folder / name).exists():
            learner = Learner.load(folder / "run", device="cpu")
            learner.export(folder / name, images=tasks[-1].subset(range(64)), train_step=name)


def compare(blocks: str, arguments: argparse.Namespace, splits: list[Split]) -> None:
    """One table."""
    settings = [(0, 0.0, 1.0), *(GRID if arguments.choose else [(STEPS, RATE, 1.0)])]
    found: dict[tuple[int, float, float], list[tuple[float, ...]]] = {setting: [] for setting in settings}
    for seed, part in zip(arguments.seeds, splits, strict=True):
        for setting in settings:
            found[setting].append(measure(arguments.out / f"{seed}" / blocks, part, *setting, seed))
    alone = np.array(found[settings[0]])
    print(f"\n{blocks}, {arguments.images} images of each new class, {len(splits)} seeds")
    heads = " ".join(f"{name:>14}" for name in ("new, %", "old, %", "new +-", "old +-"))
    print(f"{'steps':>5} {'rate':>7} {'later':>5} {heads} {'map':>6}")
    for (steps, rate, later), rows in found.items():
        values = np.array(rows)
        gain = values - alone
        cells = [
            f"{part[:, column].mean():{sign}8.2f} ±{part[:, column].std(ddof=min(1, len(part) - 1)):5.2f}"
            for part, sign in ((values, ""), (gain, "+"))
            for column in (0, 1)
        ]
        print(f"{steps:>5} {rate:>7.0e} {later:>5} {' '.join(cells)} {values[:, 2].mean():6.1%}", flush=True)


def measure(
    bundle: Path, part: Split, steps: int, rate: float, later: float, seed: int
) -> tuple[float, float, float]:
    """Accuracy on new and old classes in %, and how much the head's map explains."""
    with EdgeLearner.open(bundle, threads=1) as edge:
        spec, says = edge.bundle.manifest.input, edge.bundle.manifest.train_step
        assert says is not None
        # The weight of the device's training is one over these and itself.
        says["tasks"] = round((says["tasks"] + 1) / later) - 1
        images = prepare_batch([image for image, _ in part.device], spec)
        edge.learn(images, part.device.labels)
        share = 1.0
        if steps:
            share = edge.adapt(images, part.device.labels, steps=steps, rate=rate, seed=seed).explained
        accuracies = []
        for asked in (part.new, part.old):
            labels = edge.predict(prepare_batch([image for image, _ in asked], spec)).labels
            accuracies.append(100 * float(np.mean(np.array(labels) == np.array(asked.labels))))
    return accuracies[0], accuracies[1], share


def latency(bundle: Path, repeats: int) -> None:
    """Other adapters in the graph's bytes, and as its inputs, against the graph as it is."""
    shipped = Bundle.open(bundle)
    says = shipped.manifest.train_step
    assert says is not None
    graph, weights = shipped.read("features.onnx"), as_weights(shipped.adapters(), places_of(says))
    model = onnx.load_from_string(graph)
    for name, value in weights.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(value.shape)))
    model.ir_version = max(model.ir_version, 4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # or it warns of each weight that is an input
    moved = put_weights(graph, {name: 1.1 * value for name, value in weights.items()}, "features.onnx")
    sessions = [
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for data in (graph, moved, model.SerializeToString())
    ]
    print(f"\n{'batch':>5} {'in the bytes':>14} {'as inputs':>14}   times the graph as shipped")
    for batch in (1, 16):
        shape = (batch, *shipped.manifest.input.shape)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        times: list[list[float]] = [[] for _ in sessions]
        for repeat in range(repeats + 3):
            for session, taken in zip(sessions, times, strict=True):
                start = time.perf_counter()
                session.run(["features"], {"images": images})
                if repeat >= 3:
                    taken.append(time.perf_counter() - start)
        own, *others = (float(np.median(taken)) for taken in times)
        print(f"{batch:>5} " + " ".join(f"{other / own:>14.3f}" for other in others), flush=True)


if __name__ == "__main__":
    main()
