"""``build`` and ``serve``: an engine for a GPU, and a page to teach from."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from everlearn_runtime.bundle import Bundle
from everlearn_runtime.cli.opening import open_learner
from everlearn_runtime.serving.command import serve


def serve_page(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Serve the page until it is stopped."""
    return serve(arguments, lambda given: open_learner(given, new=True))


def build(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Build an engine in a process of its own."""
    from everlearn_runtime.backends.tensorrt import BATCHES, build_engine

    built = build_engine(
        Bundle.open(arguments.bundle, arguments.trust),
        batches=arguments.batch or BATCHES,
        memory=arguments.memory,
        level=arguments.level,
        sm=arguments.sm,
    )
    key = built.key
    text = (
        f"{'there already' if built.cached else 'built'}: {key.precision} engine of {built.nbytes:,} bytes, "
        f"batches of {' and '.join(map(str, key.batches))}, for {key.gpu} and {key.library}"
    )
    return {**asdict(key), "bytes": built.nbytes, "cached": built.cached}, text
