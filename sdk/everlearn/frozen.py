"""Linear layers that are never trained, by the faster of two libraries."""

import functools
import platform
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenLinear(nn.Linear):
    """A linear layer of a frozen backbone: the same weights under the same names, see `frozen_linear`."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return frozen_linear(input, self.weight, self.bias)


def frozen_linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``tokens @ weight.T + bias``, with a gradient for the tokens alone.

    float32 on a CPU with AVX-512 that is not Intel's goes through oneDNN: torch would take MKL,
    which keeps to AVX2 there, at less than half the speed. Everything else is torch's own.
    """
    if (
        not mkl_is_slow()
        or tokens.device.type != "cpu"
        or tokens.dtype != torch.float32
        or weight.requires_grad
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return F.linear(tokens, weight, bias)
    return cast(Tensor, _OneDnnLinear.apply(tokens, weight, bias))  # type: ignore[no-untyped-call]


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _one_dnn(tokens, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _one_dnn(gradients[0], weight.T, None), None, None


def _one_dnn(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # torch's compiler takes this operator, too; the public way copies every tensor to and fro.
    found = torch.ops.mkldnn._linear_pointwise(tokens.contiguous(), weight.contiguous(), bias, "none", [], "")
    return cast(Tensor, found)


def one_dnn_is_there() -> bool:
    """Tell whether this torch was built with oneDNN and lets it be called."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def mkl_is_slow() -> bool:
    """Tell whether this CPU has AVX-512, but not the maker for which MKL uses it."""
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not has_mkl or not one_dnn_is_there():
        return False
    information = Path("/proc/cpuinfo")
    maker = information.read_text() if information.is_file() else platform.processor()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in maker
