"""Where a graph of lower precision loses: its layers beside those of the exact one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

KINDS = ("Conv", "MatMul", "Gemm", "Add", "LayerNormalization", "Softmax", "Gelu")
LAYERS = 3
"""So many of the worst are named."""


def worst_layers(exact: bytes, lowered: bytes, images: NDArray[np.uint8], count: int = LAYERS) -> list[str]:
    """The layers at which a lowered graph's values come to differ most from the exact one's.

    The difference of a layer's output is relative to its size, root mean squares over the images; what
    its inputs already differ by is subtracted.

    Args:
        exact: the ONNX graph of 32-bit floats.
        lowered: the same graph in another precision, by `lower`: it has kept the values' names.
        images: some real ones, uint8 (N, H, W, 3).
        count: how many.

    Returns:
        Names and what each adds, the worst first, such as ``"blocks.3.mlp.fc2 +0.12"``.
    """
    model = onnx.load_from_string(exact)
    other = {name for node in onnx.load_from_string(lowered).graph.node for name in node.output}
    names = [node.output[0] for node in model.graph.node if node.op_type in KINDS and node.output[0] in other]
    before, after = _values(exact, names, images), _values(lowered, names, images)
    gaps = {name: _gap(before[name], after[name]) for name in names}
    titles = _titles(model)
    grown: dict[str, float] = {}
    for node in model.graph.node:  # from the images to the features
        given = max((gaps.get(name, 0.0) for name in node.input), default=0.0)
        name = node.output[0]
        if name in before:
            # What is not finite stays so in all that comes after, which is not to blame.
            own = 0.0 if np.isinf(given) else gaps[name] - given
            grown[titles[name]] = max(own, grown.get(titles[name], 0.0))
        else:  # a change of shape, or a part: what it is given goes on
            gaps.update(dict.fromkeys(node.output, given))
    worst = sorted(grown.items(), key=lambda pair: -pair[1])[:count]
    return [f"{title} +{gap:.2g}" for title, gap in worst if gap > 0]


def _values(graph: bytes, names: list[str], images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Values inside of a graph, by name."""
    import onnxruntime

    model = onnx.load_from_string(graph)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run(names, {session.get_inputs()[0].name: images})
    return {name: value.astype(np.float64) for name, value in zip(names, values, strict=True)}


def _gap(exact: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    size = float(np.sqrt((exact**2).mean()))
    gap = float(np.sqrt(((other - exact) ** 2).mean()))
    if not np.isfinite(gap):
        return float("inf")
    return gap / size if size else gap


def _titles(model: onnx.ModelProto) -> Mapping[str, str]:
    """Each value's layer: the module that it comes from; a sum outside of the blocks goes by what it adds."""
    titles: dict[str, str] = {}
    for node in model.graph.node:
        path, _, rest = node.name.rpartition("/")
        title = path or rest
        if node.op_type == "Add" and path in ("", "features"):
            added = [titles[name] for name in node.input if name in titles]
            title = f"the sum with {added[-1]}" if added else rest
        titles.update(dict.fromkeys(node.output, title))
    return titles
