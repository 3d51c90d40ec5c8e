"""The command line: everlearn train | bench | report | export | predict | info | keys | sign | merge.

Nothing of torch is imported before a command has been typed that needs it, so that help comes at once and
mistakes in arguments are told at once.
"""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from everlearn.cli import fleet, paths
from everlearn.cli.parser import make_parser
from everlearn.errors import ElsewhereError, need_training
from everlearn.info import describe, is_run
from everlearn_runtime import cli as device
from everlearn_runtime.cli.tables import table
from everlearn_runtime.errors import MissingExtra
from everlearn_runtime.spoken import ARGUMENTS, as_typed, told
from everlearn_runtime.terminal import escaping
from everlearn_runtime.words import plural

__all__ = ["main"]

_GOES_ON = "the same command goes on where this one stopped"
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_OWN = {
    **{
        name: (name, f"--{name.replace('_', '-')}")
        for name in (
            *("backbone", "batch_size", "classes_per_task", "device", "epochs", "head", "lr", "method"),
            *("precision", "readouts", "recipe", "samples", "seed", "weights", "workers"),
        )
    },
    "batch": ("batch", "--batch"),
    "calibration": ("images", "--images"),
    "on_error='skip'": ("skip_bad", "--skip-bad"),
}
"""By argument that messages name: what a command has parsed that takes it, and how it is typed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        0, 2 after a user's mistake (one line on stderr), or 130 after an interrupt.
    """
    with escaping(), _main_prints():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["predict"] or (arguments[:1] == ["info"] and not _is_run(arguments)):
        return device.main(arguments, "everlearn")  # the device's own command, so that both say the same
    parsed = make_parser().parse_args(arguments)
    try:
        if parsed.run == "info":
            print(table(describe(parsed.path), as_json=parsed.json))
            return 0
        if parsed.run in fleet.NAMES:
            print(fleet.run(parsed))
            return 0
        need_training()
        paths.check(parsed)
        from everlearn.cli import commands

        commands.run(parsed)
    except (ValueError, OSError, MissingExtra, FloatingPointError, ElsewhereError) as error:
        print(f"everlearn: {as_typed(_told(error, parsed), arguments=_arguments(parsed))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"everlearn: interrupted{_kept(parsed)}", file=sys.stderr)
        return 130
    return 0


def _told(error: Exception, parsed: argparse.Namespace) -> str:
    """What to say of an error; of a disk that takes no more also where, and how to go on."""
    text = told(error)
    if not isinstance(error, OSError) or error.errno not in _OF_THE_DISK:
        return text
    if error.filename is None and hasattr(parsed, "out"):
        text = f"{parsed.out}: {text}"
    return (
        f"{text}; make room, and the same command goes on where this one stopped" if parsed.goes_on else text
    )


def _kept(parsed: argparse.Namespace) -> str:
    """After an interrupt: what is finished, and how to go on."""
    if parsed.run == "export":
        there = Path(parsed.out).exists()
        return f"; {parsed.out} is whole, as it was or anew" if there else f"; nothing is at {parsed.out}"
    if not parsed.goes_on:
        return ""
    if not is_run(Path(parsed.out)):
        return "; nothing is finished yet, and the same command begins anew"
    try:
        facts = describe(parsed.out)
    except ValueError:
        return f"; {_GOES_ON}"
    if facts["what"] == "benchmark":
        finished = plural(facts["runs"], "run")
    else:
        finished = facts.get("measured", plural(facts.get("tasks", 0), "task"))
    return f"; {parsed.out} has {finished}, and {_GOES_ON}"


def _arguments(parsed: argparse.Namespace) -> dict[str, str]:
    """What sets the arguments that a message may name; what this command lacks, only Python sets."""
    own = {name: typed for name, (has, typed) in _OWN.items() if hasattr(parsed, has)}
    return {**ARGUMENTS, **own}


def _is_run(arguments: list[str]) -> bool:
    """Whether ``info`` is asked of what a workstation has written, or for help."""
    paths = [text for text in arguments[1:] if not text.startswith("-")]
    return "-h" in arguments or "--help" in arguments or any(is_run(Path(path)) for path in paths)


@contextlib.contextmanager
def _main_prints() -> Iterator[None]:
    """Throw away what other processes than the main one print, where several were launched."""
    if "RANK" not in os.environ:
        yield
        return
    from everlearn import processes

    with processes.main_prints():
        yield
