"""Batches of tensors from images: augmented and shuffled to train, plain for the head.

All randomness comes from (seed, task, epoch, image), never from a worker or a global state, so
an epoch is the same whether or not another one ran before it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from everlearn import processes
from everlearn.backbones import Backbone
from everlearn.data import Images
from everlearn.data.augmentation import Augmentation
from everlearn_runtime.images import InputSpec, prepare

Batches = DataLoader[tuple[Tensor, Tensor]]


class Normalised:
    """Batches as methods take them: normalised and on a device, as often as somebody asks."""

    def __init__(self, batches: Batches, backbone: Backbone, device: torch.device) -> None:
        self.batches = batches
        self.backbone = backbone
        self.device = device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self.batches:
            yield self.backbone.normalise(images.to(self.device)), targets.to(self.device)


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

    def batch(self, views: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Stack views; of none, too: a process's part of a batch of few."""
        if views:
            images, targets = default_collate(views)
            return images, targets
        empty = torch.empty(0, self.spec.height, self.spec.width, 3, dtype=torch.uint8)
        return empty, torch.empty(0, dtype=torch.int64)


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
        Batches of images uint8 (B, H, W, 3) and targets int64 (B,); with several processes this
        one's part of each batch, which may be none.
    """
    order: list[int] = np.random.default_rng(list(key)).permutation(len(images)).tolist()
    batches = [processes.share(batch) for batch in _cut(order, batch_size)]
    return _loader(_Views(images, targets, spec, augmentation, key), batches, workers)


def plain_batches(
    images: Images,
    spec: InputSpec,
    *,
    batch_size: int = 64,
    targets: Sequence[int] | None = None,
    workers: int = 0,
    shared: bool = False,
) -> Batches:
    """Batches in order, each image resized and cropped as the device does it.

    Without targets, each image's target is its position. With several processes ``shared``
    leaves each its part: whole batches, so that each is computed just as by one process.
    """
    numbers = range(len(images)) if targets is None else targets
    batches = _cut(range(len(images)), batch_size)
    return _loader(_Views(images, numbers, spec), processes.share(batches) if shared else batches, workers)


def _cut(positions: Sequence[int], size: int) -> list[Sequence[int]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _loader(views: _Views, batches: Sequence[Sequence[int]], workers: int) -> Batches:
    return DataLoader(
        views,
        batch_sampler=[list(batch) for batch in batches],
        collate_fn=views.batch,
        num_workers=workers,
        generator=torch.Generator(),  # otherwise every pass takes a number from the caller's random state
    )
