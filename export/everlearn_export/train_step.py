"""A training step as an ordinary graph: it runs where a graph runs, and needs no training runtime.

The graph computes the loss of a batch, its gradient by what has to learn, and AdamW's update of it. Forward
and backward pass are traced by torch down to operators that ONNX has, so that nothing of autograd is left.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from everlearn_export.onnx import OPSET, quiet, uncollected, with_preprocessing
from everlearn_runtime.train_step import CLASSIFIER, FIRST, INPUTS, NEW, SECOND, Settings

SMALLEST_EPS = 1e-7
"""The exporter leaves out an addition of about 1e-8 or less, and 0 / 0 is then the first update."""

LARGEST_FOLDED = 4096
"""Bytes. The backward pass takes weights as they are, the forward pass transposed: folded, both are kept."""

EXAMPLE_BATCH, EXAMPLE_CLASSES = 5, 7  # none of them a size that a model has, nor 0 or 1


@dataclass(frozen=True)
class Trainable:
    """What goes on learning.

    Attributes:
        blocks: what it is called: ``"head"``, ``"last2"`` or ``"all"``.
        tail: from what is trained on to features (B, F), in evaluation mode; its parameters that require a
            gradient are the adapters, of which there may be none. That is features for ``"head"``, tokens for
            ``"last2"``, normalised images (B, 3, H, W) for ``"all"``.
        settings: of the loss and the optimizer.
        tasks: how many tasks' adapters the shipped ones are the mean of.
        sections: widths of the tail's feature sections; of the deployed features they are the first ones.
        whole: normalised images to features, and for ``"last2"`` to the tokens that the tail takes, too: what
            is deployed, with adapters of its own by the same names; None where there are none.
    """

    blocks: str
    tail: nn.Module
    settings: Settings
    tasks: int
    sections: Sequence[int]
    whole: nn.Module | None = None

    def __post_init__(self) -> None:
        if not self.settings.eps >= SMALLEST_EPS:
            raise ValueError(
                f"eps is {self.settings.eps}; give at least {SMALLEST_EPS}: the exporter leaves a smaller "
                "one out, and the first step divides zero by zero"
            )

    @property
    def adapters(self) -> dict[str, NDArray[np.float32]]:
        """The shipped values, by name, float32."""
        values = _trainable(self.tail)
        return {_plain(name): value.detach().cpu().numpy().copy() for name, value in values.items()}

    @property
    def deployed(self) -> dict[str, nn.Parameter]:
        """The adapters of ``whole``, by the names of those of ``tail``."""
        assert self.whole is not None
        return {name: self.whole.get_parameter(name) for name in _trainable(self.tail)}

    def behind(self, mean: Sequence[float], std: Sequence[float]) -> Trainable:
        """What the graph is made from: uint8 images where it trains on images, attention of plain products.

        The fused kernel's gradient is no ONNX operator.
        """
        tail = copy.deepcopy(self.tail)
        for module in tail.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]
        return replace(self, tail=with_preprocessing(tail, mean, std) if self.blocks == "all" else tail)


def loss_of(
    features: Tensor,
    labels: Tensor,
    classifier: Tensor,
    moved: Tensor,
    sections: Sequence[int],
    settings: Settings,
) -> Tensor:
    """The loss of a step: cross-entropy of each section of the features, and L2 to the shipped values.

    Args:
        features: (B, F).
        labels: int64 (B,), rows of the classifier.
        classifier: (C, F); logits are ``sharpness`` times the cosines with its rows, in each section.
        moved: sum of the squared distances of the adapters from their shipped values, ().
        sections: widths of the sections; they add up to F.
        settings: sharpness and regularisation.
    """
    # One-hot rows: ONNX has no gradient of a look-up.
    places = torch.arange(classifier.shape[0], device=labels.device)
    own = (labels[:, None] == places).to(features.dtype)
    widths = list(sections)
    parts = zip(torch.split(features, widths, 1), torch.split(classifier, widths, 1), strict=True)
    loss = settings.regularisation * moved
    for rows, weights in parts:
        cosines = F.normalize(rows, dim=1) @ F.normalize(weights, dim=1).T
        loss = loss - (own * (settings.sharpness * cosines).log_softmax(1)).sum(1).mean()
    return loss


def step_of(trainable: Trainable) -> Callable[..., tuple[Tensor, ...]]:
    """The step as a pure function.

    Its arguments are the inputs (B, ...), labels int64 (B,), the rate and the number of the step, from 1 on,
    as float32 of no dimensions; then the adapters and the classifier (C, F), and of all these AdamW's
    first and second moments. It gives the loss before the update, and the new ones of all these.
    """
    names, settings = list(_trainable(trainable.tail)), trainable.settings
    # Of their own: the tracer knows a tensor that is an argument too by its identity.
    shipped = [value.detach().clone() for value in _trainable(trainable.tail).values()]
    beta1, beta2 = settings.betas

    def step(
        inputs: Tensor, labels: Tensor, rate: Tensor, number: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        count = len(names) + 1
        values, firsts, seconds = state[:count], state[count : 2 * count], state[2 * count :]
        with torch.enable_grad():
            own = [value.detach().requires_grad_() for value in values]
            called = dict(zip(names, own, strict=False))
            features = torch.func.functional_call(trainable.tail, called, (inputs,))
            moved = sum(
                ((value - start).square().sum() for value, start in zip(own, shipped, strict=False)),
                torch.zeros(()),
            )
            loss = loss_of(features, labels, own[-1], moved, trainable.sections, settings)
            gradients = torch.autograd.grad(loss, own)
        new, new_firsts, new_seconds = [], [], []
        for value, gradient, first, second in zip(values, gradients, firsts, seconds, strict=True):
            first = beta1 * first + (1 - beta1) * gradient
            second = beta2 * second + (1 - beta2) * gradient * gradient
            size = (second / (1 - beta2**number)).sqrt() + settings.eps
            shrunk = value * (1 - rate * settings.weight_decay)
            new.append(shrunk - rate / (1 - beta1**number) * first / size)
            new_firsts.append(first)
            new_seconds.append(second)
        return (loss.detach(), *new, *new_firsts, *new_seconds)

    return step


def to_step(trainable: Trainable, example: Tensor) -> bytes:
    """Export the step to a checked, slimmed ONNX graph; batch and number of classes are dynamic.

    LayerNormalization is decomposed: with a gradient it has outputs that TensorRT does not take.

    Args:
        trainable: from `Trainable.behind`, on the CPU.
        example: one or more inputs of the step, (B, ...).
    """
    step, adapters = step_of(trainable), _trainable(trainable.tail)
    repeats = [EXAMPLE_BATCH] + [1] * (example.dim() - 1)
    state = [value.detach().clone() for value in adapters.values()]
    width, generator = sum(trainable.sections), torch.Generator().manual_seed(0)
    state.append(torch.randn(EXAMPLE_CLASSES, width, generator=generator))
    state += [torch.zeros_like(value) for value in (*state, *state)]
    arguments = (
        example[:1].repeat(repeats),
        torch.arange(EXAMPLE_BATCH),
        torch.tensor(1e-3),
        torch.tensor(1.0),
        *state,
    )
    names = [*map(_plain, adapters), CLASSIFIER]
    inputs = [INPUTS[trainable.blocks], "labels", "rate", "number", *names]
    inputs += [prefix + name for prefix in (FIRST, SECOND) for name in names]
    outputs = ["loss", *(NEW + name for name in inputs[4:])]
    batch, classes = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("classes", min=1, max=65536)
    dynamic: list[dict[int, Any] | None] = [
        {0: batch} if place < 2 else {0: classes} if name.endswith(CLASSIFIER) else None
        for place, name in enumerate(inputs)
    ]
    with warnings.catch_warnings(), quiet(), uncollected(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, none of the user's doing
        traced = make_fx(
            step, decomposition_table=_decompositions(), tracing_mode="symbolic", _allow_non_fake_inputs=True
        )(*_faked(arguments, dynamic))
        exported = torch.export.export(traced, arguments, dynamic_shapes=tuple(dynamic), strict=False)
        program = torch.onnx.export(
            exported,
            (),
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    del graph.graph.value_info[:]  # onnxslim makes nodes anew, and what was said of them is then wrong
    graph = onnxslim.slim(graph, size_threshold=LARGEST_FOLDED)
    del graph.graph.value_info[:]
    onnx.checker.check_model(graph, full_check=True)
    buffer = io.BytesIO()
    onnx.save(graph, buffer)
    return buffer.getvalue()


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def _plain(name: str) -> str:
    """The name of an adapter in the module that was given."""
    return name.removeprefix("features.")  # which stands behind the preprocessing


def _decompositions() -> dict[Any, Callable[..., Any]]:
    table = dict(torch.export.default_decompositions())
    table.update(torch._decomp.get_decompositions([torch.ops.aten.native_layer_norm]))
    return table


def _faked(arguments: Sequence[Tensor], dynamic: Sequence[Mapping[int, Any] | None]) -> list[Tensor]:
    """The arguments as tensors without values, whose dynamic sizes are symbols."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    faked: list[Tensor] = []
    for value, sizes in zip(arguments, dynamic, strict=True):
        kinds = [
            DimDynamic.DYNAMIC if sizes is not None and place in sizes else DimDynamic.STATIC
            for place in range(value.dim())
        ]
        context = StatelessSymbolicContext(dynamic_sizes=kinds)  # type: ignore[var-annotated]
        faked.append(mode.from_tensor(value, symbolic_context=context))
    return faked
