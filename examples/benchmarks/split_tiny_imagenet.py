"""Split Tiny-ImageNet: NTK-CL and the frozen backbone, each with every head.

    python examples/benchmarks/split_tiny_imagenet.py DATA.npz --out runs/split_tiny_imagenet

100 classes that the bundled backbone was not trained on, ten tasks of ten. A method is trained
once for a seed, and all heads see the same features, so that rows of a method differ by the head
alone. The seed sets the order of the classes, initial values, batches and augmentation.
Test images are used to report, never to choose. Results are kept as they come: the same command
goes on where a stopped one was.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import parser
from tqdm import tqdm

from everlearn import NTKCL, Frozen, Images, Learner, Method, npz
from everlearn.choices import HEADS
from everlearn.evaluation.bench import bench
from everlearn.evaluation.run import Run
from everlearn.files import read_json, write_json
from everlearn_runtime.backends import OnnxRuntime
from everlearn_runtime.images import prepare

METHODS: dict[str, Callable[[], Method]] = {
    "Frozen": Frozen,
    "Frozen, CLS and patches": lambda: Frozen(patches=True),
    "NTK-CL": NTKCL,
    "NTK-CL, CLS and patches": lambda: NTKCL(depths=()),
    "NTK-CL, CLS alone": lambda: NTKCL(patches=False),
    "NTK-CL, four passes": lambda: NTKCL(view="hybrid"),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options.add_argument("--epochs", type=int, help="default: the method's")
    options.add_argument("--lr", type=float, help="default: the method's")
    arguments = options.parse_args()
    train, test = npz(arguments.data)

    def export(run: Run, learner: Learner) -> None:
        path = arguments.out / "bundles" / f"{run.method}-{run.seed}"
        write_json(path.with_suffix(".json"), compare_export(learner, test, path))

    found = bench(
        train,
        test,
        arguments.out,
        classes_per_task=10,
        methods={name: METHODS[name] for name in arguments.methods},
        seeds=arguments.seeds,
        heads=list(HEADS),
        precision=arguments.precision,
        say=tqdm.write,
        finished=export,
        **{name: getattr(arguments, name) for name in ("epochs", "lr") if getattr(arguments, name)},
    )
    print(found.table())
    exports = [read_json(file, "an export") for file in (arguments.out / "bundles").glob("*.json")]
    worst = max(export["max_abs_difference"] for export in exports)
    agree = min(export["top1_agreement"] for export in exports)
    print(f"exported graphs: features within {worst:.1e} of torch, {agree:.2%} of the test classes agree")


def compare_export(learner: Learner, test: Images, path: Path) -> dict[str, float]:
    """How far the exported graph is from torch on all test images, and how often classes agree."""
    manifest = learner.export(path, overwrite=True)
    pixels = np.stack([prepare(image, manifest.input) for image, _ in test])
    features = Learner.features(learner, test)  # torch's features are to be computed, too
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
