"""LoRA: it starts as the layer it is put around, updates what it is told to, and merges exactly."""

import pytest
import torch
from torch import nn

from everlearn.adapters import LoRA, insert_lora, merge

from ..conftest import vit


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def shaken(adapter: LoRA) -> LoRA:
    with torch.no_grad():
        adapter.up.copy_(rows(*adapter.up.shape))
    return adapter


def test_a_fresh_one_computes_what_the_layer_does() -> None:
    linear, x = nn.Linear(6, 9), rows(4, 5, 6)
    torch.testing.assert_close(LoRA(linear, rank=2)(x), linear(x), rtol=0, atol=0)


@pytest.mark.parametrize(("parts", "of"), [((0,), 1), ((0, 2), 3), ((1,), 3), ((0, 1, 2), 3)])
def test_it_merges_into_the_weights(parts: tuple[int, ...], of: int) -> None:
    linear, x = nn.Linear(6, 9).double(), rows(4, 5, 6).double()
    adapter = shaken(LoRA(linear, rank=2, scale=0.5, parts=parts, of=of))
    merged = adapter.merged()
    torch.testing.assert_close(merged(x), adapter(x), rtol=0, atol=1e-12)
    changed = (merged.weight - linear.weight).abs().sum(1).view(of, -1).sum(1) > 0
    assert changed.nonzero().flatten().tolist() == list(parts)


def test_each_part_has_factors_of_its_own() -> None:
    adapter = shaken(LoRA(nn.Linear(6, 9), rank=2, parts=(0, 2), of=3))
    query, _, value = adapter.delta().chunk(3)
    torch.testing.assert_close(query, adapter.up[0] @ adapter.down[0])
    torch.testing.assert_close(value, adapter.up[1] @ adapter.down[1])
    assert torch.linalg.matrix_rank(adapter.delta()) == 4


def test_the_twin_changes_and_the_backbone_does_not() -> None:
    backbone, images = vit(), rows(2, 3, 32, 32)
    before, plain = backbone.fingerprint(), backbone.features(images)
    twin = backbone.twin()
    inserted = insert_lora(twin, layers=("value", "query", "proj", "fc1", "fc2"), rank=3)
    assert len(inserted) == 4 * backbone.depth
    torch.testing.assert_close(twin.features(images), plain, rtol=0, atol=0)
    for adapter in inserted:
        shaken(adapter)
    assert not torch.allclose(twin.features(images), plain)
    assert torch.equal(backbone.features(images), plain)
    assert backbone.fingerprint() == before
    expected = twin.features(images)
    merge(twin)
    assert not any(isinstance(module, LoRA) for module in twin.modules())
    torch.testing.assert_close(twin.features(images), expected, rtol=0, atol=1e-5)
    assert backbone.fingerprint() == before


def test_a_twin_takes_no_memory_for_weights() -> None:
    backbone = vit()
    twin = backbone.twin()
    assert {id(one) for one in twin.parameters()} == {id(one) for one in backbone.parameters()}
    assert {id(one) for one in twin.buffers()} == {id(one) for one in backbone.buffers()}


def test_fewer_wanted_tokens_are_the_first_ones_with_lora_too() -> None:
    from everlearn.backbones import attend

    twin = vit().twin()
    for adapter in insert_lora(twin, layers=("key", "value")):
        shaken(adapter)
    block, tokens = next(twin.blocks()), rows(2, twin.tokens, 48)
    torch.testing.assert_close(attend(block, tokens, 1), attend(block, tokens)[:, :1])


@pytest.mark.parametrize("layers", [("query", "valu"), ()])
def test_unknown_layers_are_named(layers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="layers must be some of query, key, value, proj, fc1, fc2, got "):
        insert_lora(vit().twin(), layers=layers)
