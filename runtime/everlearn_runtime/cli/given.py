"""The pictures that are given to a command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from everlearn_runtime.images import InputSpec
from everlearn_runtime.picking import Bad, Picture, files_in, misnamed, pictures

BATCH = 32
MOST_NAMES = 20  # of files that cannot be used, on the terminal


class Given:
    """The pictures in files and folders, batch by batch, and what there is to say of the others.

    Args:
        paths: As they were typed.
        spec: What the graph takes in.
        arguments: With ``strict``, to refuse all if one of them cannot be used, and ``say``.
    """

    def __init__(self, paths: Sequence[str], spec: InputSpec, arguments: argparse.Namespace) -> None:
        self.files, self.ignored = files_in(paths)
        self.bad: list[Bad] = []
        self._spec = spec
        self._strict: bool = arguments.strict
        self._say: Callable[[str], None] = arguments.say

    def batches(self) -> Iterator[list[Picture]]:
        """The pictures, at most `BATCH` together, and at their end a word about what could not be used."""
        batch: list[Picture] = []
        usable = False
        for picture in pictures(self.files, self._spec, self.bad):
            usable = True
            batch.append(picture)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if self.bad and (self._strict or not usable):
            more = f"; {len(self.bad) - 1} more cannot be used" if len(self.bad) > 1 else ""
            raise ValueError(f"{self.bad[0].image}: {self.bad[0].reason}{more}")
        if batch:
            yield batch
        for one in self.bad[:MOST_NAMES]:
            self._say(f"left out {one.image}: {one.reason}")
        if len(self.bad) > MOST_NAMES:
            self._say(f"left out {len(self.bad) - MOST_NAMES} more")
        if self.ignored:
            files = "1 file that is" if len(self.ignored) == 1 else f"{len(self.ignored)} files that are"
            self._say(f"ignored {files} no image by name, such as {self.ignored[0]}")
        for path, form in misnamed(self.ignored)[:MOST_NAMES]:
            self._say(f"{path} is {form} by its content: rename it")

    def said(self) -> dict[str, Any]:
        """The same for machines."""
        return {"bad": [asdict(one) for one in self.bad], "ignored": self.ignored}
