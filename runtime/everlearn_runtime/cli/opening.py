"""The learner that a command works with."""

from __future__ import annotations

import argparse
from pathlib import Path

from everlearn_runtime.edge import FALSE_ALARM, EdgeLearner
from everlearn_runtime.files import check_place


def open_learner(
    arguments: argparse.Namespace,
    *,
    new: bool = False,
    read_only: bool = False,
    migrate: bool = False,
    false_alarm: float = FALSE_ALARM,
) -> EdgeLearner:
    """Open the learner that a command works with.

    Args:
        arguments: The command's.
        new: Make a state file that is not there.
        read_only, migrate, false_alarm: See `EdgeLearner.open`.
    """
    if arguments.state is not None and not new and not Path(arguments.state).is_file():
        raise ValueError(f"{arguments.state}: no such state file; `everlearn-device learn` makes one")
    return EdgeLearner.open(
        arguments.bundle,
        state=arguments.state,
        backend=arguments.backend,
        providers=arguments.provider,
        threads=arguments.threads,
        read_only=read_only and arguments.state is not None,
        migrate=migrate,
        false_alarm=false_alarm,
        trust=arguments.trust,
    )


def check_file(path: str, what: str) -> None:
    """See that a file can be written, before work is spent on what goes into it."""
    if not Path(path).parent.is_dir():
        raise ValueError(f"{what} is {path}, and there is no folder {Path(path).parent}; make it first")
    check_place(path, what)
