"""ONNX to a TensorRT engine. Runs in a process of its own.

There is one path for TensorRT 10, 11 and RTX: a strongly typed network, whose precision is the graph's
own. (TensorRT 11 has no other; its builder knows no flag for 16 bits, and code that looks for one builds
32 bits in silence.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everlearn_runtime.backends.graph import check_graph
from everlearn_runtime.backends.onnxruntime import TOKENS
from everlearn_runtime.backends.tensorrt import library
from everlearn_runtime.backends.tensorrt.cache import writing

LEVEL = 3  # TensorRT's own
_MIB = 1 << 20


@dataclass(frozen=True)
class Request:
    """What to build.

    Args:
        graph: The ONNX file.
        engine: Where to write the engine.
        timing: Where the builder's timings are kept; None: nowhere.
        batches: One optimisation profile each, of exactly this batch: a CUDA graph needs fixed shapes.
        memory: Most MiB of scratch space a layer may take; None: all that is there.
        level: How hard the builder tries, 0 to 5.
        sm: Compute capability to build for without its GPU, such as ``"SM86"``; TensorRT-RTX only.
            None: the GPU that is here.
    """

    graph: str
    engine: str
    timing: str | None
    batches: Sequence[int]
    memory: int | None
    level: int
    sm: str | None


def parse(trt: Any, graph: bytes, name: str, log: Any) -> tuple[Any, Any]:
    """A graph as a strongly typed network.

    Args:
        trt: The library.
        graph: The bytes of an ONNX file.
        name: Of the file, for messages.
        log: See `library.make_log`.

    Returns:
        The builder, which must outlive the network, and the network.

    Raises:
        ValueError: TensorRT does not take this graph; the message names the node.
    """
    builder = trt.Builder(log)
    # No flag where all networks are strongly typed.
    typed = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
        raise ValueError(
            f"{name}: TensorRT does not take this graph ({said or 'no reason given'}); export it with "
            "target='tensorrt'"
        )
    for output in [network.get_output(index) for index in range(1, network.num_outputs)]:
        if output.name == TOKENS:  # for a training step; an engine's weights are fixed
            network.unmark_output(output)
    if network.num_inputs != 1 or network.num_outputs != 1 or len(network.get_input(0).shape) != 4:
        raise ValueError(f"{name}: the graph must take one uint8 NHWC tensor and give one; export it again")
    return builder, network


def build(trt: Any, request: Request) -> None:
    """Build an engine and write it down.

    Raises:
        ValueError: The graph is not taken, there is no GPU, the builder gives up, or what it gives cannot be
            written.
    """
    graph = Path(request.graph).read_bytes()
    check_graph(graph, request.graph)
    log = library.make_log(trt)
    builder, network = parse(trt, graph, request.graph, log)
    config = builder.create_builder_config()
    images = network.get_input(0)
    for batch in request.batches:
        profile = builder.create_optimization_profile()
        shape = (batch, *tuple(images.shape)[1:])
        profile.set_shape(images.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    if request.memory is not None:
        for pool in (trt.MemoryPoolType.WORKSPACE, trt.MemoryPoolType.TACTIC_DRAM):
            config.set_memory_pool_limit(pool, request.memory * _MIB)
    config.builder_optimization_level = request.level
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # or no CUDA graph can be captured
    if request.sm is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, request.sm), 0)
    timing = None if request.timing is None or library.is_rtx(trt) else Path(request.timing)
    if timing is not None:  # TensorRT-RTX measures nothing when it builds
        known = timing.read_bytes() if timing.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(
            f"TensorRT cannot build this graph: {'; '.join(log.errors[-3:]) or 'no reason given'}"
        )
    with writing(Path(request.engine).parent.parent):
        Path(request.engine).write_bytes(engine)
        if timing is not None:
            part = Path(request.engine).with_suffix(".timing")
            part.write_bytes(config.get_timing_cache().serialize())
            part.replace(timing)


def build_apart(asked: dict[str, Any]) -> None:
    """:func:`build`, as a process of its own calls it."""
    build(library.load(), Request(**asked))
