"""Linear layers that are never trained."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everlearn import frozen
from everlearn.frozen import FrozenLinear, frozen_linear

from .conftest import vit


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[True, False])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU on which MKL is slow, so that oneDNN is taken, and one on which it is not."""
    if request.param and not frozen.one_dnn_is_there():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(frozen, "mkl_is_slow", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("shape", [(5, 12), (3, 5, 12), (1, 1, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_the_tokens_gradient_are_torchs(slow: bool, shape: tuple[int, ...], bias: bool) -> None:
    weight, offset = noise(7, 12, seed=1), noise(7, seed=2) if bias else None
    ours, theirs = (noise(*shape).requires_grad_() for _ in range(2))
    values = frozen_linear(ours, weight, offset), F.linear(theirs, weight, offset)
    assert (type(values[0].grad_fn).__name__ == "_OneDnnLinearBackward") == slow
    torch.testing.assert_close(*values)
    for value in values:
        (value * noise(*value.shape, seed=3)).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_parts_of_tensors_are_taken_as_they_are(slow: bool) -> None:
    tokens, weight, bias = noise(3, 9, 12), noise(21, 12, seed=1), noise(21, seed=2)
    for rows in (tokens[:, :1], tokens[:, 2:5], tokens.transpose(0, 1)):
        torch.testing.assert_close(
            frozen_linear(rows, weight[7:], bias[7:]), F.linear(rows, weight[7:], bias[7:])
        )


def test_double_half_and_autocast_stay_with_torch(slow: bool) -> None:
    layer, tokens = FrozenLinear(nn.Linear(12, 7).requires_grad_(False)), noise(3, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(tokens).dtype == torch.bfloat16
    assert copy.deepcopy(layer).double()(tokens.double()).dtype == torch.float64
    assert layer.bfloat16()(tokens.bfloat16()).dtype == torch.bfloat16


def test_what_trains_gets_its_gradient(slow: bool) -> None:
    layer = FrozenLinear(nn.Linear(12, 7))
    layer(noise(3, 12)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()


def test_a_backbones_weights_keep_their_names(slow: bool) -> None:
    backbone = vit()
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 2 * 4
    assert all(type(layer) is FrozenLinear for layer in layers)
    assert "model.blocks.1.mlp.fc2.bias" in backbone.state_dict()
    with torch.no_grad():
        images = noise(2, 3, 32, 32)
        torch.testing.assert_close(
            backbone.features(images), backbone.double().features(images.double()).float()
        )
