"""``delta``: what was learned, to be handed in."""

from __future__ import annotations

import argparse
from typing import Any

from everlearn_runtime.cli.opening import check_file, open_learner
from everlearn_runtime.fleet import GaussianNoise


def delta(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Write what was learned since a version, as sums."""
    noise = _noise(arguments)
    check_file(arguments.to, "TO")
    with open_learner(arguments) as learner:
        delta = learner.delta(arguments.since, min_count=arguments.min_count, noise=noise)
    delta.save(arguments.to, key=arguments.key)
    start, end = (mark.version for mark in delta.span)
    said = {
        "path": str(arguments.to),
        "since": start,
        "version": end,
        "learned": delta.counts,
        "forgotten": list(delta.forgotten),
        "withheld": delta.withheld,
        **({} if noise is None else {"noise": noise.says(), "epsilon": delta.epsilon}),
    }
    learned = ", ".join(f"{count} of {name}" for name, count in delta.counts.items()) or "nothing"
    text = f"{arguments.to}: after version {start} up to {end}, learned {learned}"
    if delta.forgotten:
        text += f"; forgotten {', '.join(delta.forgotten)}"
    if delta.withheld:
        text += f"; withheld {delta.withheld} classes of fewer than {arguments.min_count} samples"
    if noise is not None:
        text += f"; noise of epsilon {delta.epsilon:.3g} at delta {noise.target_delta:g}"
    return said, text


def _noise(arguments: argparse.Namespace) -> GaussianNoise | None:
    given = {"--clip": arguments.clip, "--target-delta": arguments.target_delta}
    if arguments.noise is None:
        if alone := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{alone[0]} goes with --noise; give that, too")
        return None
    if arguments.clip is None:
        raise ValueError("--noise needs --clip, the length to which an image's features are shortened")
    rest = {} if arguments.target_delta is None else {"target_delta": arguments.target_delta}
    return GaussianNoise(arguments.noise, arguments.clip, **rest)
