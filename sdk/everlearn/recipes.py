"""The published settings of NTK-CL: one function for each data set of the paper's tables.

    from everlearn import recipes

    recipe = recipes.cifar100()
    matrix = recipe.learner(device="cuda").run(recipe.stream(train, test), checkpoint="run/")

or ``everlearn train DATA --recipe cifar100 --out run/``. All take a ViT-B/16 pretrained on
ImageNet-21k and the authors' released behaviour, with which the tables were made;
``variant="paper"`` takes the mended mechanisms with the same settings.

Source: Liu et al., arXiv 2407.17120, section 5, and the settings files of the released code.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from everlearn.backbones import Backbone, resolve
from everlearn.data.augmentation import Augmentation
from everlearn.data.streams import ClassIncremental
from everlearn.learner import Learner
from everlearn.methods import NTKCL
from everlearn.training import Training

__all__ = [
    "Recipe",
    "by_name",
    "cifar100",
    "domainnet",
    "eurosat",
    "imagenet_a",
    "imagenet_r",
    "kvasir",
    "oxford_pets",
    "plantvillage",
    "vtab",
]

IN21K = "vit_base_patch16_224.augreg_in21k"
"""The ViT-B/16 of the tables; with ``"vit_base_patch16_224.augreg_in21k_ft_in1k"`` those for IN1K."""


@dataclass(frozen=True)
class Recipe:
    """Everything that an experiment needs beside its data.

    Attributes:
        tasks: number of tasks that the whole data set makes.
        first: classes of the first task.
        classes_per_task: classes of every further one.
        training: epochs, batch size, rate, decay.
        method: arguments of `NTKCL`.
        backbone: a name that `load_backbone` takes.
        input: of the backbone, what replaces timm's own settings: a resize to 256 and a crop to
            224, and pixels in [0, 1] without further normalisation, as in the release.
        augmentation: random part of 5 to 100 percent, and flip.
        seed: of the order of the classes.
    """

    tasks: int
    first: int
    classes_per_task: int
    training: Training
    method: dict[str, Any]
    backbone: str = IN21K
    input: dict[str, Any] = field(
        default_factory=lambda: {"mean": [0.0] * 3, "std": [1.0] * 3, "crop_pct": 0.875}
    )
    augmentation: Augmentation = Augmentation(scale=(0.05, 1.0))  # noqa: RUF009
    seed: int = 1993

    @property
    def classes(self) -> int:
        """Number of classes of the whole data set."""
        return self.first + (self.tasks - 1) * self.classes_per_task

    def stream(self, train: object, test: object) -> ClassIncremental:
        """Split a data set into the tasks; see `ClassIncremental`."""
        return ClassIncremental(train, test, self.classes_per_task, first=self.first, seed=self.seed)

    def learner(
        self, backbone: Backbone | None = None, *, weights: str | Path | None = None, **options: Any
    ) -> Learner:
        """Make the learner.

        Args:
            backbone: in place of the recipe's; it brings its own input settings.
            weights: of the recipe's backbone; the pretrained ones when left out.
            options: further arguments of `Learner`; they go before the recipe's.

        Raises:
            ValueError: as `resolve` and `Learner`.
        """
        if backbone is None:
            backbone = resolve(self.backbone, weights, pretrained_cfg_overlay=self.input)
        else:
            backbone = resolve(backbone, weights)
        settings = asdict(self.training) | {"augmentation": self.augmentation} | options
        return Learner(backbone, NTKCL(**self.method), **settings)


def by_name(name: str, **options: Any) -> Recipe:
    """Make the recipe that is named ``name``, such as ``"cifar100"``; ``ValueError`` when none is.

    >>> by_name("oxford_pets").classes
    37
    """
    known = [other for other in __all__ if other not in ("Recipe", "by_name")]
    if name not in known:
        raise ValueError(f"no recipe is named {name!r}; take one of {', '.join(known)}")
    recipe: Recipe = globals()[name](**options)
    return recipe


def cifar100(*, variant: str = "released") -> Recipe:
    """CIFAR-100, ten tasks of 10 classes. Published: A_bar 93.76, A_T 90.27 (IN1K 93.16, 89.43)."""
    training = Training(epochs=20, batch_size=16, lr=0.025, weight_decay=5e-4)
    return _recipe(10, 10, 10, training, variant, dissimilarity=0.03)


def imagenet_r(*, variant: str = "released") -> Recipe:
    """ImageNet-R, ten tasks of 20 classes. Published: A_bar 82.77, A_T 77.17 (IN1K 83.18, 77.76)."""
    return _recipe(10, 20, 20, Training(epochs=20, batch_size=16, lr=0.02, weight_decay=5e-3), variant)


def imagenet_a(*, variant: str = "released") -> Recipe:
    """ImageNet-A, ten tasks of 20 classes. Published: A_bar 66.56, A_T 58.54 (IN1K 68.76, 60.58)."""
    return imagenet_r(variant=variant)


def domainnet(*, variant: str = "released") -> Recipe:
    """DomainNet, 15 tasks of 23 classes."""
    return _recipe(15, 23, 23, Training(epochs=50, batch_size=96, lr=0.02, weight_decay=5e-3), variant)


def oxford_pets(*, variant: str = "released") -> Recipe:
    """Oxford Pets, 7 classes and then six tasks of 5, with the backbone's own features in front."""
    return _recipe(7, 7, 5, replace(_FEW_EPOCHS, lr=0.02), variant, ptm=True)


def eurosat(*, variant: str = "released") -> Recipe:
    """EuroSAT, five tasks of 2 classes, with the backbone's own features in front."""
    return _recipe(5, 2, 2, replace(_FEW_EPOCHS, lr=1e-4), variant, ptm=True)


def plantvillage(*, variant: str = "released") -> Recipe:
    """PlantVillage, five tasks of 3 classes, with the backbone's own features in front."""
    return _recipe(5, 3, 3, replace(_FEW_EPOCHS, lr=5e-3), variant, ptm=True)


def kvasir(*, variant: str = "released") -> Recipe:
    """Kvasir, four tasks of 2 classes, with the backbone's own features in front."""
    return _recipe(4, 2, 2, replace(_FEW_EPOCHS, lr=5e-3), variant, ptm=True)


def vtab(*, variant: str = "released") -> Recipe:
    """VTAB, five tasks of 10 classes, with the backbone's own features in front."""
    training = Training(epochs=45, batch_size=96, lr=0.03, weight_decay=5e-3)
    return _recipe(5, 10, 10, training, variant, ptm=True)


_FEW_EPOCHS = Training(epochs=5, batch_size=96, weight_decay=5e-3)


def _recipe(
    tasks: int, first: int, classes_per_task: int, training: Training, variant: str, **method: Any
) -> Recipe:
    given: dict[str, Any] = {"variant": variant, "view": "hybrid", "increment": classes_per_task}
    # Prototypes stay as they were computed; carrying statistics along came later, with this library.
    return Recipe(tasks, first, classes_per_task, replace(training, carry=False), given | method)
