"""Work in a process of its own, whose memory is given back with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

FAILED = 3  # the exit status of a child that says why


def run_apart(
    work: Callable[[dict[str, Any]], Any],
    asked: dict[str, Any],
    *,
    timeout: float | None = None,
    files: Sequence[int] = (),
) -> Any:
    """Call a function in a new process, and wait.

    Args:
        work: A function of a module, from and to plain JSON.
        asked: What it is given.
        timeout: Seconds after which it is killed.
        files: Open files that the process holds too.

    Returns:
        What the function returned.

    Raises:
        ValueError: What the function raised, or that it was killed or died.
    """
    program = (
        f"import sys; from {work.__module__} import {work.__name__} as work; "
        "from everlearn_runtime.child import answer; sys.exit(answer(work))"
    )
    # Where this process found things, so does the child.
    paths = os.pathsep.join(filter(None, sys.path))
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(asked),
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            pass_fds=() if sys.platform == "win32" else files,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it was not done after {timeout:.0f} seconds") from None
    if done.returncode < 0:
        raise Killed(f"it was killed by signal {-done.returncode}")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise ValueError(lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


class Killed(ValueError):  # noqa: N818 - says what happened
    """A signal ended the child: as a rule, memory ran out."""


def answer(work: Callable[[dict[str, Any]], Any]) -> int:
    """In the child: do the work that stdin asks for, and answer on stdout.

    Returns:
        The exit status.
    """
    try:
        print(json.dumps(work(json.load(sys.stdin))))
    except (ValueError, ImportError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return FAILED
    return 0
