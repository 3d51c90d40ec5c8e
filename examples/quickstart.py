"""From images to a device that learns, in a few minutes on a CPU: `make quickstart`.

NTK-CL learns scikit-learn's handwritten digits two at a time, from the bundled backbone. Two
digits are held back. The model is exported, and another process without torch opens the bundle
and learns those two by itself.
"""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np

from everlearn import NTKCL, Augmentation, ClassIncremental, Images, Learner, digits
from everlearn_runtime.images import InputSpec, prepare

RUN = Path("runs/quickstart")
HERE = Path(__file__).parent


def main() -> None:
    shutil.rmtree(RUN, ignore_errors=True)
    train, test = digits()
    order = ClassIncremental(train, test, classes_per_task=2, seed=1993).classes
    known, held_back = order[:8], order[8:]

    print(
        f"1. Train NTK-CL on the digits {', '.join(known)}, two at a time, for two epochs each\n", flush=True
    )
    learner = Learner(
        "everlearn_vit_tiny_p8_64",
        NTKCL(),
        epochs=2,
        batch_size=32,
        lr=0.02,
        augmentation=Augmentation(scale=(0.6, 1.0), flip=False),  # a mirrored 3 is no 3
        progress=True,  # bars on a terminal, a line every ten seconds elsewhere
    )
    stream = ClassIncremental(train.of_classes(known), test.of_classes(known), classes_per_task=2, seed=1993)
    print(learner.run(stream, checkpoint=RUN, say=partial(print, flush=True)).table())

    print("\n2. Export one static graph, and verify it against torch\n", flush=True)
    manifest = learner.export(RUN / "bundle")
    size = (RUN / "bundle" / "features.onnx").stat().st_size / 1e6
    difference, agreement = manifest.parity["max_abs_difference"], manifest.parity["top1_agreement"]
    print(f"features.onnx: {size:.1f} MB; features within {difference:.1e}, {agreement:.0%} of classes agree")

    print(f"\n3. On the device, in a process without torch: learn {' and '.join(held_back)}\n", flush=True)
    for name, images in (("learn", train.of_classes(held_back)), ("test", test)):
        save(RUN / f"{name}.npz", images, learner.backbone.input)
    subprocess.run([sys.executable, HERE / "on_device.py", RUN], check=True)


def save(path: Path, images: Images, spec: InputSpec) -> None:
    """Write images as the device's camera would give them: uint8 (N, H, W, 3)."""
    np.savez_compressed(path, images=[prepare(image, spec) for image, _ in images], labels=images.labels)


if __name__ == "__main__":
    main()
