"""``everlearn-device``: predict, learn, take back and tell, on the runtime alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from everlearn_runtime.cli.learning import learn
from everlearn_runtime.cli.parser import make_parser
from everlearn_runtime.errors import MissingExtra
from everlearn_runtime.names import shown
from everlearn_runtime.spoken import DEVICE, as_typed, told
from everlearn_runtime.terminal import escaping


def main(argv: Sequence[str] | None = None, program: str = DEVICE) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None: those of the process.
        program: What was typed before them; each message begins with it.

    Returns:
        0; 1 if some files could not be used, and the others were; 2 after a user's mistake, which is one line
        on stderr; or 130 after an interrupt.
    """
    with escaping():
        arguments = _parsed(argv, program)
        say = arguments.say = _Complaints(program)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = say.warning
                result, text = arguments.run(arguments)
        except (ValueError, OSError, MissingExtra) as error:
            say(told(error))
            return 2
        except KeyboardInterrupt:
            say(f"interrupted{arguments.interrupted}")
            return 130
        _say(json.dumps(result) if arguments.json else text, say)
        return 1 if result.get("bad") else 0


class _Complaints:
    """What goes to stderr, a line each.

    Args:
        program: What they begin with.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        # `everlearn` hands only some of the commands on, so messages name the others by the device's program.
        self.commands = DEVICE if program == "everlearn" else program

    def __call__(self, text: str) -> None:
        print(f"{self._program}: {as_typed(text, self.commands)}", file=sys.stderr, flush=True)

    def warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """A warning as this command says things."""
        self(str(message))


def _parsed(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = make_parser(program)
    arguments, rest = parser.parse_known_args(argv)
    if rest and (arguments.run is not learn or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse has no end of images that may be none, with an option between the class and them
        arguments.images += rest
    return arguments


def _say(text: str, say: Callable[[str], None]) -> None:
    """Print the answer. Whatever was to be done is done by now, and not undone by a reader that is gone."""
    try:
        print("\n".join(map(shown, text.split("\n"))), flush=True)
    except OSError as error:
        # What is still to be written goes nowhere, or Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # as of `| head`
            say(f"done, but the answer could not be printed: {error.strerror}")
