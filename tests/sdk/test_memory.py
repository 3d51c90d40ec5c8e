"""A memory of images: bounded, uniform, exact to the pixel."""

import numpy as np
import torch

from everlearn.data.loader import plain_batches
from everlearn.methods.memory import Reservoir

from ..conftest import coloured, vit


def numbered(start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(start, start + count)
    return labels[:, None, None, None].expand(count, 1, 1, 3).to(torch.uint8), labels


def test_every_image_that_came_by_is_kept_with_the_same_probability() -> None:
    torch.manual_seed(0)
    kept = np.zeros(30)
    for _ in range(2000):
        memory = Reservoir(1, 1, 5)
        for start in range(0, 30, 6):
            memory.add(*numbered(start, 6))
        labels = memory.labels.numpy()
        assert len(memory) == len(set(labels.tolist())) == 5
        assert (memory.images[:, 0, 0, 0].numpy() == labels).all()
        kept[labels] += 1
    # 2000 draws of probability 1/6: five standard deviations are 83.
    assert np.abs(kept - 2000 / 6).max() < 83


def test_without_a_bound_all_are_kept_in_order() -> None:
    memory = Reservoir(1, 1)
    memory.add(*numbered(0, 3))
    memory.add(*numbered(3, 4))
    assert memory.labels.tolist() == list(range(7))
    assert len(memory) == int(memory.seen) == 7


def test_what_is_drawn_is_in_the_memory_and_not_twice() -> None:
    memory = Reservoir(1, 1, 8)
    assert [len(part) for part in memory.draw(3)] == [0, 0]
    memory.add(*numbered(10, 5))
    images, labels = memory.draw(3)
    assert len(set(labels.tolist())) == 3
    assert (images[:, 0, 0, 0] == labels).all()
    assert sorted(memory.draw(9)[1].tolist()) == list(range(10, 15))


def test_pixels_come_back_exactly_from_what_methods_see() -> None:
    backbone, data = (
        vit(pretrained_cfg_overlay={"mean": (0.2, 0.5, 0.7), "std": (0.31, 0.22, 0.13)}),
        coloured("ab"),
    )
    batch, _ = next(iter(plain_batches(data, backbone.input)))
    assert torch.equal(backbone.pixels(backbone.normalise(batch)), batch)
    everything = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 2, 1, 3)
    assert torch.equal(backbone.pixels(backbone.normalise(everything)), everything)
