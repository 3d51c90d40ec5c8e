"""Batches of tensors from images: augmented and shuffled to train, plain for the head.

All randomness comes from (seed, task, epoch, image), never from a worker or a global state, so
an epoch is the same whether or not another one ran before it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from everlearn.augmentation import Augmentation
from everlearn.data import Images
from everlearn_runtime.images import InputSpec, prepare

Batches = DataLoader[tuple[Tensor, Tensor]]


class _Views(Dataset[tuple[Tensor, Tensor]]):
    """Each image as uint8 (H, W, 3) with its target, augmented where that is asked for."""

    def __init__(
        self,
        images: Images,
        targets: Sequence[int],
        spec: InputSpec,
        augmentation: Augmentation | None = None,
        key: Sequence[int] = (),
    ) -> None:
        self.images = images
        self.targets = targets
        self.spec = spec
        self.augmentation = augmentation
        self.key = key

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, _ = self.images[index]
        if self.augmentation is None:
            pixels = prepare(image, self.spec)
        else:
            rng = np.random.default_rng([*self.key, index + 1])  # 0 would be the shuffle's own stream
            pixels = np.asarray(self.augmentation(image, (self.spec.height, self.spec.width), rng))
        # A copy: torch wants memory that may be written to.
        return torch.from_numpy(pixels.copy()), torch.tensor(self.targets[index])


def train_batches(
    images: Images,
    targets: Sequence[int],
    spec: InputSpec,
    augmentation: Augmentation | None,
    *,
    batch_size: int,
    key: Sequence[int],
    workers: int = 0,
) -> Batches:
    """Shuffled, augmented batches of one epoch, all of it determined by ``key``.

    Returns:
        Batches of images uint8 (B, H, W, 3) and targets int64 (B,).
    """
    order = np.random.default_rng(list(key)).permutation(len(images)).tolist()
    views = _Views(images, targets, spec, augmentation, key)
    return _loader(views, batch_size, workers, sampler=order)


def plain_batches(
    images: Images,
    spec: InputSpec,
    *,
    batch_size: int = 64,
    targets: Sequence[int] | None = None,
    workers: int = 0,
) -> Batches:
    """Batches in order, each image resized and cropped as the device does it.

    Without targets, each image's target is its position.
    """
    numbers = range(len(images)) if targets is None else targets
    return _loader(_Views(images, numbers, spec), batch_size, workers)


def _loader(views: _Views, batch_size: int, workers: int, **options: Any) -> Batches:
    # A generator of its own: otherwise every pass takes a number from the caller's random state.
    return DataLoader(
        views, batch_size=batch_size, num_workers=workers, generator=torch.Generator(), **options
    )
