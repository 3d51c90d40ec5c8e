"""torch to ONNX: one static graph, preprocessing included."""

import io
import logging
import warnings
from collections.abc import Sequence

import onnx
import onnxslim
import torch
from torch import Tensor, nn

from everlearn_runtime.images import InputSpec

# LayerNormalization stays one node from 17 on (decomposed it overflows in fp16); from 23 on the
# exporter emits Attention, which TensorRT does not build.
OPSET = 20


class _WithPreprocessing(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        features: Tensor = self.features((pixels - self.mean) / self.std)
        return features


def with_preprocessing(features: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Put the normalisation in front: uint8 (B, H, W, 3) in, features (B, F) out.

    Args:
        features: module from normalised float32 (B, 3, H, W) to (B, F).
        mean, std: of the channels, for pixels in [0, 1].
    """
    return _WithPreprocessing(features, mean, std).eval()


def to_onnx(module: nn.Module, spec: InputSpec) -> bytes:
    """Export a module on uint8 images (B, H, W, 3) to a checked, slimmed ONNX graph.

    The batch is dynamic, the image size fixed; input ``images``, output ``features``.
    """
    # Two, not one: the exporter takes a batch of one for a constant, in silence.
    example = torch.zeros(2, spec.height, spec.width, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), _Quiet(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, none of the user's doing
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["images"],
            output_names=["features"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = onnxslim.slim(program.model_proto)
    onnx.checker.check_model(graph, full_check=True)
    buffer = io.BytesIO()
    onnx.save(graph, buffer)
    return buffer.getvalue()


class _Quiet:
    """Hold back the exporter's log lines."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
