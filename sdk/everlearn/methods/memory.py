"""A memory of images, for the methods that replay them."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class Reservoir(nn.Module):
    """Images seen so far, as uint8: a uniform sample of bounded size, or all of them.

    Whatever the number of images that came by, each is in the sample with the same probability.

    Args:
        height, width: of the images.
        capacity: how many are kept; None keeps all.

    Attributes:
        images: uint8 (capacity, height, width, 3), the rows behind ``len(self)`` unused.
        labels: int64 (capacity,).
        seen: int64 (), images that came by.

    Source: Vitter, "Random Sampling with a Reservoir", ACM TOMS 11 (1985), algorithm R.
    """

    counted: ClassVar[str] = "images"
    images: Tensor
    labels: Tensor
    seen: Tensor

    def __init__(self, height: int, width: int, capacity: int | None = None) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("images", torch.zeros(capacity or 0, height, width, 3, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(capacity or 0, dtype=torch.int64))
        self.register_buffer("seen", torch.tensor(0))

    def __len__(self) -> int:
        return min(int(self.seen), len(self.labels))

    def grow(self, images: int) -> None:
        """Make room, so that there is space for this many images in all."""
        new = max(images - len(self.labels), 0)
        self.images = torch.cat([self.images, self.images.new_zeros(new, *self.images.shape[1:])])
        self.labels = torch.cat([self.labels, self.labels.new_zeros(new)])

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Let images uint8 (B, height, width, 3) with labels int64 (B,) come by."""
        if self.capacity is None:
            self.grow(int(self.seen) + len(images))
        for image, label in zip(images, labels, strict=True):
            place = int(self.seen)
            if place >= len(self.labels):
                place = int(torch.randint(place + 1, ()))
            if place < len(self.labels):
                self.images[place], self.labels[place] = image, label
            self.seen += 1

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Give up to ``count`` different images and their labels, by torch's global generator."""
        chosen = torch.randperm(len(self))[:count].to(self.labels.device)
        return self.images[chosen], self.labels[chosen]
