"""The state file: before or after a change, never between, and what it was to the bit."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn_runtime import LDA, Head, Ridge, StateError
from everlearn_runtime.state import Owner
from everlearn_runtime.state.journal import Event

from .harness import HEADS, TORTURE, bits, crashed, opened, own, read, rows

NewHead = Callable[[], Head]


def change(path: Path, *statements: str) -> None:
    """Change a closed file behind the runtime's back."""
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def ask(path: Path, question: str) -> Any:
    """The first column of the first row of an answer."""
    database = sqlite3.connect(path)
    try:
        return database.execute(question).fetchone()[0]
    finally:
        database.close()


def fill(owner: Owner, changes: int, start: int = 0) -> None:
    """Learn and forget, the same for the same numbers."""
    for number in range(start, start + changes):
        if number % 7 == 6 and "abc"[number % 3] in owner.head.classes:
            owner.forget("abc"[number % 3])
        else:
            size = 1 if number % 2 else 1 + number % 5
            owner.learn(
                rows(size, seed=number), [*"abcdef"][number % 4 :][:size] + ["a"] * (size - 6 + number % 4)
            )


def plain(new: NewHead, changes: int) -> Head:
    """The head that learned and forgot the same without a state."""
    head = new()
    for number in range(changes):
        if number % 7 == 6 and "abc"[number % 3] in head.classes:
            head.remove("abc"[number % 3])
        else:
            size = 1 if number % 2 else 1 + number % 5
            labels = [*"abcdef"][number % 4 :][:size] + ["a"] * (size - 6 + number % 4)
            head.update(rows(size, seed=number), labels)
    return head


def judge(owner: Owner, changes: int, start: int = 0) -> None:
    """Judge, then learn, the same for the same numbers."""
    for number in range(start, start + changes):
        features, labels = rows(1 + number % 5, seed=number), [*"abcde"][: 1 + number % 5]
        owner.learn(features, labels, owner.use(partial(Head.judge, features=features, labels=labels)))


@pytest.mark.parametrize("early", [False, True])
def test_what_was_judged_is_replayed_not_judged_anew(
    tmp_path: Path, new: NewHead, early: bool, request: pytest.FixtureRequest
) -> None:
    if early:
        request.getfixturevalue("folds_early")
    path, states = tmp_path / "s.db", []
    owner = own(path, new)
    for number in range(40):
        judge(owner, 1, number)
        states.append(bits(owner.head))
        if number % 7 == 3:
            with opened(crashed(path, tmp_path / "copy"), new) as again:
                assert bits(again.head) == states[-1]
    judged = owner.head.confidence.judged
    assert judged == 120 - 5  # the first of each class was of none
    owner.rollback(30)
    assert bits(owner.head) == states[29]
    assert owner.head.confidence.judged < judged
    owner.rollback(40)
    owner.forget("c")
    assert owner.head.confidence.judged == judged
    owner.undo()
    owner.close()
    with opened(path, new) as again:
        assert bits(again.head) == states[-1]


def test_a_judgement_that_is_none_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with opened(path) as owner:
        judge(owner, 6)
        (text,) = owner._file.database.execute(
            "SELECT event FROM journal ORDER BY seq DESC LIMIT 1"
        ).fetchone()
    assert '"judged":{"losses":"' in text
    assert len(text) < 600
    for bad in ('"judged":{"losses":"', '"judged":{"bins":"'):
        event = Event.from_json(text.replace('"judged":{"losses":"', bad + "A"))
        with pytest.raises(ValueError, match="no judgement"):
            event.replay(LDA(), b"")
    with pytest.raises(ValueError, match="not one of a journal"):
        Event.from_json(text.replace('"judged":{', '"judged":[{').replace("}}", "}]}"))


@pytest.mark.parametrize("early", [False, True])
def test_a_new_process_has_the_same_head_to_the_bit(
    tmp_path: Path, new: NewHead, early: bool, request: pytest.FixtureRequest
) -> None:
    if early:
        request.getfixturevalue("folds_early")
    path = tmp_path / "s.db"
    owner = own(path, new)
    for number in range(60):
        fill(owner, 1, number)
        if number % 5 == 0 and owner.head.classes:
            owner.use(lambda head: head.scores(np.ones((1, 4))))
        with opened(crashed(path, tmp_path / "left"), new) as again:
            assert bits(again.head) == bits(owner.head)
        if number % 11 == 0:
            owner.close()
            owner = own(path, new)
    assert early == (len(owner._archive().snapshots()) > 2)
    head = plain(new, 60)
    assert owner.head.classes == head.classes
    np.testing.assert_array_equal(owner.head.counts, head.counts)
    if head.exact:
        probe = rows(5, seed=999)
        np.testing.assert_allclose(owner.head.scores(probe), head.scores(probe), rtol=1e-8, atol=1e-10)
    owner.close()


def test_a_bad_snapshot_falls_back_on_the_one_before(tmp_path: Path, new: NewHead, folds_early: None) -> None:
    path = tmp_path / "s.db"
    with opened(path, new, retention=0) as owner:
        fill(owner, 120)
        owner._tend(0)
        assert owner._archive().floor() > 0
        wanted = bits(owner.head)
    newest = ask(path, "SELECT max(number) FROM snapshot WHERE digest IS NOT NULL")
    change(path, f"UPDATE piece SET data = zeroblob(length(data)) WHERE key >> 32 = {newest}")
    with opened(path, new, retention=0) as owner:
        assert bits(owner.head) == wanted
        fill(owner, 30, 120)
        wanted = bits(owner.head)
    with opened(path, new, retention=0) as owner:
        assert bits(owner.head) == wanted
    change(path, "UPDATE piece SET data = zeroblob(length(data))")
    with pytest.raises(StateError, match="damaged"):
        own(path, new)


def test_the_file_stays_bounded_and_the_journal_is_folded(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    sizes = []
    with opened(path, retention=400_000) as owner:
        for number in range(3000):
            owner.learn(rows(1, seed=number % 50, width=64), ["abcd"[number % 4]])
            if number % 500 == 499:
                sizes.append(path.stat().st_size)
        assert owner.head.counts.sum() == 3000
        assert len(owner._archive().snapshots()) >= 2
        first = owner.history()[0].number
        assert 0 < first < 2900
    assert max(sizes) < 1_000_000
    assert sizes[-1] <= sizes[-2] * 1.05


def test_a_head_larger_than_a_blob_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered, so that the head is beyond it as one of a gigabyte is beyond SQLite's."""
    path = tmp_path / "s.db"
    head = Ridge(projection=300)
    with opened(path, lambda: Ridge(projection=300)) as owner:
        limit = 100_000
        if sys.version_info >= (3, 11):
            owner._file.database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)  # type: ignore[attr-defined]
        monkeypatch.setattr("everlearn_runtime.state.folding.fold_bytes", lambda size: 5000)
        for number in range(60):
            owner.learn(rows(1, seed=number, width=16), ["ab"[number % 2]])
            head.update(rows(1, seed=number, width=16), ["ab"[number % 2]])
        assert owner.head.nbytes > 3 * limit
        assert owner._archive().snapshots()
        wanted = bits(owner.head)
    with opened(path, lambda: Ridge(projection=300)) as owner:
        assert bits(owner.head) == wanted
        np.testing.assert_array_equal(owner.head.counts, head.counts)


def test_a_snapshot_that_cannot_be_written_leaves_the_journal_and_goes_on(
    tmp_path: Path, folds_early: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everlearn_runtime.state.snapshots import SnapshotWriter

    def full(*_: object) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    path = tmp_path / "s.db"
    with opened(path) as owner:
        with monkeypatch.context() as patched:
            patched.setattr(SnapshotWriter, "write", full)
            fill(owner, 40)
        assert not owner._archive().snapshots()
        fill(owner, 40, 40)
        assert owner._archive().snapshots()
        wanted = bits(owner.head)
    with opened(path) as owner:
        assert bits(owner.head) == wanted


def test_a_full_disk_fails_a_change_and_nothing_else(tmp_path: Path, new: NewHead) -> None:
    path = tmp_path / "s.db"
    with opened(path, new) as owner:
        fill(owner, 10)
        before = owner.version, bits(owner.head)
        pages = ask_owner(owner, "PRAGMA page_count")
        ask_owner(owner, f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StateError, match=r"full.*free space"):
            owner.learn(rows(300), ["e"] * 300)
        assert (owner.version, bits(owner.head)) == before
        ask_owner(owner, "PRAGMA max_page_count = 1000000")
        owner.learn(rows(3), ["e"] * 3)
        wanted = owner.version, bits(owner.head)
    with opened(path, new) as owner:
        assert (owner.version, bits(owner.head)) == wanted


def ask_owner(owner: Owner, question: str) -> Any:
    return owner._file.database.execute(question).fetchone()[0]


# Who owns it.


def test_in_use_stays_true_whatever_the_process_does(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    program = (
        "import sys; from runtime.state.harness import own; from pathlib import Path\n"
        "try: own(Path(sys.argv[1])); print('opened')\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def elsewhere() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    with opened(path) as owner:
        owner.learn(rows(1), ["a"])
        assert "in use" in elsewhere()
        for name in ("s.db", "s.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / "copy")
        read(path)
        assert "in use" in elsewhere()
        with pytest.raises(StateError, match="in use"):
            own(path)
        (tmp_path / "link.db").symlink_to(path)
        with pytest.raises(StateError, match="in use"):
            own(tmp_path / "link.db")
        database = sqlite3.connect(path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            database.execute("SELECT * FROM journal")
        database.close()
        owner.learn(rows(1), ["a"])
    assert "opened" in elsewhere()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("leaves", ["os._exit(0)", "sys.exit(0)", "owner.close(); sys.exit(0)", "lost"])
def test_a_forked_child_neither_uses_nor_harms_it(tmp_path: Path, leaves: str) -> None:
    program = f"""
import os, sys
from pathlib import Path
from runtime.state.harness import own, rows
owner = own(Path(sys.argv[1]))
owner.learn(rows(1), ["a"])
child = os.fork()
if child == 0:
    lost = owner
    {leaves if leaves != "lost" else "del owner, lost; sys.exit(0)"}
assert os.waitpid(child, 0)[1] == 0
for number in range(5):
    owner.learn(rows(1, seed=number), ["a"])
os._exit(0)
"""
    path = tmp_path / "s.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environment)
    with opened(path) as owner:
        assert owner.head.counts.tolist() == [6]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_lock_ends_with_its_owner_though_a_child_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    owner = own(path)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    owner.close()
    own(path).close()
    os.write(done[1], b"x")
    os.waitpid(child, 0)


def test_a_file_that_was_moved_or_deleted_is_noticed(tmp_path: Path) -> None:
    for number, harm in enumerate(("s.db", "s.db-wal")):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "s.db"
        owner = own(path)
        owner.learn(rows(1), ["a"])
        (folder / harm).unlink()
        before = bits(owner.head)
        for _ in range(2):
            with pytest.raises(StateError, match=r"deleted while in use.*open the learner again"):
                owner.learn(rows(1), ["a"])
        assert bits(owner.head) == before
        owner.close()
    assert not (tmp_path / "0" / "s.db").exists()


def test_other_programs_that_use_sqlite_are_respected(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    own(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateError, match="in use"):
        own(path)
    other.execute("ROLLBACK")
    other.close()
    own(path).close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("database is locked", "in use"),
        ("database or disk is full", "free space"),
        ("attempt to write a readonly database", "permissions"),
        ("unable to open database file", "permissions"),
        ("disk I/O error", "permissions"),
        ("string or blob too big", "in parts"),
        ("file is not a database", "no state file"),
        ("database disk image is malformed", "damaged"),
        ("no such table: journal", "damaged"),
        ("locked_door is not a column", "damaged"),
    ],
)
def test_sqlites_words_where_python_hands_on_no_codes(tmp_path: Path, words: str, says: str) -> None:
    """Python 3.10; an error made by hand has no code either."""
    from everlearn_runtime.state.database import explained

    assert says in str(explained(tmp_path / "s.db", sqlite3.OperationalError(words)))


# Whose file it is.


def test_it_goes_with_one_graph_and_head(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with opened(path) as owner:
        owner.learn(rows(1), ["a"])
    before = path.read_bytes()
    for open_ in (
        lambda: own(path, model="c" * 64),
        lambda: read(path, model="c" * 64),
    ):
        with pytest.raises(StateError, match=r"another graph or head \(mmmmmmmmmmmm\.\.\., not c+\.\.\.\)"):
            open_()
    assert path.read_bytes() == before


def test_files_that_are_no_state_are_left_alone(tmp_path: Path) -> None:
    text, other, folder = tmp_path / "a.txt", tmp_path / "other.db", tmp_path / "folder"
    fifo = tmp_path / "fifo"
    text.write_text("my diary " * 200)
    folder.mkdir()
    os.mkfifo(fifo)
    change(other, "CREATE TABLE diary (day TEXT)")
    for path, says in (
        (text, "no state file"),
        (other, "some other SQLite database"),
        (folder, "one ordinary file in a folder"),
        (fifo, "one ordinary file in a folder"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(StateError, match=says):
            own(path)
        assert (path.read_bytes() if path.is_file() else b"") == before
    with pytest.raises(StateError, match="folder that exists"):
        own(tmp_path / "none" / "s.db")
    with pytest.raises(StateError, match="keep nothing"):
        own(Path(":memory:"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "fifo", "folder", "other.db"]


@pytest.mark.parametrize(("schema", "says"), [(9, "schema 9.*upgrade"), (-1, "schema -1"), (0, "schema 0")])
def test_schemas_that_are_not_known(tmp_path: Path, schema: int, says: str) -> None:
    path = tmp_path / "s.db"
    own(path).close()
    change(path, f"PRAGMA user_version = {schema}")
    for open_ in (own, read):
        with pytest.raises(StateError, match=says):
            open_(path)


def test_a_clock_that_is_far_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    for clock in (-(10**18), 0, 10**24):
        monkeypatch.setattr("time.time_ns", lambda clock=clock: clock)
        with opened(path) as owner:
            owner.learn(rows(1), ["a"])
    with opened(path) as owner:
        assert [version.time.year for version in owner.history()] == [1970, 1970, 1970, 6429]


# What belongs together.


def test_a_companion_that_is_missing_or_of_another_file(tmp_path: Path) -> None:
    path, other = tmp_path / "s.db", tmp_path / "other.db"
    with opened(other) as owner:
        owner.learn(rows(1), ["x"])
    owner = own(path)
    owner.learn(rows(1), ["a"])
    left = crashed(path, tmp_path / "left")
    wal = left.with_name("s.db-wal")
    stale = wal.read_bytes()
    for open_ in (own, read):
        wal.write_bytes(b"")
        with pytest.raises(StateError, match=r"s\.db-wal is empty"):
            open_(left)
        wal.unlink()
        with pytest.raises(StateError, match=r"s\.db-wal is missing"):
            open_(left)
        assert not wal.exists()
        wal.write_bytes(stale)
    shutil.copy(other, left)
    for open_ in (own, read):
        with pytest.raises(StateError, match=r"s\.db-wal does not belong"):
            open_(left)
        assert (left.read_bytes(), wal.read_bytes()) == (other.read_bytes(), stale)
    # The file as it was later beside its companion as it was earlier.
    owner.learn(rows(1), ["a"])
    owner.close()
    shutil.copy(path, left)
    with pytest.raises(StateError, match=r"s\.db-wal does not belong"):
        own(left)
    left.unlink()
    with pytest.raises(StateError, match="beside a state that is not there"):
        own(left)


def test_a_process_that_died_and_was_only_looked_at_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    owner = own(path)
    owner.learn(rows(1), ["a"])
    left = crashed(path, tmp_path / "left")
    for _ in range(3):
        with opened(left) as again:
            assert again.head.counts.tolist() == [1]
    assert [entry.name for entry in left.parent.iterdir()] == ["s.db"]
    owner.close()


# What was changed behind its back.

TAMPERED = (
    "DELETE FROM journal",
    "DELETE FROM journal WHERE seq = 2",
    "DELETE FROM journal WHERE seq = (SELECT max(seq) FROM journal)",
    "UPDATE journal SET features = zeroblob(length(features)) WHERE seq = 2",
    "UPDATE journal SET features = NULL WHERE seq = 2",
    "UPDATE journal SET event = replace(event, 'a', 'b') WHERE seq = 2",
    "UPDATE journal SET total = 'x' WHERE seq = 2",
    "UPDATE anchor SET seq = seq - 1",
    "UPDATE anchor SET seq = 0",
    "UPDATE anchor SET version = version + 1",
    "UPDATE anchor SET digest = 7",
    "UPDATE anchor SET model = NULL",
    "DELETE FROM anchor",
    "INSERT INTO anchor SELECT * FROM anchor",
    "DROP TABLE journal",
    "DROP TABLE piece",
    "CREATE TRIGGER no BEFORE DELETE ON journal BEGIN SELECT raise(ABORT, 'no'); END",
    "UPDATE snapshot SET seq = 'x'",
    "UPDATE snapshot SET seq = x'00'",
    "UPDATE snapshot SET digest = NULL",
)


@pytest.mark.parametrize("statement", TAMPERED)
def test_lost_or_changed_rows_are_found(tmp_path: Path, statement: str, folds_early: None) -> None:
    path = tmp_path / "s.db"
    with opened(path, retention=0) as owner:
        fill(owner, 60 if "snapshot" in statement else 4)
    change(path, statement)
    before = path.read_bytes()
    for open_ in (own, read):
        with pytest.raises(StateError, match="damaged"):
            open_(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET event = replace(event, '\"seq\":3', '\"seq\":2') WHERE seq = 6",
        "UPDATE journal SET total = x'60' WHERE seq = 6",
        "UPDATE journal SET total = total + 1 WHERE seq = 6",
        "UPDATE journal SET event = replace(event, 'rollback', 'rollbacl') WHERE seq = 6",
    ],
)
@pytest.mark.parametrize("further", [0, 1])
def test_an_entry_that_goes_back_is_found_when_it_was_changed(
    tmp_path: Path, statement: str, further: int
) -> None:
    """It is never replayed, so that nothing else would see it, and another head would be built."""
    path = tmp_path / "s.db"
    with opened(path) as owner:
        fill(owner, 4)
        owner.rollback(2)
        fill(owner, further)
    change(path, statement)
    for open_ in (own, read):
        with pytest.raises(StateError, match="damaged"):
            open_(path)


def test_a_last_entry_that_does_not_say_how_long_the_journal_is(tmp_path: Path) -> None:
    with opened(tmp_path / "s.db") as owner:
        fill(owner, 3)
        before = owner.version, bits(owner.head)
        owner._file.database.execute("UPDATE journal SET total = x'60' WHERE seq = 4")
        with pytest.raises(StateError, match="damaged"):
            owner.learn(rows(1), ["b"])
        assert (owner.version, bits(owner.head)) == before


@pytest.mark.parametrize(
    "statements", ["PRAGMA journal_mode = DELETE", "PRAGMA journal_mode = TRUNCATE", "VACUUM", "VACUUM INTO"]
)
def test_a_file_that_another_program_has_rewritten_is_the_same_state(tmp_path: Path, statements: str) -> None:
    path, other = tmp_path / "s.db", tmp_path / "other.db"
    with opened(path) as owner:
        fill(owner, 5)
        wanted = owner.version, bits(owner.head)
    if statements == "VACUUM INTO":
        statements += f" '{other}'"
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(statements)
    database.close()
    rewritten = other if other.exists() else path
    reader = read(rewritten)
    assert (reader.version, bits(reader.head)) == wanted
    reader.close()
    with opened(rewritten) as owner:
        assert (owner.version, bits(owner.head)) == wanted
        owner.learn(rows(1), ["b"])
        after = bits(owner.head)
    with opened(rewritten) as owner:
        assert bits(owner.head) == after


def test_damage_is_found_or_harmless(tmp_path: Path, folds_early: None) -> None:
    path, copy = tmp_path / "s.db", tmp_path / "copy.db"
    with opened(path, retention=0) as owner:
        fill(owner, 50)
        wanted, found = bits(owner.head), 0
    whole = path.read_bytes()
    for place in [*range(0, 100), *range(100, len(whole), 1 if TORTURE else 97)]:
        copy.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        companion = tmp_path / "copy.db-wal"
        companion.unlink(missing_ok=True)
        try:
            with opened(copy) as again:
                assert bits(again.head) == wanted, place
        except StateError:
            found += 1
    assert found > 50
    for kept in (50, 4096, len(whole) // 2, len(whole) - 1024):
        copy.write_bytes(whole[:kept])
        with pytest.raises(StateError):
            own(copy)


def resigned(path: Path, event: str, features: bytes) -> None:
    """Put an entry with a right checksum, and an anchor that goes with it, at the end."""
    from everlearn_runtime.state.journal import digest

    database = sqlite3.connect(path)
    seq, chain, total = database.execute(
        "SELECT seq, digest, (SELECT total FROM journal ORDER BY seq DESC LIMIT 1) FROM anchor"
    ).fetchone()
    own_chain = digest(chain, seq + 1, total, event, features)
    database.execute(
        "INSERT INTO journal VALUES (?, ?, ?, ?, ?)", (seq + 1, total, own_chain, event, features)
    )
    database.execute("UPDATE anchor SET seq = seq + 1, digest = ?", (own_chain,))
    database.commit()
    database.close()


LEARNED = '{"kind":"learn","version":9,"time":1,"labels":["a"],"dtype":"<f4","width":4}'


@pytest.mark.parametrize(
    ("event", "features"),
    [
        ("no json", b""),
        ("[]", b""),
        ("{}", b""),
        ('{"kind":"learn"}', b""),
        ('{"kind":"dance","version":9,"time":1}', b""),
        ("[" * 100_000, b""),
        ('{"kind":"forget","version":9,"time":1,"labels":["nobody"]}', b""),
        ('{"kind":"forget","version":9,"time":1,"labels":[]}', b""),
        ('{"kind":"rollback","version":9,"time":1,"seq":99}', b""),
        ('{"kind":"settle","version":9,"time":1e300}', b""),
        ('{"kind":"settle","version":9,"time":' + "9" * 5000 + "}", b""),
        (LEARNED, b"short"),
        (LEARNED, b"\x00\x00\xc0\x7f" * 4),
        (LEARNED.replace("<f4", "O"), b"12345678" * 4),
        (LEARNED.replace("4}", "5}"), b"1234" * 5),
        (LEARNED.replace("4}", "0}"), b"1234" * 4),
        (LEARNED.replace('["a"]', "7"), b"1234" * 4),
        (LEARNED.replace('["a"]', "[7]"), b"1234" * 4),
        (LEARNED.replace('"a"', '"\\ud800"'), b"1234" * 4),
        (LEARNED.replace("}", ',"more":1}'), b"1234" * 4),
    ],
)
def test_entries_that_are_signed_and_make_no_sense(tmp_path: Path, event: str, features: bytes) -> None:
    path = tmp_path / "s.db"
    with opened(path) as owner:
        owner.learn(rows(2), ["a", "b"])
    resigned(path, event, features)
    for open_ in (own, read):
        with pytest.raises(StateError, match="damaged"):
            open_(path)


@settings(
    max_examples=10_000 if TORTURE else 100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text() | st.binary() | st.none() | st.integers(), features=st.binary(max_size=40))
def test_any_entry_is_a_named_error_or_is_replayed(tmp_path: Path, text: Any, features: bytes) -> None:
    from everlearn_runtime.state.journal import Event

    try:
        event = Event.from_json(text)
        head = LDA()
        head.update(rows(2), ["a", "b"])
        event.replay(head, features)
        event.told()
    except ValueError:
        pass


# Earlier schemas.


def test_a_file_of_the_first_schema_goes_on(tmp_path: Path, new: NewHead) -> None:
    path = tmp_path / "s.db"
    wanted = write_schema1(path, new, "b" * 64)
    whole = path.read_bytes()
    with pytest.raises(StateError, match=r"another bundle \(bbb"):
        own(path, new, bundle="c" * 64)
    with pytest.raises(StateError, match=r"another bundle \(bbb"):
        read(path, new, bundle="c" * 64)
    reader = read(path, new)
    assert (reader.version, reader.history(), bits(reader.head)) == (0, [], bits(wanted))
    assert path.read_bytes() == whole
    with opened(path, new) as owner:
        assert owner.head.classes == wanted.classes
        assert bits(owner.head) == bits(wanted)
        assert [version.number for version in owner.history()] == [0]
        owner.learn(rows(2), ["a", "new"])
        owner.undo()
        assert bits(owner.head) == bits(wanted)
    with opened(path, new) as owner:
        assert owner.version == 2
        assert bits(owner.head) == bits(wanted)


def write_schema1(path: Path, new: NewHead, bundle: str) -> Head:
    """A file as everlearn 0.1.0 wrote it: a snapshot, and two entries after it."""
    import hashlib
    import json

    from everlearn_runtime.bundle import dump_arrays

    def signed(seq: int, text: str, blob: bytes) -> tuple[int, str, bytes, str]:
        return seq, text, blob, hashlib.sha256(f"{seq}\n{text}\n".encode() + blob).hexdigest()

    head = new()
    head.update(rows(9, seed=1), [*"abc"] * 3)
    head.settle()
    state = head.state()
    text = json.dumps({"kind": state.kind, "classes": state.classes, "options": state.options})
    database = sqlite3.connect(path)
    database.execute("PRAGMA application_id = 1163283534")
    database.execute("PRAGMA user_version = 1")
    database.execute("CREATE TABLE snapshot (bundle TEXT, seq INTEGER, head TEXT, arrays BLOB, sha256 TEXT)")
    database.execute("CREATE TABLE journal (seq INTEGER PRIMARY KEY, event TEXT, features BLOB, sha256 TEXT)")
    database.execute(
        "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?)", (bundle, *signed(3, text, dump_arrays(state.arrays)))
    )
    event = json.dumps({"learn": ["b", "d"], "dtype": "<f4", "width": 4})
    database.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", signed(4, event, rows(2, seed=2).tobytes()))
    database.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", signed(5, json.dumps({"forget": "a"}), b""))
    database.commit()
    database.close()
    head.update(rows(2, seed=2), ["b", "d"])
    head.remove("a")
    head.settle()
    return head


def test_the_heads_tried_are_all_heads() -> None:
    from everlearn_runtime import heads

    known = [getattr(heads, name) for name in heads.__all__ if name != "Head"]
    kinds = {one.kind for one in known if isinstance(one, type) and issubclass(one, heads.Head)}
    assert {new().kind for new in HEADS.values()} == kinds
