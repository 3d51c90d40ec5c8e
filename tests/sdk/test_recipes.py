"""The published settings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from everlearn import NTKCL, Backbone, Learner, load_backbone, recipes
from everlearn.cli import main
from everlearn_runtime import InputSpec

from ..conftest import coloured, vit

NAMES = [name for name in recipes.__all__ if name not in ("Recipe", "by_name")]

# Tasks, first, further, classes, rate, decay, epochs, batch, PTM section, weight of L_dis.
PUBLISHED = {
    "cifar100": (10, 10, 10, 100, 0.025, 5e-4, 20, 16, False, 0.03),
    "imagenet_r": (10, 20, 20, 200, 0.02, 5e-3, 20, 16, False, 0.2),
    "imagenet_a": (10, 20, 20, 200, 0.02, 5e-3, 20, 16, False, 0.2),
    "domainnet": (15, 23, 23, 345, 0.02, 5e-3, 50, 96, False, 0.2),
    "oxford_pets": (7, 7, 5, 37, 0.02, 5e-3, 5, 96, True, 0.2),
    "eurosat": (5, 2, 2, 10, 1e-4, 5e-3, 5, 96, True, 0.2),
    "plantvillage": (5, 3, 3, 15, 5e-3, 5e-3, 5, 96, True, 0.2),
    "kvasir": (4, 2, 2, 8, 5e-3, 5e-3, 5, 96, True, 0.2),
    "vtab": (5, 10, 10, 50, 0.03, 5e-3, 45, 96, True, 0.2),
}


def tiny(recipe: recipes.Recipe) -> Backbone:
    """A tiny ViT that takes its images as the recipe says."""
    return vit(pretrained_cfg_overlay=recipe.input)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_the_settings_are_the_published_ones(name: str, variant: str) -> None:
    recipe = recipes.by_name(name, variant=variant)
    assert recipe == getattr(recipes, name)(variant=variant)
    learner = recipe.learner(tiny(recipe), device="cpu")
    method, training = learner.method, learner.training
    assert isinstance(method, NTKCL)
    assert (
        recipe.tasks,
        recipe.first,
        recipe.classes_per_task,
        recipe.classes,
        training.lr,
        training.weight_decay,
        training.epochs,
        training.batch_size,
        method.ptm,
        method.dissimilarity,
    ) == PUBLISHED[name]
    assert (method.orthogonality, method.regularisation, training.momentum) == (1e-4, 1e-3, 0.9)
    assert (method.variant, method.view, method.increment) == (variant, "hybrid", recipe.classes_per_task)
    assert (method.hidden, method.prompts, method.scale, method.dropout) == (16, 10, 0.1, 0.1)
    assert method.sharpness == 1
    assert not training.carry  # prototypes are never updated afterwards
    assert learner.augmentation == recipe.augmentation
    assert (recipe.augmentation.scale, recipe.augmentation.flip) == ((0.05, 1.0), True)
    assert recipe.backbone == "vit_base_patch16_224.augreg_in21k"


@pytest.mark.parametrize("name", ["vit_base_patch16_224.augreg_in21k", "everlearn_vit_tiny_p8_64"])
def test_pixels_go_in_from_0_to_1_resized_to_256_and_cropped_to_224(name: str) -> None:
    backbone = load_backbone(
        name, weights="random", depth=1, img_size=224, pretrained_cfg_overlay=recipes.cifar100().input
    )
    assert backbone.input == InputSpec(height=224, width=224, resize=256, interpolation="bicubic")
    assert not backbone.mean.any()
    assert (backbone.std == 1).all()
    assert backbone.spec is not None
    assert backbone.spec.options["pretrained_cfg_overlay"] == recipes.cifar100().input


def test_classes_come_in_the_released_order() -> None:
    recipe = recipes.eurosat()
    data = coloured("abcdefghij", count=1)
    np.random.seed(1993)
    expected = tuple(data.classes[i] for i in np.random.permutation(10))
    stream = recipe.stream(data, data)
    assert stream.classes == expected
    assert len(stream) == recipe.tasks
    assert [len(task.classes) for task in recipes.oxford_pets().stream(data, data)] == [7, 3]


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_a_recipe_runs(variant: str) -> None:
    recipe = recipes.kvasir(variant=variant)
    recipe = replace(recipe, training=replace(recipe.training, epochs=1, batch_size=8))
    train, test = coloured("abcdefgh", count=4), coloured("abcdefgh", count=2, seed=1)
    matrix = recipe.learner(tiny(recipe), device="cpu").run(recipe.stream(train, test))
    assert len(matrix) == recipe.tasks
    assert matrix.last > 0.8


def test_weights_are_of_the_recipes_backbone_only() -> None:
    recipe = recipes.kvasir()
    with pytest.raises(ValueError, match="is made already, so weights='random' would change nothing"):
        recipe.learner(tiny(recipe), weights="random")
    small = replace(recipe, backbone="everlearn_vit_tiny_p8_64")
    backbone = small.learner(weights="random", device="cpu").backbone
    assert backbone.fingerprint() == load_backbone(weights="random").fingerprint()
    assert not backbone.mean.any()


def test_what_the_user_asks_for_goes_before_the_recipe() -> None:
    recipe = recipes.kvasir()
    learner = recipe.learner(tiny(recipe), device="cpu", epochs=3, augmentation=None)
    assert learner.training == replace(recipe.training, epochs=3)
    assert learner.augmentation is None


def test_a_recipe_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, images in (("train", coloured("abcd", count=4)), ("test", coloured("abcd", count=2, seed=1))):
        for number, (image, label) in enumerate(images):
            folder = tmp_path / "data" / part / label
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
    small = ["--backbone", "everlearn_vit_tiny_p8_64", "--epochs", "1", "--device", "cpu"]
    command = ["train", str(tmp_path / "data"), "--recipe", "kvasir", "--out", str(tmp_path / "run")]
    assert main([*command, *small]) == 0
    assert "average" in capsys.readouterr().out
    learner = Learner.load(tmp_path / "run", device="cpu")
    assert isinstance(learner.method, NTKCL)
    assert learner.method.variant == "released"
    assert learner.training == replace(recipes.kvasir().training, epochs=1)
    assert not learner.backbone.mean.any()
    order = ["abcd"[i] for i in np.random.RandomState(1993).permutation(4)]
    assert [set(task) for task in learner.tasks] == [set(order[:2]), set(order[2:])]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--recipe", "cifar1000"], "everlearn: no recipe is named 'cifar1000'; take one of cifar100, "),
        (["--recipe", "vtab", "--method", "Frozen"], "everlearn: recipes are for NTKCL, got --method Frozen"),
    ],
)
def test_a_mistake_is_one_line(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", "--out", str(tmp_path), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
