"""A data set as a backbone takes it, in batches."""

import numpy as np
import pytest
import torch

from everlearn import Augmentation
from everlearn.data import arrays
from everlearn.data.loader import Loader
from everlearn_runtime import prepare

from ..conftest import coloured, vit

CPU = torch.device("cpu")
DATA = coloured("abc", count=30)
BACKBONE = vit(pretrained_cfg_overlay={"mean": (0.2, 0.5, 0.7), "std": (0.31, 0.22, 0.13)})


def test_in_order_every_image_comes_once_as_the_device_sees_it() -> None:
    batches = Loader(DATA, BACKBONE, CPU).in_order()
    for _ in range(2):  # as often as somebody asks
        images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert targets.tolist() == list(range(90))
        plain = torch.from_numpy(np.stack([prepare(image, BACKBONE.input) for image, _ in DATA]))
        assert torch.equal(images, BACKBONE.normalise(plain))
    assert len(batches) == len(list(batches)) == 2


@pytest.mark.parametrize("targets", [[7] * 90, np.full(90, 7)])
def test_targets_are_those_that_are_given(targets: list[int]) -> None:
    loader = Loader(DATA, BACKBONE, CPU)
    for batches in (loader.in_order(targets), loader.shuffled(targets, None, batch_size=8, key=[0])):
        for _, found in batches:
            assert found.dtype == torch.int64
            assert set(found.tolist()) == {7}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_an_epoch_is_a_permutation_that_its_key_alone_determines(augmentation: Augmentation | None) -> None:
    def epoch(*key: int, workers: int = 0) -> tuple[torch.Tensor, list[int]]:
        batches = Loader(DATA, BACKBONE, CPU, workers).shuffled(
            range(90), augmentation, batch_size=16, key=key
        )
        assert len(batches) == 6
        images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return images, targets.tolist()

    images, targets = epoch(1, 2, 3)
    assert targets == np.random.default_rng([1, 2, 3]).permutation(90).tolist()
    for workers in (0, 2):
        torch.manual_seed(workers)
        again = epoch(1, 2, 3, workers=workers)
        assert torch.equal(again[0], images)
        assert again[1] == targets
    assert epoch(1, 2, 4)[1] != targets


def test_batches_leave_the_callers_random_state_alone() -> None:
    before = torch.get_rng_state()
    loader = Loader(DATA, BACKBONE, CPU)
    for batches in (loader.in_order(), loader.shuffled(range(90), Augmentation(), batch_size=9, key=[1])):
        list(batches)
    loader.pixels([1, 2])
    assert torch.equal(torch.get_rng_state(), before)


def test_pixels_are_what_the_graph_takes_in_the_order_asked_for() -> None:
    large = arrays(np.random.default_rng(0).integers(256, size=(70, 50, 80, 3)).astype(np.uint8), ["a"] * 70)
    chosen = np.arange(69, 2, -1)
    found = Loader(large, BACKBONE, CPU).pixels(chosen)
    assert found.dtype == np.uint8
    assert found.shape == (67, 32, 32, 3)
    expected = [prepare(large[int(index)][0], BACKBONE.input) for index in chosen]
    np.testing.assert_array_equal(found, np.stack(expected))
    assert Loader(DATA, BACKBONE, CPU).pixels([]).shape == (0, 32, 32, 3)
