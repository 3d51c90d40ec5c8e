"""Memories of images, as uint8, for the methods that replay them: of all images, or of a sample.

The labels in a memory are places in `Method.classes`.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """Images and labels, of which some are drawn; what is kept is up to the subclasses.

    Args:
        height, width: of the images.
        room: how many there is room for.

    Attributes:
        images: uint8 (room, height, width, 3), the rows behind ``len(self)`` zero.
        labels: int64 (room,).
    """

    images: Tensor
    labels: Tensor

    def __init__(self, height: int, width: int, room: int = 0) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(room, height, width, 3, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(room, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Give up to ``count`` different images and their labels, by torch's global generator."""
        chosen = torch.randperm(len(self))[:count].to(self.labels.device)
        return self.images[chosen], self.labels[chosen]


class Album(Memory):
    """All images, in the order in which they came."""

    counted: ClassVar[str] = "images"

    def grow(self, images: int) -> None:
        """Make room, so that there is space for this many images in all."""
        new = max(images - len(self), 0)
        self.images = behind(self.images, self.images.new_zeros(new, *self.images.shape[1:]))
        self.labels = behind(self.labels, self.labels.new_zeros(new))

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Keep images uint8 (B, height, width, 3) with labels int64 (B,)."""
        self.images, self.labels = behind(self.images, images), behind(self.labels, labels)

    def drop_class(self, place: int) -> None:
        """Delete the images of the class at this place; later ones move up by one."""
        stay = self.labels != place
        self.images, self.labels = self.images[stay], moved_up(self.labels[stay], place)


class Reservoir(Memory):
    """A uniform sample of the images that came by, of bounded size.

    Whatever the number of images that came by, each is in the sample with the same probability. That
    stays so when a class is forgotten: what is left is a uniform sample of the other images, but a
    smaller one. To fill it up with the next ones would favour those, so each image that comes makes up
    for a forgotten one drawn at random, and takes a place in the sample if that one had one.

    Args:
        height, width: of the images.
        capacity: how many are kept.

    Attributes:
        came: int64 (C,), how many images of each class came by.
        gone: int64 (2,), forgotten images that nothing has made up for, in the sample and outside.

    Source: Vitter, "Random Sampling with a Reservoir", ACM TOMS 11 (1985), algorithm R; Gemulla, Lehner
    and Haas, "A Dip in the Reservoir", VLDB 2006, section 3 (random pairing).
    """

    counted: ClassVar[str] = "came"
    came: Tensor
    gone: Tensor

    def __init__(self, height: int, width: int, capacity: int) -> None:
        super().__init__(height, width, capacity)
        self.register_buffer("came", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("gone", torch.zeros(2, dtype=torch.int64))

    def __len__(self) -> int:
        inside, outside = self.gone.tolist()
        return int(min(len(self.labels), self.seen + inside + outside) - inside)

    @property
    def seen(self) -> int:
        """How many images of the classes that are not forgotten came by."""
        return int(self.came.sum())

    def grow(self, classes: int) -> None:
        """Make room for further classes, so that there are this many."""
        self.came = nn.functional.pad(self.came, (0, max(classes - len(self.came), 0)))

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Let images uint8 (B, height, width, 3) with labels int64 (B,) come by."""
        kept, seen, (inside, outside) = len(self), self.seen, self.gone.tolist()
        for image, label in zip(images, labels, strict=True):
            if inside or outside:
                makes_up = int(torch.randint(inside + outside, ()))
                place = kept if makes_up < inside else len(self.labels)
                inside, outside = (inside - 1, outside) if makes_up < inside else (inside, outside - 1)
            else:
                place = seen if seen < len(self.labels) else int(torch.randint(seen + 1, ()))
            if place < len(self.labels):
                self.images[place], self.labels[place] = image, label
                kept = max(kept, place + 1)
            seen += 1
        self.came += torch.bincount(labels, minlength=len(self.came))
        self.gone.copy_(torch.tensor([inside, outside]))

    def drop_class(self, place: int) -> None:
        """Delete the images of the class at this place; later ones move up by one."""
        kept = len(self)
        stay = self.labels[:kept] != place
        images, labels = self.images[:kept][stay], moved_up(self.labels[:kept][stay], place)
        lost = kept - len(labels)
        for rows, values in ((self.images, images), (self.labels, labels)):
            rows.zero_()
            rows[: len(values)] = values
        self.gone += torch.stack([torch.tensor(lost).to(self.came), self.came[place] - lost])
        self.came = torch.cat([self.came[:place], self.came[place + 1 :]])


def moved_up(labels: Tensor, place: int) -> Tensor:
    """Labels after the class at this place, which is none of theirs, has gone."""
    return labels - (labels > place).to(labels)


def behind(rows: Tensor, more: Tensor) -> Tensor:
    """Put further rows behind those of a tensor, in time that does not grow with those.

    The rows begin a storage that may have room behind them, as in any list that grows: where it has
    enough, the further rows are written there, and otherwise into a new one with twice the room.
    Only the rows belong to the tensor, so the room is neither seen nor saved.

    >>> behind(torch.tensor([1, 2]), torch.tensor([3]))
    tensor([1, 2, 3])
    """
    count = len(rows) + len(more)
    if rows.untyped_storage().nbytes() < count * rows.stride(0) * rows.element_size():
        room = rows.new_empty(2 * count, *rows.shape[1:])
        room[: len(rows)] = rows
        rows = room[: len(rows)]
    joined = rows.as_strided((count, *rows.shape[1:]), rows.stride(), 0)
    joined[len(rows) :] = more
    return joined
