"""Features of several depths in the exported graph: one pass, and the same numbers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from everlearn import NTKCL, Frozen, Method
from everlearn_runtime import OnnxRuntime

from ..conftest import coloured, make_learner, pixels, vit

OF_BLOCKS = ("MatMul", "Gemm", "Softmax", "Erf", "Gelu", "Conv")


@pytest.mark.parametrize("make", [Frozen, NTKCL])
def test_the_graph_passes_the_backbone_once(make: Callable[..., Method], tmp_path: Path) -> None:
    nodes = []
    forms: list[dict[str, Any]] = [{"patches": True}, {"depths": "auto"}]
    for number, options in enumerate(forms):
        learner = make_learner(make(**options), backbone=vit(depth=4)).fit(coloured("ab"))
        manifest = learner.export(tmp_path / str(number))
        graph = tmp_path / str(number) / "features.onnx"
        counted = Counter(node.op_type for node in onnx.load(graph).graph.node)
        nodes.append({kind: counted[kind] for kind in OF_BLOCKS})
    assert nodes[0] == nodes[1]
    assert nodes[0]["Softmax"] == 4
    assert manifest.sections == (48,) * 5
    assert manifest.parity["top1_agreement"] == 1
    images = coloured("ab", 8)
    rows, features = pixels(images, learner), learner.features(images)
    backend = OnnxRuntime(graph, threads=1)
    for batch in (1, 2, 16):
        assert np.abs(backend.run(rows[:batch]) - features[:batch]).max() < 1e-5
    backend.close()
