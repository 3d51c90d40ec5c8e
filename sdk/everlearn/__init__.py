"""everlearn: continual learning that goes on where the model lives.

    from everlearn import ClassIncremental, Learner, NTKCL

    learner = Learner("everlearn_vit_tiny_p8_64", NTKCL())
    for task in ClassIncremental(train, test, classes_per_task=10, seed=1993):
        learner.fit(task.train)
        print(learner.evaluate(task.test_so_far))
    learner.export("bundle/")

On the device, ``everlearn_runtime`` opens the bundle and goes on learning, without torch.
"""

from typing import TYPE_CHECKING

from everlearn import threads

threads.wait_briefly()  # before torch is imported, which happens when a name is first asked for

from everlearn.errors import need_training  # noqa: E402
from everlearn_runtime import lazy  # noqa: E402
from everlearn_runtime.version import __version__  # noqa: E402

if TYPE_CHECKING:
    from everlearn import recipes
    from everlearn.backbones import Backbone, load_backbone
    from everlearn.data import Images, arrays, digits, folder, npz
    from everlearn.data.augmentation import Augmentation
    from everlearn.data.streams import ClassIncremental, DomainIncremental, Task
    from everlearn.evaluation.metrics import AccuracyMatrix
    from everlearn.learner import Learner
    from everlearn.methods import (
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
    from everlearn.methods.base import Method
    from everlearn_runtime.heads import LDA, Aggregate, Prototypes, Ridge, WhitenedCosine
else:
    _FROM = {
        "everlearn.backbones": ["Backbone", "load_backbone"],
        "everlearn.data": ["Images", "arrays", "digits", "folder", "npz"],
        "everlearn.data.augmentation": ["Augmentation"],
        "everlearn.data.streams": ["ClassIncremental", "DomainIncremental", "Task"],
        "everlearn.evaluation.metrics": ["AccuracyMatrix"],
        "everlearn.learner": ["Learner"],
        "everlearn.methods": [
            *("APER", "NTKCL", "SAFE", "SLDA", "DualLoRA", "FeCAM", "FineTune", "Frozen"),
            *("ILoRA", "Joint", "RanPAC", "SimpleCIL"),
        ],
        "everlearn.methods.base": ["Method"],
        "everlearn_runtime.heads": ["LDA", "Aggregate", "Prototypes", "Ridge", "WhitenedCosine"],
    }
    __getattr__, __dir__ = lazy.names(
        __name__,
        {name: module for module, names in _FROM.items() for name in names},
        before=lambda module: need_training() if module.startswith("everlearn.") else None,
    )

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
    "DomainIncremental",
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
    "__version__",
    "arrays",
    "digits",
    "folder",
    "load_backbone",
    "npz",
    "recipes",
]
