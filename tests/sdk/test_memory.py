"""Memories of images: bounded, uniform, exact to the pixel."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from everlearn.data.loader import plain_batches
from everlearn.methods.memory import Album, Reservoir, behind

from ..conftest import coloured, vit


def numbered(start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(start, start + count)
    return labels[:, None, None, None].expand(count, 1, 1, 3).to(torch.uint8), labels


def reservoir(capacity: int, classes: int) -> Reservoir:
    memory = Reservoir(1, 1, capacity)
    memory.grow(classes)
    return memory


def test_every_image_that_came_by_is_kept_with_the_same_probability() -> None:
    torch.manual_seed(0)
    kept = np.zeros(30)
    for _ in range(2000):
        memory = reservoir(5, 30)
        for start in range(0, 30, 6):
            memory.add(*numbered(start, 6))
        labels = memory.labels.numpy()
        assert len(memory) == len(set(labels.tolist())) == 5
        assert (memory.images[:, 0, 0, 0].numpy() == labels).all()
        kept[labels] += 1
    # 2000 draws of probability 1/6: five standard deviations are 83.
    assert np.abs(kept - 2000 / 6).max() < 83


@pytest.mark.parametrize("after", [0, 4, 12, 40])
def test_the_sample_stays_uniform_when_a_class_is_forgotten(after: int) -> None:
    """20 images of two classes by turns, of which one is forgotten; then further ones of a third."""
    torch.manual_seed(0)
    runs, capacity = 3000, 6
    kept, sizes = np.zeros(20 + after), np.zeros(runs, int)
    for run in range(runs):
        memory = reservoir(capacity, 2)
        images, numbers = numbered(0, 20)
        memory.add(images, numbers % 2)
        memory.drop_class(0)
        assert memory.seen == 10
        assert memory.came.tolist() == [10]
        memory.grow(2)
        for start in range(20, 20 + after, 4):
            memory.add(numbered(start, 4)[0], torch.ones(4, dtype=torch.int64))
        chosen = memory.images[: len(memory), 0, 0, 0].numpy()
        labels = memory.labels[: len(memory)].numpy()
        assert len(set(chosen.tolist())) == len(chosen)
        assert (labels == np.where(chosen < 20, 0, 1)).all()
        assert not memory.images[len(memory) :].any()
        kept[chosen] += 1
        sizes[run] = len(memory)
    assert not kept[0:20:2].any()
    left = np.delete(kept, np.arange(0, 20, 2))
    share = sizes.mean() / len(left)
    assert np.abs(left - runs * share).max() < 5 * np.sqrt(runs * share * (1 - share))
    assert sizes.max() == capacity
    if after >= 10:  # all that was forgotten has been made up for
        assert sizes.min() == capacity


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 6),
    st.lists(st.one_of(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 3)), max_size=9),
)
def test_a_reservoir_holds_what_it_says(capacity: int, events: Sequence[list[int] | int]) -> None:
    """Images of classes come by, and classes are forgotten, in any order."""
    memory, came = reservoir(capacity, 4), [0, 0, 0, 0]
    torch.manual_seed(0)
    for event in events:
        if isinstance(event, int):
            memory.drop_class(event)
            memory.grow(4)
            came = [*came[:event], *came[event + 1 :], 0]
        else:
            labels = torch.tensor(event)
            memory.add((labels + 1)[:, None, None, None].expand(-1, 1, 1, 3).to(torch.uint8), labels)
            came = [before + event.count(place) for place, before in enumerate(came)]
        assert memory.came.tolist() == came
        assert memory.seen == sum(came)
        assert 0 <= len(memory) <= min(capacity, sum(came))
        assert (memory.gone >= 0).all()
        held = memory.labels[: len(memory)]
        assert (torch.bincount(held, minlength=4) <= memory.came).all()
        assert memory.images[: len(memory)].all()
        assert not memory.images[len(memory) :].any()
        assert not memory.labels[len(memory) :].any()
        if not memory.gone.any():
            assert len(memory) == min(capacity, sum(came))


def test_an_album_keeps_all_in_order() -> None:
    memory = Album(1, 1)
    memory.add(*numbered(0, 3))
    memory.add(*numbered(3, 4))
    assert memory.labels.tolist() == memory.images[:, 0, 0, 0].tolist() == list(range(7))
    assert len(memory) == 7
    memory.drop_class(2)
    assert memory.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4, 5, 6]
    assert memory.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_an_album_does_not_copy_itself_for_every_batch() -> None:
    memory, moves = Album(1, 1), 0
    for start in range(1000):
        address = memory.images.data_ptr()
        memory.add(*numbered(start, 1))
        moves += memory.images.data_ptr() != address
    assert moves < 15
    assert memory.labels.tolist() == list(range(1000))


def test_the_room_behind_the_rows_is_neither_saved_nor_shared(tmp_path: object) -> None:
    rows = behind(torch.arange(6).reshape(2, 3), torch.tensor([[6, 7, 8]]))
    assert rows.untyped_storage().nbytes() > rows.nbytes
    file = f"{tmp_path}/rows.safetensors"
    save_file({"rows": rows}, file)
    assert torch.equal(load_file(file)["rows"], torch.arange(9).reshape(3, 3))
    more = behind(rows, torch.tensor([[9, 9, 9]]))
    assert more.data_ptr() == rows.data_ptr()
    assert torch.equal(rows, torch.arange(9).reshape(3, 3))


def test_what_is_drawn_is_in_the_memory_and_not_twice() -> None:
    memory = reservoir(8, 15)
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
