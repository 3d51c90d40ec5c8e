"""What runs on the device in the quick start: numpy and onnxruntime, no torch.

python examples/on_device.py runs/quickstart
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime import EdgeLearner


def main(run: Path) -> None:
    with np.load(run / "learn.npz") as new, np.load(run / "test.npz") as test:
        new_images, new_labels = new["images"], new["labels"].tolist()
        test_images, test_labels = test["images"], test["labels"]

    with EdgeLearner.open(run / "bundle", state=run / "device.db") as edge:
        is_old = np.isin(test_labels, edge.classes)
        print(f"{'':28}{'old classes':>12}{'new classes':>12}")
        report("before learning", edge, test_images, test_labels, is_old)
        for start in range(0, len(new_images), 16):  # as the camera delivers them
            edge.learn(new_images[start : start + 16], new_labels[start : start + 16])
        report(f"after {len(new_images)} new images", edge, test_images, test_labels, is_old)

    with EdgeLearner.open(run / "bundle", state=run / "device.db") as edge:
        report("after a restart", edge, test_images, test_labels, is_old)
    loaded = "torch" in sys.modules
    print(f"\ntorch was {'loaded' if loaded else 'never loaded'}; the state is in {run / 'device.db'}")


def report(
    when: str,
    edge: EdgeLearner,
    images: NDArray[np.uint8],
    labels: NDArray[np.str_],
    is_old: NDArray[np.bool_],
) -> None:
    right = np.array(edge.predict(images).labels) == labels
    print(f"{when:28}{right[is_old].mean():12.1%}{right[~is_old].mean():12.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
