"""Messages as they are told at a command line: in one line, with options in the place of Python's arguments.

Everywhere else messages name what a caller can set as Python does: ``train_step='last2'``, ``steps is 0; give
...``, ``see history()``. Here, and nowhere else, that becomes what is typed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

DEVICE = "everlearn-device"

ARGUMENTS: Mapping[str, str] = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("backend", "canaries", "false_alarm", "guard", "level", "memory", "min_count", "noise"),
            *("overwrite", "port", "precision", "rate", "removable", "seconds", "since", "steps", "target"),
            *("target_delta", "threads", "train_step", "trust"),
        )
    },
    "batches": "--batch",
    "clip": "--clip",
    "k": "--top",
    "migrate": f"`{DEVICE} migrate`",
    "multiplier": "--noise",
    "noise_multiplier": "--noise",
    "providers": "--provider",
    "read_only": "a command that only reads",
    "state": "--state",
    "to": "VERSION",
}
"""What sets an argument that the device's messages name."""

_COMMANDS = ("backup", "history", "undo")
_LITERAL = r"'[^']*'(?: or '[^']*')*|True|False|None|\.\.\.|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def as_typed(message: str, program: str = DEVICE, arguments: Mapping[str, str] = ARGUMENTS) -> str:
    """A message of the library as somebody who typed a command needs it.

    Args:
        message: As an exception has it.
        program: What the device's commands are typed after, where that is not ``everlearn-device``.
        arguments: What sets each argument; ``name='value'`` where an option stands for that alone.

    >>> as_typed("export it with train_step='last2' or 'all'; see history()")
    'export it with --train-step last2 or all; see `everlearn-device history`'
    >>> as_typed("threads is 0; give None or a whole number")
    '--threads is 0; leave it out, or give a whole number'
    """

    def option(found: re.Match[str]) -> str:
        typed, value = arguments[found["name"]], found["value"]
        if value in (None, "True") or not typed.startswith("--"):
            return typed
        if value in ("None", "False"):
            return f"no {typed}"
        return f"{typed} {'FILE' if value == '...' else value.replace(chr(39), '')}"

    text = " ".join(message.split())
    for whole in [name for name in arguments if "=" in name]:
        text = text.replace(whole, arguments[whole])
    names = "|".join(sorted(arguments, key=len, reverse=True))
    # Not inside of a path or a name in quotes, which may hold anything.
    text = re.sub(rf"(?<![\w'\"./-])(?P<name>{names})=(?P<value>{_LITERAL})?(?![\w/]|\.\w)", option, text)
    text = re.sub(rf"^(?P<name>{names})(?= is | must be )", lambda found: arguments[found["name"]], text)
    text = text.replace("; give None or ", "; leave it out, or give ")
    text = re.sub(r", or None\b(?! to)", ", or leave it out", text)
    text = re.sub(rf"(?<![\w'\"./-])({'|'.join(_COMMANDS)})\(\)", rf"`{DEVICE} \1`", text)
    return text if program == DEVICE else text.replace(f"{DEVICE} ", f"{program} ")


def told(error: BaseException) -> str:
    """An error as one sentence, without numbers that only an operating system knows.

    >>> told(PermissionError(13, "Permission denied", "run/learner.safetensors"))
    'run/learner.safetensors: permission denied'
    """
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ImportError):
        why = error.strerror[0].lower() + error.strerror[1:]
        return f"{error.filename}: {why}" if error.filename is not None else why
    return str(error)
