"""Any number of processes predict while one learns."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from everlearn_runtime import Head, StateError
from everlearn_runtime.state import Reader

from .harness import bits, crashed, opened, own, read, rows

NewHead = Callable[[], Head]


def test_it_follows_every_change(tmp_path: Path, new: NewHead, folds_early: None) -> None:
    path = tmp_path / "s.db"
    with opened(path, new, retention=0) as owner:
        reader = read(path, new)
        for number in range(60):
            owner.learn(rows(1 + number % 3, seed=number), [*"abc"][: 1 + number % 3])
            if number % 10 == 9:
                owner.undo()
            if number % 17 == 16:
                owner.forget("b")
            if number == 40:
                owner.purge("c")
            assert (reader.version, bits(reader.head)) == (owner.version, bits(owner.head))
            assert reader.history() == owner.history()
    assert (reader.version, bits(reader.head)) == (owner.version, bits(owner.head))
    with opened(path, new) as owner:
        owner.learn(rows(1), ["a"])
        assert (reader.version, bits(reader.head)) == (owner.version, bits(owner.head))


def test_it_reads_on_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everlearn_runtime.state.archive import Archive

    path = tmp_path / "s.db"
    with opened(path) as owner:
        owner.learn(rows(1), ["a"])
        reader = read(path)
        monkeypatch.setattr(Archive, "build", None)
        for number in range(5):
            owner.learn(rows(1, seed=number), ["a"])
            assert reader.version == owner.version


def test_it_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    owner = own(path)
    owner.learn(rows(1), ["a"])
    for left in (crashed(path, tmp_path / "left"), path):
        if left is path:
            owner.close()
        before = {entry.name: entry.read_bytes() for entry in left.parent.glob("s.db*")}
        reader = read(left)
        assert reader.version == 1
        changes: list[Callable[[Reader], object]] = [
            lambda reader: reader.learn(rows(1), ["a"]),
            lambda reader: reader.forget("a"),
            lambda reader: reader.purge("a"),
            lambda reader: reader.undo(),
            lambda reader: reader.rollback(0),
            lambda reader: reader.backup("b"),
        ]
        for change in changes:
            with pytest.raises(StateError, match="read_only"):
                change(reader)
        reader.close()
        assert {entry.name: entry.read_bytes() for entry in left.parent.glob("s.db*")} == before
    with pytest.raises(StateError, match="no such state file"):
        read(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_wal_that_says_nothing_yet_is_not_deleted(tmp_path: Path) -> None:
    """SQLite deletes an empty WAL when it closes; the owner would write to one that has no name."""
    path = tmp_path / "s.db"
    with opened(path) as owner:
        for _ in range(2):
            assert read(path).version == owner.version
            assert (tmp_path / "s.db-wal").exists()
            owner.learn(rows(1), ["a"])
        # The first write after all was moved to the file: a new header, and no transaction yet.
        owner._file.database.execute("PRAGMA wal_checkpoint")
        wal = tmp_path / "s.db-wal"
        with wal.open("r+b") as file:
            header = file.read(32)
            file.seek(0)
            file.write(header[:16] + b"otherone" + header[24:])
        assert read(path).version == owner.version
        assert wal.exists()


def test_readers_beside_a_learner_that_folds(tmp_path: Path, folds_early: None) -> None:
    """What they see was so at some time, and never goes back."""
    path = tmp_path / "s.db"
    owner = own(path, retention=5000)
    states = {0: bits(owner.head)}
    problems: list[BaseException] = []
    done = threading.Event()

    def follow() -> None:
        try:
            reader, last = read(path), 0
            while not done.is_set():
                version = reader.version
                # The owner notes a state just after it is there to be read.
                assert version >= last
                last = version
                assert reader.use(lambda head: head.counts.sum()) >= version
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(400):
        owner.learn(rows(2, seed=number), ["a", "b"])
        states[owner.version] = bits(owner.head)
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []
    reader = read(path)
    assert bits(reader.head) == states[reader.version] == states[400]
    owner.close()


FOLLOWS = """
import sys
from pathlib import Path
from runtime.state.harness import read
reader = read(Path(sys.argv[1]))
print(reader.version, flush=True)
for line in sys.stdin:
    print(reader.version, int(reader.use(lambda head: head.counts.sum())), flush=True)
"""


def test_readers_in_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with opened(path) as owner:
        owner.learn(rows(1), ["a"])
        command = [sys.executable, "-c", FOLLOWS, str(path)]
        readers = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            for _ in range(3)
        ]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline().split() == ["1"]
        for number in range(2, 6):
            owner.learn(rows(1), ["a"])
            for reader in readers:
                assert reader.stdin is not None
                assert reader.stdout is not None
                print(file=reader.stdin, flush=True)
                assert reader.stdout.readline().split() == [str(number), str(number)]
        for reader in readers:
            reader.communicate()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_may_read(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with opened(path) as owner:
        owner.learn(rows(1), ["a"])
        child = os.fork()
        if child == 0:
            os._exit(0 if read(path).version == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        owner.learn(rows(1), ["a"])
    with opened(path) as owner:
        assert owner.version == 2


def test_a_state_on_a_read_only_file_system(tmp_path: Path) -> None:
    """Mounted so, in a mount namespace of its own, where the machine allows that."""
    path = tmp_path / "s.db"
    owner = own(path)
    owner.learn(rows(1), ["a"])
    crashed(path, tmp_path / "left")
    owner.close()
    program = """
import errno, os, sys
from pathlib import Path
from runtime.state.harness import own, read
folder = Path(sys.argv[1])
try:
    (folder / "probe").touch()
except OSError as error:
    assert error.errno == errno.EROFS
else:
    sys.exit("still writable")
for path in (folder / "s.db", folder / "left" / "s.db"):
    assert read(path).version == 1
    try:
        own(path)
    except ValueError as error:
        assert "read_only=True" in str(error), error
    else:
        sys.exit("opened for writing")
"""
    script = (
        f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} || exit 77; "
        f'exec "$0" -c "$1" {tmp_path}'
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode in (1, 77) and "Traceback" not in done.stderr and "writable" not in done.stderr:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
