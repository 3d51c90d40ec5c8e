"""A data set as a backbone takes it: in order for the head, shuffled and augmented to train.

All randomness comes from (seed, task, epoch, image), never from a worker or a global state, so
an epoch is the same whether or not another one ran before it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from everlearn import processes
from everlearn.backbones import Backbone
from everlearn.data import Images
from everlearn.data.augmentation import Augmentation
from everlearn_runtime.images import InputSpec, prepare

BATCH = 64
"""Images of a batch in order: what the head and the device's graph see does not depend on it."""

Targets = Sequence[int] | NDArray[np.int64]


class Loader:
    """The images of one data set in batches: made once for each, and asked as often as needed.

    Args:
        images: of the data set; one is decoded each time that a batch with it is asked for.
        backbone: whose size, resizing and normalisation the images get.
        device: where the batches go.
        workers: processes that load images; batches do not depend on it.
    """

    def __init__(self, images: Images, backbone: Backbone, device: torch.device, workers: int = 0) -> None:
        self.images = images
        self.backbone = backbone
        self.device = device
        self.workers = workers

    def in_order(self, targets: Targets | None = None, *, shared: bool = False) -> "Batches":
        """Batches in order, each image resized and cropped as the device does it.

        Args:
            targets: a whole number for each image; its position when left out.
            shared: with several processes leave each its part: whole batches, so that each is
                computed just as by one process.
        """
        batches = _cut(range(len(self.images)), BATCH)
        return self._batches(
            _Views(self.images, range(len(self.images)) if targets is None else targets, self.backbone.input),
            processes.share(batches) if shared else batches,
        )

    def shuffled(
        self, targets: Targets, augmentation: Augmentation | None, *, batch_size: int, key: Sequence[int]
    ) -> "Batches":
        """Shuffled, augmented batches of one epoch, all of it determined by ``key``.

        With several processes this one's part of each batch, which may be none.

        Args:
            targets: a whole number for each image.
            augmentation: what each image goes through; None resizes and crops as `in_order` does.
            batch_size: images of a batch, of all processes together.
            key: whole numbers of at least 0, such as seed, task and epoch.
        """
        order: list[int] = np.random.default_rng(list(key)).permutation(len(self.images)).tolist()
        batches = [processes.share(batch) for batch in _cut(order, batch_size)]
        return self._batches(_Views(self.images, targets, self.backbone.input, augmentation, key), batches)

    def pixels(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at these positions as the device's graph takes them, uint8 (N, H, W, 3)."""
        chosen = self.images.subset(indices)
        views = _Views(chosen, range(len(chosen)), self.backbone.input)
        parts = [
            images.numpy() for images, _ in _loader(views, _cut(range(len(chosen)), BATCH), self.workers)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, *self.backbone.input.shape), np.uint8)

    def _batches(self, views: "_Views", batches: Sequence[Sequence[int]]) -> "Batches":
        return Batches(_loader(views, batches, self.workers), self.backbone, self.device)


class Batches:
    """Batches as methods take them: normalised and on a device, as often as somebody asks.

    Images float32 (B, 3, H, W) and targets int64 (B,); `len` is the number of batches.
    """

    def __init__(
        self, loaded: DataLoader[tuple[Tensor, Tensor]], backbone: Backbone, device: torch.device
    ) -> None:
        self._loaded = loaded
        self._backbone = backbone
        self._device = device

    def __len__(self) -> int:
        return len(self._loaded)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self._loaded:
            yield self._backbone.normalise(images.to(self._device)), targets.to(self._device)


class _Views(Dataset[tuple[Tensor, Tensor]]):
    """Each image as uint8 (H, W, 3) with its target, augmented where that is asked for."""

    def __init__(
        self,
        images: Images,
        targets: Targets,
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


def _cut(positions: Sequence[int], size: int) -> list[Sequence[int]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _loader(
    views: _Views, batches: Sequence[Sequence[int]], workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(
        views,
        batch_sampler=[list(batch) for batch in batches],
        collate_fn=views.batch,
        num_workers=workers,
        generator=torch.Generator(),  # otherwise every pass takes a number from the caller's random state
    )
