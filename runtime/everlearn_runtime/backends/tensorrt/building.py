"""Engines of a bundle: built in a process of its own, whose memory the device has back, and kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn_runtime.backends.gpu import NoGpu, first_gpu
from everlearn_runtime.backends.tensorrt import library
from everlearn_runtime.backends.tensorrt.cache import EngineCache, Key
from everlearn_runtime.backends.tensorrt.network import LEVEL, Request, build_apart
from everlearn_runtime.child import Killed, run_apart

if TYPE_CHECKING:
    from everlearn_runtime.bundle import Bundle

BATCHES = (1, 16)  # a picture of a camera, and what learning runs at once


@dataclass(frozen=True)
class Built:
    """An engine in the cache.

    Args:
        key: What it was made from and for.
        nbytes: Of the engine.
        cached: It had been there before.
    """

    key: Key
    nbytes: int
    cached: bool


def build_engine(
    bundle: Bundle,
    *,
    batches: Sequence[int] = BATCHES,
    memory: int | None = None,
    level: int = LEVEL,
    sm: str | None = None,
    cache: str | Path | None = None,
) -> Built:
    """Build the engine of a bundle's graph, if the cache does not have it.

    Args:
        bundle: Whose graph; its precision is the engine's.
        batches: Sizes to build for. Any number of images goes through in parts of these sizes.
        memory: Most MiB of scratch space a layer may take; None: all that is there.
        level: How hard the builder tries, 0 (fast, little memory) to 5.
        sm: Compute capability to build for without its GPU, such as ``"SM86"``; TensorRT-RTX only.
        cache: Folder of engines, see `everlearn_runtime.backends.tensorrt.cache.EngineCache`.

    Raises:
        MissingExtra: TensorRT is not installed.
        ValueError: An argument out of range, no GPU, a graph that TensorRT does not take, or a
            builder that gave up or was killed.
    """
    sizes = tuple(sorted(set(batches)))
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"batches is {batches!r}; give whole numbers, at least 1")
    if memory is not None and (type(memory) is not int or memory < 1):
        raise ValueError(f"memory is {memory!r}; give a whole number of MiB, at least 1, or None")
    if type(level) is not int or not 0 <= level <= 5:
        raise ValueError(f"level is {level!r}; give 0 (fast) to 5 (thorough)")
    trt = library.load()
    key = Key(
        graph=graph_of(bundle),
        library=library.says(trt),
        gpu=target(trt, sm),
        batches=sizes,
        precision=str(bundle.manifest.parity.get("precision", "fp32")),
        memory=memory,
        level=level,
    )
    engines = EngineCache(cache)
    if (engine := engines.get(key)) is not None:
        return Built(key, len(engine), True)
    with engines.building(key) as (folder, lock):
        made = folder / "features.engine"
        timing = engines.timing(key.library, key.gpu)
        _run(Request(str(bundle.features), str(made), str(timing), sizes, memory, level, sm), lock)
        nbytes = made.stat().st_size
        if hashlib.sha256(bundle.features.read_bytes()).hexdigest() != key.graph:
            raise ValueError(f"{bundle.features} was changed while its engine was built; build it again")
        engines.put(key, made)
    return Built(key, nbytes, False)


def graph_of(bundle: Bundle) -> str:
    """sha256 of a bundle's graph."""
    return bundle.manifest.files[bundle.features.name]


def target(trt: Any, sm: str | None = None) -> str:
    """What an engine of this library is tied to: the GPU, or its compute capability alone.

    Args:
        trt: The library.
        sm: A compute capability instead of that of the GPU that is here.

    Raises:
        ValueError: No GPU, or a capability that the library does not build for.
    """
    rtx = library.is_rtx(trt)
    if sm is None:
        try:
            gpu = first_gpu()
        except NoGpu as error:
            raise ValueError(f"{library.says(trt)} cannot run here: {error}") from None
        return gpu.sm if rtx else f"{gpu.name}, {gpu.sm}"
    if not rtx:
        raise ValueError(f"{library.says(trt)} builds only for the GPU that is here; leave out {sm!r}")
    known = [name for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    if sm not in known:
        raise ValueError(f"{library.says(trt)} does not build for {sm!r}; it knows {', '.join(known)}")
    return sm


def _run(request: Request, lock: int) -> None:
    """Build in a process of its own, which holds the lock too, so that it counts until both are gone."""
    try:
        run_apart(build_apart, asdict(request), files=(lock,))
    except Killed as error:
        raise ValueError(
            f"the build failed: {error}; if memory ran out, build with less of it (--memory 256), at a "
            "lower --level or for smaller batches"
        ) from None
