"""Split Tiny-ImageNet: NTK-CL and the frozen backbone, each with every head.

    python examples/benchmarks/split_tiny_imagenet.py DATA.npz --out runs/split_tiny_imagenet

100 classes that the bundled backbone was not trained on, ten tasks of ten. A method is trained
once for a seed, and all heads see the same features, so that rows of a method differ by the head
alone. The seed sets the order of the classes, initial values, batches and augmentation.
Test images are used to report, never to choose. Results are kept as they come: the same command
goes on where a stopped one was.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from everlearn import (
    LDA,
    NTKCL,
    AccuracyMatrix,
    Augmentation,
    ClassIncremental,
    Frozen,
    Images,
    Learner,
    Method,
    Prototypes,
    Ridge,
    npz,
)
from everlearn_runtime.backends import OnnxRuntime
from everlearn_runtime.heads import Head
from everlearn_runtime.images import prepare

METHODS: dict[str, Callable[[], Method]] = {
    "Frozen": lambda: Remembering(),
    "NTK-CL": NTKCL,
    "NTK-CL, hybrid": lambda: NTKCL(view="hybrid"),
}
FIGURES = ("average", "last", "forgetting", "seconds", "bytes")


class Remembering(Frozen):
    """Frozen, which computes the features of an image once: they never change, for no seed."""

    known: ClassVar[dict[bytes, Tensor]] = {}

    def features(self, images: Tensor) -> Tensor:
        """Look up what is known, and compute the rest."""
        keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
        new = [index for index, key in enumerate(keys) if key not in self.known]
        if new:
            self.known.update(zip([keys[i] for i in new], super().features(images[new]), strict=True))
        return torch.stack([self.known[key] for key in keys])

    def deployable(self) -> nn.Module:
        """Export without the memory."""
        method = Frozen()
        method.attach(self.backbone)
        return method.deployable()


class Side(Prototypes):
    """Prototypes that let other heads learn from the same features."""

    def __init__(self, options: dict[str, Any], others: dict[str, Head]) -> None:
        super().__init__(**options)
        self.others = others

    def update(self, features: ArrayLike, labels: Sequence[str]) -> None:
        """Learn, and let the others learn."""
        super().update(features, labels)
        for head in self.others.values():
            head.update(features, labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--epochs", type=int, help="default: the method's")
    parser.add_argument("--lr", type=float, help="default: the method's")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16", help="of training")
    arguments = parser.parse_args()
    train, test = npz(arguments.data)
    for seed in arguments.seeds:
        for method in arguments.methods:
            arguments.out.mkdir(parents=True, exist_ok=True)
            file = arguments.out / f"{method}-{seed}.json"
            if not file.is_file():
                results = run(method, seed, train, test, arguments)
                file.write_text(json.dumps(results))
            print(f"{method}, seed {seed}: {file}", flush=True)
    print(table(arguments.out, arguments.methods, arguments.seeds))


def run(method: str, seed: int, train: Images, test: Images, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one method on one seed; the figures of each head."""
    stream = ClassIncremental(train, test, classes_per_task=10, seed=seed)
    learner = Learner(
        method=METHODS[method](),
        epochs=arguments.epochs,
        lr=arguments.lr,
        augmentation=Augmentation(scale=(0.1, 1.0)),
        precision=arguments.precision,
        seed=seed,
    )
    others: dict[str, Head] = {
        "LDA": LDA(),
        "ridge": Ridge(),
        "ridge on 2,000 random features": Ridge(projection=2000, seed=seed),
    }
    own = learner.head.options if isinstance(learner.head, Prototypes) else {}
    learner.head = Side(own, others)
    heads = {"prototypes": learner.head, **others}
    matrices = {name: AccuracyMatrix() for name in heads}
    seconds = 0.0
    for task in stream:
        start = time.perf_counter()
        learner.fit(task.train)
        seconds += time.perf_counter() - start
        print(f"{method}, seed {seed}: task {task.index + 1}, {seconds:.0f} s", flush=True)
        features = learner.features(task.test_so_far)
        labels = np.array(task.test_so_far.labels)
        tasks = [np.isin(labels, stream[index].classes) for index in range(task.index + 1)]
        for name, head in heads.items():
            right = np.array(head.predict(features)) == labels
            matrices[name].record([float(right[at].mean()) for at in tasks], [int(at.sum()) for at in tasks])
    adapters = sum(value.nbytes for value in learner.method.learned().values())
    results: dict[str, Any] = {
        name: {
            "average": matrices[name].average,
            "last": matrices[name].last,
            "forgetting": matrices[name].forgetting,
            "seconds": seconds,
            "bytes": adapters + head.nbytes,
            "matrix": matrices[name].to_dict(),
        }
        for name, head in heads.items()
    }
    results["export"] = compare_export(
        learner, features, task.test_so_far, arguments.out / f"{method}-{seed}-bundle"
    )
    return results


def compare_export(
    learner: Learner, features: NDArray[np.float32], test: Images, path: Path
) -> dict[str, float]:
    """How far the exported graph is from torch on all test images, and how often classes agree."""
    manifest = learner.export(path, overwrite=True)
    pixels = np.stack([prepare(image, manifest.input) for image, _ in test])
    backend = OnnxRuntime(path / "features.onnx")
    exported = backend.run(pixels)
    backend.close()
    same = np.array(learner.head.predict(exported)) == np.array(learner.head.predict(features))
    return {
        "max_abs_difference": float(np.abs(exported - features).max()),
        "top1_agreement": float(same.mean()),
    }


def table(out: Path, methods: Sequence[str], seeds: Sequence[int]) -> str:
    """Mean and spread over the seeds; accuracies in percent."""
    titles = ("A_bar", "A_T", "forgetting", "seconds", "MB kept")
    lines = [f"{'method':18} {'head':32}" + "".join(f"{title:>15}" for title in titles)]
    exports: list[dict[str, float]] = []
    for method in methods:
        results = [json.loads((out / f"{method}-{seed}.json").read_text()) for seed in seeds]
        exports += [result.pop("export") for result in results]
        for head in results[0]:
            rows = [result[head] for result in results]
            values = {name: np.array([row[name] for row in rows]) for name in FIGURES}
            cells = [
                f"{100 * values[name].mean():.2f} ± {100 * values[name].std():.2f}" for name in FIGURES[:3]
            ]
            cells += [f"{values['seconds'].mean():.0f}", f"{values['bytes'].mean() / 1e6:.2f}"]
            lines.append(f"{method:18} {head:32}" + "".join(f"{cell:>15}" for cell in cells))
    worst = max(export["max_abs_difference"] for export in exports)
    agree = min(export["top1_agreement"] for export in exports)
    lines.append(
        f"exported graphs: features within {worst:.1e} of torch, {agree:.2%} of the test classes agree"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
