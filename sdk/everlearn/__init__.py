"""everlearn: continual learning that goes on where the model lives.

    from everlearn import ClassIncremental, Learner, NTKCL

    learner = Learner("everlearn_vit_tiny_p8_64", NTKCL())
    for task in ClassIncremental(train, test, classes_per_task=10, seed=1993):
        learner.fit(task.train)
        print(learner.evaluate(task.test_so_far))
    learner.export("bundle/")

On the device, ``everlearn_runtime`` opens the bundle and goes on learning, without torch.
"""

from importlib.util import find_spec

from everlearn import threads

threads.wait_briefly()  # before torch is imported, here or by what is imported below

from everlearn_runtime.errors import MissingExtra  # noqa: E402

_missing = [
    name
    for name in ("torch", "timm", "onnx", "onnxscript", "onnxslim", "sklearn", "tqdm")
    if not find_spec(name)
]
if _missing:
    raise MissingExtra(f"training (without {', '.join(_missing)} here)", "train,cpu")

from everlearn import recipes  # noqa: E402
from everlearn.backbones import Backbone, load_backbone  # noqa: E402
from everlearn.data import Images, arrays, digits, folder, npz  # noqa: E402
from everlearn.data.augmentation import Augmentation  # noqa: E402
from everlearn.data.streams import ClassIncremental, Task  # noqa: E402
from everlearn.evaluation.metrics import AccuracyMatrix  # noqa: E402
from everlearn.learner import Learner  # noqa: E402
from everlearn.methods import (  # noqa: E402
    APER,
    NTKCL,
    SAFE,
    SLDA,
    DualLoRA,
    FeCAM,
    FineTune,
    Frozen,
    ILoRA,
    Joint,
    RanPAC,
    SimpleCIL,
)
from everlearn.methods.base import Method  # noqa: E402
from everlearn_runtime.heads import LDA, Aggregate, Prototypes, Ridge, WhitenedCosine  # noqa: E402

__all__ = [
    "APER",
    "LDA",
    "NTKCL",
    "SAFE",
    "SLDA",
    "AccuracyMatrix",
    "Aggregate",
    "Augmentation",
    "Backbone",
    "ClassIncremental",
    "DualLoRA",
    "FeCAM",
    "FineTune",
    "Frozen",
    "ILoRA",
    "Images",
    "Joint",
    "Learner",
    "Method",
    "Prototypes",
    "RanPAC",
    "Ridge",
    "SimpleCIL",
    "Task",
    "WhitenedCosine",
    "arrays",
    "digits",
    "folder",
    "load_backbone",
    "npz",
    "recipes",
]
