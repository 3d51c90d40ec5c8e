"""Processes that only predict, beside the one that learns."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import StateError
from everlearn_runtime.heads import Head, Judgement
from everlearn_runtime.state.adapted import Adapters
from everlearn_runtime.state.anchor import Anchor, check_companion, check_kind, new_anchor
from everlearn_runtime.state.archive import Archive, Built, lineage
from everlearn_runtime.state.database import SCHEMA, content_errors, explained
from everlearn_runtime.state.lock import reading
from everlearn_runtime.state.looking import Looking
from everlearn_runtime.state.schema1 import read_schema1
from everlearn_runtime.state.versions import Version
from everlearn_runtime.state.view import companion, os_errors, view

TRIES = 20
WAIT = 0.02  # seconds between two
# Two changes may come within one tick of the file system's clock.
TICK = 50_000_000  # nanoseconds

Result = TypeVar("Result")
Signature = tuple[tuple[int, ...], ...]


class Reader(Looking):
    """A head as the owner of a state file has it, followed without a lock and without writing.

    The file is looked at whenever the head is asked for; what is new is read then. All that is read
    carries a checksum and hangs on the anchor, so if the owner overwrites something meanwhile that is
    noticed, and read again.

    Args:
        path: The file.
        model: sha256 of the graph and the head that the state goes with.
        bundle: Id of the bundle, which is what states of the first schema go with.
        base: Makes the bundle's own head, version 0.

    Raises:
        StateError: There is no such state, it is damaged, or goes with something else.
    """

    def __init__(self, path: str | Path, *, model: str, bundle: str, base: Callable[[], Head]) -> None:
        self.path = Path(os.path.realpath(path))
        self._companion = companion(self.path)
        with os_errors(self.path):
            if not self.path.is_file():
                raise StateError(f"{path}: no such state file to read; open it without read_only to make one")
            self._companion.exists()  # or its name is too long
        self._model = model
        self._bundle = bundle
        self._base = base
        self._sure = False
        self._anchor: Anchor
        self._head: Head
        self._adapters = None
        self._signature: Signature = ()
        self._refresh()

    @property
    def head(self) -> Head:
        """The head as the file has it now; to be read, not changed.

        Raises:
            StateError: The file cannot be read any more.
        """
        self._refresh()
        return self._head

    @property
    def version(self) -> int:
        """The number of the last change."""
        self._refresh()
        return self._anchor.version

    def history(self) -> list[Version]:
        """The versions that the owner can go back to, oldest first."""
        return self._read(
            lambda database: (
                [event.told() for _, event in self._archive(database).events()]
                if check_kind(database, self.path) == SCHEMA
                else []
            )
        )

    def learn(
        self,
        features: NDArray[np.floating[Any]],
        labels: Sequence[str],
        judgement: Judgement | None = None,
    ) -> NoReturn:
        """Refuse; raises a StateError."""
        self._refuse()

    def adapt(self, head: Head, adapters: Adapters, labels: Sequence[str]) -> NoReturn:
        """Refuse; raises a StateError."""
        self._refuse()

    def forget(self, label: str) -> NoReturn:
        """Refuse; raises a StateError."""
        self._refuse()

    def purge(self, label: str) -> NoReturn:
        """Refuse; raises a StateError."""
        self._refuse()

    def rollback(self, to: int) -> NoReturn:
        """Refuse; raises a StateError."""
        self._refuse()

    def undo(self) -> NoReturn:
        """Refuse; raises a StateError."""
        self._refuse()

    def backup(self, path: str | Path) -> NoReturn:
        """Refuse; raises a StateError."""
        raise StateError(f"{self.path} was opened with read_only=True; let the learner that owns it copy it")

    def check_writable(self) -> NoReturn:
        """Refuse; raises a StateError."""
        self._refuse()

    def close(self) -> None:
        """Nothing to give back."""

    def _refuse(self) -> NoReturn:
        raise StateError(f"{self.path} was opened with read_only=True; open it without to change it")

    def _refresh(self) -> None:
        if self._sure and self._unchanged():
            return
        signature = self._look()
        self._read(self._follow)
        # What was changed just now may be changed again without a trace.
        newest = max(times[2] for times in signature if times)
        self._signature = signature if time.time_ns() - newest > TICK else ()

    def _unchanged(self) -> bool:
        return self._signature == self._look()

    def _look(self) -> Signature:
        """What tells one state of the files from another."""
        return _look(self.path), _look(self._companion)

    def _read(self, use: Callable[[sqlite3.Connection], Result]) -> Result:
        """Read through a connection of its own, as often as it takes."""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT)
            try:
                return self._read_once(use)
            except TimeoutError:  # an OSError, but a signal handler's
                raise
            except (StateError, sqlite3.Error, OSError) as error:
                problem = error
        if isinstance(problem, sqlite3.Error):
            raise explained(self.path, problem) from problem
        if isinstance(problem, OSError):
            raise StateError(f"{self.path}: {problem.strerror}; it cannot be read any more") from problem
        raise problem

    def _read_once(self, use: Callable[[sqlite3.Connection], Result]) -> Result:
        if not self._sure:
            check_companion(self.path)
        with reading(self.path), view(self.path) as database, content_errors(self.path):
            return use(database)

    def _archive(self, database: sqlite3.Connection) -> Archive:
        return Archive(database, self.path, self._model, self._base)

    def _follow(self, database: sqlite3.Connection) -> None:
        if check_kind(database, self.path) != SCHEMA:
            self._anchor = new_anchor(self._model)
            self._head, self._adapters = read_schema1(database, self.path, self._bundle), None
            self._sure = True
            return
        archive = self._archive(database)
        anchor = archive.anchor()
        if not (self._sure and self._go_on(archive, anchor)):
            self._sure = False
            built = archive.build(anchor.seq, archive.rollbacks())
            self._head, self._adapters = built.head, built.adapters
        self._anchor = anchor
        self._sure = True

    def _go_on(self, archive: Archive, anchor: Anchor) -> bool:
        """Replay what is new; False if that does not lead to the new head."""
        known = self._anchor
        if anchor == known:
            return True
        if anchor.id != known.id or not archive.floor() <= known.seq <= anchor.seq:
            return False
        if archive.digest(known.seq) != known.digest:
            return False
        if anchor.seq == known.seq:
            return True
        if not any(first <= known.seq + 1 for first, _ in list(lineage(anchor.seq, archive.rollbacks()))[:1]):
            return False
        self._sure = False
        built = Built(self._head, adapters=self._adapters)
        archive.replay(built, known.seq + 1, anchor.seq)
        self._head, self._adapters = built.head, built.adapters
        return archive.digest(anchor.seq) == anchor.digest


def _look(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
