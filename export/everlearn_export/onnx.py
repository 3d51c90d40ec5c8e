"""torch to ONNX: one static graph, preprocessing included."""

import ast
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import onnxslim
import torch
from torch import Tensor, nn

from everlearn_runtime.images import InputSpec

# LayerNormalization stays one node from 17 on (decomposed it overflows in fp16); from 23 on the
# exporter emits Attention, which TensorRT does not build.
OPSET = 20
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter says which module a node comes from


class _WithPreprocessing(nn.Module):
    scale: Tensor
    shift: Tensor

    def __init__(self, features: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.features = features
        # (pixel / 255 - mean) / std, as one product and one sum.
        deviations = torch.tensor(std, dtype=torch.float64)
        scale, shift = 1 / (255 * deviations), -torch.tensor(mean, dtype=torch.float64) / deviations
        self.register_buffer("scale", scale.to(torch.float32).view(1, 3, 1, 1))
        self.register_buffer("shift", shift.to(torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        pixels = images.to(torch.float32).permute(0, 3, 1, 2)  # in this order: TensorRT turns no uint8
        features: Tensor | tuple[Tensor, ...] = self.features(pixels * self.scale + self.shift)
        return features


def with_preprocessing(features: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Put the normalisation in front: uint8 (B, H, W, 3) in, features (B, F) out.

    Args:
        features: module from normalised float32 (B, 3, H, W) to (B, F).
        mean, std: of the channels, for pixels in [0, 1].
    """
    return _WithPreprocessing(features, mean, std).eval()


def to_onnx(module: nn.Module, spec: InputSpec, outputs: Sequence[str] = ("features",)) -> bytes:
    """Export a module on uint8 images (B, H, W, 3) to a checked, slimmed ONNX graph.

    The batch is dynamic, the image size fixed; input ``images``.

    Args:
        module: gives a tensor, or one for each output.
        spec: size of the images.
        outputs: names; the first is ``features``.
    """
    # Two, not one: the exporter takes a batch of one for a constant, in silence.
    example = torch.zeros(2, spec.height, spec.width, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), quiet(), uncollected(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, none of the user's doing
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["images"],
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    _name_by_module(graph)
    graph = onnxslim.slim(graph)
    # From the shapes of inner tensors ONNX Runtime plans which share memory, for the whole run ahead; left
    # without, it takes what was freed last, which is still in the cache: 9 % faster at a batch of 16.
    del graph.graph.value_info[:]
    onnx.checker.check_model(graph, full_check=True)
    buffer = io.BytesIO()
    onnx.save(graph, buffer)
    return buffer.getvalue()


def _name_by_module(model: onnx.ModelProto) -> None:
    """Put the module that a node comes from into its name: ``blocks.0.attn.qkv/MatMul_12``.

    It is what errors, profiles and lists of an engine's layers speak of. The exporter keeps it beside, where
    every tool after it drops it.
    """
    for node in model.graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
        path = ast.literal_eval(scopes[0])[-2:-1] if scopes else []  # the last is the node's own
        module = path[0].rpartition("model.")[2].removeprefix("features.") if path else ""
        module = "features" if module.endswith(".model") else module  # the model's own, of none of its layers
        if module and not module.startswith("_"):
            node.name = f"{module}/{node.name.removeprefix('node_')}"


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the exporter's log lines, and nothing that was held back before any the less."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage: what tracing makes lives to its end, and it is a tenth to a quarter faster."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
