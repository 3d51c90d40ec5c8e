"""Disks that fill up, and files that stay small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .harness import TORTURE, opened, own, rows

FILLS = """
import os, random, sys
from pathlib import Path
from runtime.state.harness import bits, own, rows
from everlearn_runtime import StateError
from everlearn_runtime.state import file, folding

folding.fold_bytes = lambda size: 20_000
folding.PIECE_BYTES = 1024
file.CHECKPOINT_BYTES = 60_000
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
random.seed(seed)
path, filler = folder / "s.db", folder / "filler"
owner = own(path, retention=random.choice([0, 100_000]))
refused = learned = 0
for number in range(600):
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if number % 40 == 5:  # nearly full
        with filler.open("wb") as file:
            file.write(bytes(max(0, free - random.randrange(30_000))))
    if number % 40 == 25:
        filler.unlink(missing_ok=True)
    before = owner.version, bits(owner.head)
    try:
        if number % 9 == 8:
            owner.undo()
        elif number % 31 == 30:
            owner.purge("c")
        else:
            owner.learn(rows(3, seed=number, width=32), [*"abc"])
        learned += 1
    except StateError as error:
        assert "free space" in str(error), error
        refused += 1
        assert (owner.version, bits(owner.head)) == before
    except ValueError as error:
        assert "nothing left" in str(error) or "no class 'c'" in str(error), error
    if number % 40 in (15, 35):  # close and open, full or not
        before = owner.version, bits(owner.head)
        owner.close()
        owner = own(path)
        assert (owner.version, bits(owner.head)) == before
filler.unlink(missing_ok=True)
assert [entry.name for entry in folder.iterdir() if "-new-" in entry.name] == []
wanted = owner.version, bits(owner.head)
owner.close()
owner = own(path)
assert (owner.version, bits(owner.head)) == wanted
owner.close()
print(learned, refused)
"""


@pytest.mark.parametrize("seed", range(30 if TORTURE else 2))
def test_a_disk_that_fills_up(tmp_path: Path, seed: int) -> None:
    """A file system of half a megabyte, in a mount namespace of its own, where the machine allows that."""
    script = f'mount -t tmpfs -o size=600k none {tmp_path} || exit 77; exec "$0" -c "$1" {tmp_path} {seed}'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, FILLS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    learned, refused = map(int, done.stdout.split())
    assert learned > 100
    assert refused > 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_a_change_writes(tmp_path: Path) -> None:
    """Snapshots included; only on a file system that keeps what is written, which a tmpfs does not."""
    width = 192

    def handed_over() -> int:
        return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])

    with opened(tmp_path / "s.db") as owner:
        for number in range(100):
            owner.learn(rows(1, seed=number, width=width), [f"class {number % 20}"])
        before = handed_over()
        for number in range(1500):
            owner.learn(rows(1, seed=number % 30, width=width), [f"class {number % 20}"])
        each = (handed_over() - before) / 1500
        assert len(owner._archive().snapshots()) >= 2
    # The features and their share of two copies of a snapshot, and nine small pages.
    assert each < 4 * width * (2 + 2 / 1.5) + 9 * 1024


@pytest.mark.skipif(not TORTURE, reason="a minute; make torture")
def test_two_hundred_thousand_updates(tmp_path: Path) -> None:
    """Memory, file and time of a change stay as they were."""
    import resource
    import time

    path = tmp_path / "s.db"
    sizes, seconds, memory = [], [], []
    with opened(path, retention=1 << 20) as owner:
        for part in range(10):
            begin = time.process_time()
            for number in range(20_000):
                owner.learn(rows(1, seed=number % 40, width=32), [f"class {number % 10}"])
            seconds.append(time.process_time() - begin)
            sizes.append(path.stat().st_size + path.with_name("s.db-wal").stat().st_size)
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            assert owner.version == 20_000 * (part + 1)
    assert max(sizes[3:]) < 1.2 * sizes[2]
    assert memory[-1] < 1.05 * memory[2]
    assert min(seconds[5:]) < 1.5 * min(seconds[:5])
    own(path).close()
