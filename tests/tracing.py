"""Graphs of the same module, traced once in a run of all tests.

The exporter takes seconds for each. What it made is held against torch at every export all the same, by the
gates of `export_bundle`, so that a graph of another module would be refused.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from everlearn_export.onnx import to_onnx
from everlearn_export.train_step import Trainable, to_step


@pytest.fixture(scope="session", autouse=True)
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever exports the same module to the bit, here or in another worker, gets the same graph."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers'

    def graph(module: nn.Module, *given: Any) -> bytes:
        return _kept(folder / f"{_digest(module, given)}.onnx", lambda: to_onnx(module, *given))

    def step(trainable: Trainable, example: Tensor) -> bytes:
        about = (tuple(trainable.sections), tuple(example.shape), trainable.blocks, trainable.settings)
        return _kept(folder / f"{_digest(trainable.tail, about)}.onnx", lambda: to_step(trainable, example))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everlearn_export.bundle.to_onnx", graph)
        patch.setattr("everlearn_export.step_parity.to_step", step)
        # torch reads the sources of all its translations for each graph anew.
        once = functools.cache(ONNXRegistry.from_torchlib)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(once))
        yield


def _kept(path: Path, make: Callable[[], bytes]) -> bytes:
    if path.exists():
        return path.read_bytes()
    graph, whole = make(), path.with_suffix(f".{os.getpid()}")
    whole.write_bytes(graph)
    whole.replace(path)
    return graph


def _said(value: object) -> str:
    """How a module is set, as text that is the same in every process."""
    if isinstance(value, (nn.Module, Tensor)) or " at 0x" in (text := repr(value)) or "tensor(" in text:
        return f"{type(value).__module__}.{type(value).__qualname__}"
    return text


def _digest(module: nn.Module, about: object) -> str:
    """Of what a module is and how it is set, of its weights to the bit, and of which of them are trained."""
    set_to = [
        (
            type(one).__module__,
            type(one).__qualname__,
            sorted((key, _said(value)) for key, value in vars(one).items()),
        )
        for one in module.modules()
    ]
    found = hashlib.sha256(repr((module, set_to, about)).encode())
    named = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in named:
        found.update(f"{name} {tensor.requires_grad} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().to(torch.float64).numpy().tobytes())
    return found.hexdigest()
