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
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from measure import measure, parser, remembered, table
from torch import Tensor, nn

from everlearn import NTKCL, Augmentation, ClassIncremental, Frozen, Images, Learner, Method, npz
from everlearn_runtime.backends import OnnxRuntime
from everlearn_runtime.images import prepare

METHODS: dict[str, Callable[[], Method]] = {
    "Frozen": lambda: Remembering(),
    "Frozen, CLS and patches": lambda: Remembering(patches=True),
    "NTK-CL": NTKCL,
    "NTK-CL, CLS alone": lambda: NTKCL(patches=False),
    "NTK-CL, four passes": lambda: NTKCL(view="hybrid"),
}


class Remembering(Frozen):
    """Frozen, which computes the features of an image once: they never change, for no seed."""

    known: ClassVar[dict[tuple[bool, bytes], Tensor]] = {}

    def features(self, images: Tensor) -> Tensor:
        """Look up what is known, and compute the rest."""
        keys = [(self.patches, hashlib.sha256(image.numpy().tobytes()).digest()) for image in images]
        new = [index for index, key in enumerate(keys) if key not in self.known]
        if new:
            self.known.update(zip([keys[i] for i in new], super().features(images[new]), strict=True))
        return torch.stack([self.known[key] for key in keys])

    def deployable(self) -> nn.Module:
        """Export without the memory."""
        method = Frozen(patches=self.patches)
        method.attach(self.backbone)
        return method.deployable()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options.add_argument("--epochs", type=int, help="default: the method's")
    options.add_argument("--lr", type=float, help="default: the method's")
    arguments = options.parse_args()
    train, test = npz(arguments.data)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    exports: list[dict[str, float]] = []
    for method in arguments.methods:
        for seed in arguments.seeds:
            file = arguments.out / f"{method}-{seed}.json"
            results = remembered(file, run, method, seed, train, test, arguments)
            exports.append(results.pop("export"))
            for head, figures in results.items():
                rows.setdefault((method, head), []).append(figures)
    print(table(rows))
    worst = max(export["max_abs_difference"] for export in exports)
    agree = min(export["top1_agreement"] for export in exports)
    print(f"exported graphs: features within {worst:.1e} of torch, {agree:.2%} of the test classes agree")


def run(method: str, seed: int, train: Images, test: Images, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one method on one seed; the figures of each head, and of the exported graph."""
    stream = ClassIncremental(train, test, classes_per_task=10, seed=seed)
    learner = Learner(
        method=METHODS[method](),
        epochs=arguments.epochs,
        lr=arguments.lr,
        augmentation=Augmentation(scale=(0.3, 1.0)),
        precision=arguments.precision,
        seed=seed,
    )
    results: dict[str, Any] = measure(learner, stream, name=f"{method}, seed {seed}")
    results["export"] = compare_export(learner, test, arguments.out / f"{method}-{seed}-bundle")
    return results


def compare_export(learner: Learner, test: Images, path: Path) -> dict[str, float]:
    """How far the exported graph is from torch on all test images, and how often classes agree."""
    manifest = learner.export(path, overwrite=True)
    pixels = np.stack([prepare(image, manifest.input) for image, _ in test])
    features = learner.features(test)
    backend = OnnxRuntime(path / "features.onnx")
    exported = backend.run(pixels)
    backend.close()
    same = np.array(learner.head.predict(exported)) == np.array(learner.head.predict(features))
    return {
        "max_abs_difference": float(np.abs(exported - features).max()),
        "top1_agreement": float(same.mean()),
    }


if __name__ == "__main__":
    main()
