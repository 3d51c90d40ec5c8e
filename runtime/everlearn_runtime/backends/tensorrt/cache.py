"""Where engines are kept: a folder of this user's own, one engine a key, written whole or not at all.

An engine is executable code. One that somebody else could have put there is never loaded: the
folder must belong to the user and be closed to all others, and a file must have the hash that was
written down when it was built.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from everlearn_runtime.errors import StateError
from everlearn_runtime.files import write_whole
from everlearn_runtime.state.lock import FileLock

VARIABLE = "EVERLEARN_CACHE"
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Key:
    """What an engine was made from and for; another one is another engine.

    Args:
        graph: sha256 of the ONNX file.
        library: Name and version of TensorRT.
        gpu: Name and compute capability; of TensorRT-RTX only the capability.
        batches: The batches it takes, ascending.
        precision: Of the graph, as the bundle's manifest has it.
        memory: Most MiB of scratch space a layer may take; None: all that is there.
        level: How hard the builder tries, 0 to 5.
    """

    graph: str
    library: str
    gpu: str
    batches: tuple[int, ...]
    precision: str
    memory: int | None
    level: int

    @property
    def name(self) -> str:
        """sha256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class KernelFile:
    """The kernels that TensorRT-RTX compiles when an engine first runs, kept for the next process.

    They are executable code, as engines are, and lie in the same folder, behind a hash of themselves.

    Args:
        path: Where; in the folder of an `EngineCache`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """What was kept; None if nothing was, or it is not to the bit what was written."""
        with suppress(OSError):
            data = self.path.read_bytes()
            if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
                return data[_DIGEST:]
        return None

    def write(self, kernels: bytes) -> None:
        """Keep them in place of what was kept; where that cannot be, the next process compiles again."""
        with suppress(OSError):
            write_whole(self.path, hashlib.sha256(kernels).digest() + kernels)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say of what cannot be written to a folder of engines how to mend it.

    Raises:
        ValueError: The disk is full, the folder is not to be written to, or is none.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the engine cannot be kept in {folder} ({error.strerror}); make room there, allow writing, "
            f"or name another folder in ${VARIABLE}"
        ) from error


class EngineCache:
    """A folder of engines.

    Args:
        folder: None: ``$EVERLEARN_CACHE``, else ``everlearn/engines`` in the user's cache folder.

    Raises:
        ValueError: It belongs to somebody else, or others may write to it.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder or os.environ.get(VARIABLE) or _user_folder())
        if self.folder.exists():
            self._check()

    def get(self, key: Key) -> bytes | None:
        """The engine of a key; None if there is none, or it is not what was built."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            data = (self.folder / f"{key.name}.engine").read_bytes()
            if hashlib.sha256(data).hexdigest() == self._read(key.name)["sha256"]:
                return data
        return None

    def find(self, graph: str, library: str, gpu: str) -> list[Key]:
        """The keys of a graph's engines for a library and GPU, the newest first."""
        found = []
        for path in self.folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                said = dict(self._read(path.stem)["key"])  # type: ignore[call-overload]
                key = Key(**{**said, "batches": tuple(said["batches"])})
                if (key.graph, key.library, key.gpu, key.name) == (graph, library, gpu, path.stem):
                    found.append((path.stat().st_mtime_ns, key))
        return [key for _, key in sorted(found, key=lambda pair: pair[0], reverse=True)]

    @contextmanager
    def building(self, key: Key) -> Iterator[tuple[Path, int]]:
        """An empty folder to build the engine of a key in, and the open file of the lock on it.

        What a build that was cut off has left goes first.

        Raises:
            ValueError: Another process is building the same, or nothing can be written there.
        """
        part = self.folder / f"{key.name}.part"
        try:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._check()
                lock = FileLock(self.folder / f"{key.name}.lock", create=True)
        except StateError as error:
            raise ValueError(f"another process is building this engine; wait for it ({error})") from None
        try:
            shutil.rmtree(part, ignore_errors=True)
            with writing(self.folder):
                part.mkdir(mode=0o700)
            yield part, lock.fileno()
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.release()

    def put(self, key: Key, engine: Path) -> None:
        """Take over an engine from :meth:`building`'s folder. It counts from the moment its note is there.

        Raises:
            ValueError: It cannot be written.
        """
        said = {"key": asdict(key), "sha256": hashlib.sha256(engine.read_bytes()).hexdigest()}
        note = engine.with_suffix(".json")
        with writing(self.folder):
            note.write_text(json.dumps(said, indent=2) + "\n")
            for path in (engine, note):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            self.kernels(key).path.unlink(missing_ok=True)
            engine.replace(self.folder / f"{key.name}.engine")
            note.replace(self.folder / f"{key.name}.json")

    def kernels(self, key: Key) -> KernelFile:
        """Where the kernels of a key's engine are kept."""
        return KernelFile(self.folder / f"{key.name}.kernels")

    def timing(self, library: str, gpu: str) -> Path:
        """Where the builder's timings for a library and GPU are kept: the next build is faster by them."""
        name = hashlib.sha256(json.dumps([library, gpu]).encode()).hexdigest()
        return self.folder / f"{name}.timing"

    def _check(self) -> None:
        if sys.platform == "win32":  # a user's folders are closed to others there
            return
        if not self.folder.is_dir():
            raise ValueError(
                f"{self.folder} is no folder to keep engines in; name another one in ${VARIABLE}"
            )
        found = self.folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077 or self.folder.is_symlink():
            raise ValueError(
                f"{self.folder} keeps engines, which are executable code, and must be a folder of yours "
                f"that is closed to all others: chmod 700 {self.folder}, or name another one in ${VARIABLE}"
            )

    def _read(self, name: str) -> dict[str, object]:
        said = json.loads((self.folder / f"{name}.json").read_text())
        if not isinstance(said, dict):
            raise TypeError(name)
        return said


def _user_folder() -> Path:
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "everlearn" / "engines"
