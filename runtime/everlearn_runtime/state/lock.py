"""One owner for a state file."""

from __future__ import annotations

import errno
import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from everlearn_runtime.errors import StateError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# The bytes that every SQLite locks before it reads: while an owner holds them, other programs
# are told that the database is locked.
START, LENGTH = 0x4000_0000, 512
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class FileLock:
    """A lock on a file, held from construction to :meth:`release`, or until the process ends.

    On Linux it is an "open file description" lock: unlike SQLite's own POSIX locks it stays when the
    process copies the file, holds between two learners of one process, and a child that is forked
    neither gets nor loses it. Elsewhere it is ``flock``, which other programs that use SQLite do
    not see; network file systems keep either only as well as they do.

    Args:
        path: The file; made if it is not there and ``create`` says so.
        create: Make it.

    Raises:
        StateError: Somebody else holds it, or the file system has no locks.
        OSError: The file cannot be opened for writing.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._pid = os.getpid()
        more = os.O_CREAT if create else 0
        self._file: FileIO | None = None
        try:
            # A file object, which closes at most once, and by itself when it is gone.
            self._file = FileIO(path, "r+", opener=lambda name, flags: os.open(name, flags | more, 0o644))
            _take(self._file.fileno(), path)
        except BaseException:  # an interrupt too: whoever keeps it keeps this object alive
            self.release()
            raise

    def holds(self, path: Path) -> bool:
        """Whether this path still is the file that was locked."""
        try:
            return not self._closed and os.path.samestat(os.stat(path), os.fstat(self.fileno()))
        except OSError:
            return False

    @property
    def _closed(self) -> bool:
        return self._file is None or self._file.closed

    def fileno(self) -> int:
        """The open file."""
        assert self._file is not None
        return self._file.fileno()

    def start(self, size: int) -> tuple[int, bytes]:
        """The file's length, and its first bytes."""
        assert self._file is not None
        self._file.seek(0)
        return os.fstat(self.fileno()).st_size, self._file.read(size)

    def try_alone(self) -> bool:
        """Keep readers away, if none is reading; see :func:`reading`."""
        return _enter(self.fileno(), alone=True)

    def let_read(self) -> None:
        """Let readers in again."""
        _leave(self.fileno())

    def release(self) -> None:
        """Give the lock up. In a forked child only the child's copy of the handle goes."""
        if not self._closed and os.getpid() == self._pid:
            with suppress(OSError):  # by name, because a forked child may still have the same open file
                _unlock(self.fileno())
        if self._file is not None:
            self._file.close()


def _take(file: int, path: Path) -> None:
    try:
        _lock(file)
    except OSError as error:
        if error.errno in _TAKEN:
            raise StateError(
                f"{path} is in use by another process or learner; close that one first"
            ) from None
        raise StateError(f"{path}: this file system has no locks ({error.strerror})") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Ask the owner to let the pages of a file rest for a while.

    A courtesy that saves reading again: it is not waited for, and an owner whose WAL grows too long goes
    on all the same. Nothing depends on it.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        for _ in range(50):
            if _enter(file, alone=False):
                break
            time.sleep(0.001)
        yield
    finally:
        os.close(file)


if sys.platform == "win32":

    def _lock(file: int) -> None:
        os.lseek(file, START, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, LENGTH)

    def _unlock(file: int) -> None:
        os.lseek(file, START, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, LENGTH)

elif hasattr(fcntl, "F_OFD_SETLK"):

    def _lock(file: int) -> None:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK))

    def _unlock(file: int) -> None:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK))

    def _range(kind: int) -> bytes:
        """C's struct flock: type, whence, start, length, pid."""
        return struct.pack("hhqqi0q", kind, os.SEEK_SET, START, LENGTH, 0)

else:

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


if sys.platform != "win32" and hasattr(fcntl, "F_OFD_SETLK"):

    def _enter(file: int, *, alone: bool) -> bool:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _TAKEN  # where there are no such locks, nobody waits
        return True

    def _leave(file: int) -> None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)

else:  # `flock` says who owns the file

    def _enter(file: int, *, alone: bool) -> bool:
        return True

    def _leave(file: int) -> None:
        pass
