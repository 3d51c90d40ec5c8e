"""``status``, ``info`` and ``benchmark``: what there is, and how fast."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from everlearn_runtime.benchmark import Case, benchmark
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.cli.opening import open_learner
from everlearn_runtime.cli.tables import aligned, table
from everlearn_runtime.info import describe

_RESIZED = {"center": "shorter side to", "squash": "squeezed to", "border": "bordered within"}


def status(arguments: argparse.Namespace) -> tuple[Any, str]:
    """What is known, and how much room it takes."""
    with open_learner(arguments, read_only=True) as learner:
        manifest, counts, backend = learner.bundle.manifest, learner.counts, learner.backend
        sizes = {"graph": learner.bundle.features.stat().st_size, "head": learner.nbytes}
    if arguments.state is not None:
        sizes["state"] = Path(arguments.state).stat().st_size
    spec = manifest.input
    said = {
        "format": manifest.format,
        "everlearn": manifest.everlearn,
        "input": spec.to_dict(),
        "features": list(manifest.sections),
        "head": manifest.head,
        "parity": manifest.parity,
        "bytes": sizes,
        "backend": backend,
        "classes": counts,
    }
    lines = [
        ("format", f"{manifest.format}, written by everlearn {manifest.everlearn}"),
        (
            "input",
            f"{spec.height} x {spec.width} RGB, {_RESIZED[spec.crop]} {spec.resize}, {spec.interpolation}",
        ),
        ("features", f"{manifest.width} in sections of {', '.join(map(str, manifest.sections))}"),
        ("head", f"{manifest.head['kind']} {json.dumps(manifest.head['options'])}"),
        ("backend", backend),
        *((f"parity {name}", json.dumps(value)) for name, value in manifest.parity.items()),
        *((f"{name} bytes", f"{size:,}") for name, size in sizes.items()),
    ]
    table = [(name, f"{count:,}") for name, count in counts.items()]
    return said, aligned(None, lines) + "\n\n" + aligned(("class", "samples"), table)


def info(arguments: argparse.Namespace) -> tuple[Any, str]:
    """What a bundle, a state or a delta is."""
    facts = describe(arguments.path)
    return facts, table(facts)


def measure(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Measure predict and learn on every backend that is there.

    Raises:
        ValueError: None of them, or not the one that was asked for.
    """
    Bundle.open(arguments.bundle, arguments.trust)
    cases = None
    if arguments.provider or arguments.backend != "auto":
        cases = [Case(arguments.backend, arguments.provider)]
    rows, missing = benchmark(
        arguments.bundle,
        batches=arguments.batch or (1, 16),
        seconds=arguments.seconds,
        threads=arguments.threads,
        cases=cases,
    )
    if not rows:
        raise ValueError(
            "; ".join(reason if cases else f"{name}: {reason}" for name, reason in missing.items())
        )
    said = {"rows": [asdict(row) for row in rows], "not_run": missing}
    header = ("backend", "call", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "peak MiB", "GPU MiB")
    table = [
        (
            row.backend,
            row.call,
            str(row.batch),
            *(f"{value:.2f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms)),
            f"{row.images_per_s:.0f}",
            *("-" if value is None else f"{value:.0f}" for value in (row.peak_mib, row.gpu_mib)),
        )
        for row in rows
    ]
    skipped = "".join(f"\nnot run: {name}: {reason}" for name, reason in missing.items())
    return said, aligned(header, table) + skipped
