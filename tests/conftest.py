"""Tiny backbones, and images that a tiny backbone can tell apart."""

import gc
import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from everlearn import Augmentation, Backbone, Images, Learner, Method, arrays, load_backbone
from everlearn_runtime import prepare

from .tracing import traced_once  # noqa: F401 - for all tests

SIDE = 32
_FOLDER = tempfile.TemporaryDirectory()


def pytest_collection_finish() -> None:
    """What was imported and collected lives to the end, and the garbage collector looks at it no more.

    Of a big heap each full collection takes half a second, and they were a tenth of all time. So young
    objects are looked at after 10,000 of them, not 700, and old ones five times more seldom still.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Backbone:
    """A ViT of 2 blocks on 32 x 32 pixels with seeded random weights; a pass takes milliseconds."""
    size: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
    return load_backbone(name, weights="random", **{**size, **options})


def cnn(name: str = "test_byobnet", **options: Any) -> Backbone:
    """A model on 32 x 32 pixels with seeded random weights; its batch norms know such images."""
    given: dict[str, Any] = {"pretrained_cfg_overlay": {"input_size": [3, SIDE, SIDE]}} | options
    backbone = load_backbone(name, weights="random", **given)
    norms = [one for one in backbone.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return backbone
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        backbone.features(backbone.normalise(torch.from_numpy(pixels(coloured("abcdefgh", 2)))))
    # From a file, so that a saved learner can make it again.
    path = Path(_FOLDER.name) / f"{_digest(np.frombuffer(repr((name, given)).encode(), np.uint8))[-16:]}.pth"
    torch.save(backbone.model.state_dict(), path)
    return load_backbone(name, weights=path, **given)


def coloured(classes: Iterable[str], count: int = 6, seed: int = 0) -> Images:
    """Images of each class, one after the other: noise around a pattern of colours of its own."""
    images, labels = [], []
    for name in classes:
        pattern = np.random.default_rng(list(name.encode())).integers(40, 216, size=(2, 2, 3))
        noise = np.random.default_rng([seed, *name.encode()]).integers(-30, 31, size=(count, SIDE, SIDE, 3))
        images.append((pattern.repeat(16, axis=0).repeat(16, axis=1) + noise).astype(np.uint8))
        labels += [name] * count
    return arrays(np.concatenate(images), labels)


def pixels(images: Images, learner: Learner | None = None) -> NDArray[np.uint8]:
    """The images as one array, uint8 (N, H, W, 3); for a learner, as its graph takes them."""
    if learner is None:
        return np.stack([np.asarray(image) for image, _ in images])
    return np.stack([prepare(image, learner.backbone.input) for image, _ in images])


class Clock:
    """Counts the images that are read, and interrupts when it comes to number ``stop``."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.reads = 0

    def watch(self, images: Images) -> Images:
        """The same images, counted when they are decoded; a look at their bytes is no read."""
        watched, decode = images.subset(range(len(images))), images._load

        def load(position: int) -> Image.Image:
            self.reads += 1
            if self.reads == self.stop:
                raise KeyboardInterrupt
            image: Image.Image = decode(position)
            return image

        watched._load = load
        return watched


def make_learner(method: Method, **settings: Any) -> Learner:
    """A learner on the tiny ViT that takes a task in a few steps."""
    # Adam's steps are long at any rate, and a scale of a whole layer moves features further than a weight.
    lr = 0.002 if method.defaults.optimizer == "adam" else 0.05
    backbone = settings.pop("backbone", None) or vit()
    lr = 0.0005 if getattr(method, "adapter", None) == "ssf" or not backbone.has_tokens else lr
    given: dict[str, Any] = {"epochs": 2, "batch_size": 5, "lr": lr, "device": "cpu"}
    # Strong crops, as a random ViT soon learns a few images by heart.
    given |= {"augmentation": Augmentation(scale=(0.05, 1.0))} | settings
    return Learner(backbone, method, **given)


def digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """A short text for each tensor that differs when a bit does."""
    return {name: _digest(value.detach().numpy()) for name, value in tensors.items()}


def state(learner: Learner) -> dict[str, Any]:
    """Everything that a learner has learned and is about to learn, to the bit."""
    head = learner.head.state()
    unfinished = learner.unfinished
    return {
        "record": learner.record(),
        "method": digests(learner.method.learned()),
        "kept classes": learner.method.classes.names,
        "trainable": len(learner.method.trainable()),
        "training mode": learner.method.training,
        "head": (head.kind, head.classes, head.options),
        "statistics": {name: _digest(array) for name, array in head.arrays.items()},
        "unfinished": unfinished and (unfinished.classes, unfinished.seen, unfinished.epochs),
        "optimizer": unfinished and [digests(state) for state in unfinished.optimizer],
    }


def fit_all(learner: Learner, tasks: Sequence[object], **options: Any) -> Learner:
    """Learn one task after another."""
    for task in tasks:
        learner.fit(task, **options)
    return learner


def _digest(array: NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
