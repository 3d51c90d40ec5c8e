"""What is printed arrives, whatever the terminal's encoding."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def escaping() -> Iterator[None]:
    """Let stdout and stderr spell out what their encoding does not have, in this block.

    A class may have any name, a terminal under ``LANG=C`` only ASCII: ``杯`` is printed as ``\\u676f``.
    """
    changed = [
        (stream, stream.errors)
        for stream in (sys.stdout, sys.stderr)
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace"
    ]
    for stream, _ in changed:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                stream.reconfigure(errors=errors)
