"""The state file: before or after a call, never between."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn_runtime import LDA, EdgeLearner, Head, Prototypes, Ridge, StateError, store
from everlearn_runtime.store import Store

HEADS: dict[str, Callable[[], Head]] = {
    "prototypes": Prototypes,
    "lda": LDA,
    "ridge": lambda: Ridge(projection=8),
}


@pytest.fixture(params=HEADS, ids=str)
def new(request: pytest.FixtureRequest) -> Callable[[], Head]:
    return HEADS[request.param]


def bits(head: Head) -> Any:
    state = head.state()
    return state.classes, {name: array.tobytes() for name, array in state.arrays.items()}


def events(n: int, dtype: Any = np.float32) -> list[Any]:
    random = np.random.default_rng(0)
    made: list[Any] = []
    for number in range(n):
        if number % 7 == 6:
            made.append("abc"[number % 3])
        else:
            size = int(random.integers(1, 9))
            labels = [*"abc", *("abcdef"[place] for place in random.integers(6, size=size))]
            made.append((random.normal(size=(size + 3, 4)).astype(dtype), labels))
    return made


def do(opened: Store, head: Head, event: Any) -> Head:
    if opened.due:
        head = opened.fold(head)
    if isinstance(event, str):
        opened.forget(event)
        head.remove(event)
    else:
        opened.learn(*event)
        head.update(*event)
    return head


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_new_process_has_the_same_head_to_the_bit(
    tmp_path: Path, new: Callable[[], Head], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FOLD_EVENTS", 5)
    opened, head = Store.open(tmp_path / "s.db", bundle="b", head=new())
    plain = new()
    for number, event in enumerate(events(40, dtype)):
        head = do(opened, head, event)
        if isinstance(event, str):
            plain.remove(event)
        else:
            plain.update(*event)
        if number % 3 == 0:
            opened.close()
            opened, again = Store.open(tmp_path / "s.db", bundle="b", head=new())
            assert bits(again) == bits(head)
            head = again
    opened.close()
    assert head.classes == plain.classes
    probe = np.random.default_rng(1).normal(size=(5, 4))
    np.testing.assert_allclose(head.scores(probe), plain.scores(probe), rtol=1e-9, atol=1e-11)


def test_looking_at_the_live_head_does_not_part_it_from_its_replay(
    tmp_path: Path, new: Callable[[], Head]
) -> None:
    opened, head = Store.open(tmp_path / "s.db", bundle="b", head=new())
    for event in events(20):
        head = do(opened, head, event)
        if head.classes:
            head.scores(np.ones((1, 4)))
    opened.close()
    opened, again = Store.open(tmp_path / "s.db", bundle="b", head=new())
    opened.close()
    assert bits(again) == bits(head)


def test_the_file_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FOLD_BYTES", 100_000)
    path = tmp_path / "s.db"
    opened, head = Store.open(path, bundle="b", head=LDA())
    rows = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    for _ in range(300):
        head = do(opened, head, (rows, ["a"] * 100))
    assert head.counts.tolist() == [30_000]
    rows_left = opened._database.execute("SELECT count(*) FROM journal").fetchone()[0]
    assert 0 < rows_left <= 100_000 / rows.nbytes + 1
    opened.close()
    assert path.stat().st_size < 400_000


def test_a_failed_fold_changes_nothing(tmp_path: Path) -> None:
    opened, head = Store.open(tmp_path / "s.db", bundle="b", head=LDA())
    for event in events(5):
        head = do(opened, head, event)
    before = bits(head)
    opened._database.execute(
        "CREATE TRIGGER no BEFORE DELETE ON journal BEGIN SELECT raise(ABORT, 'disk I/O'); END"
    )
    with pytest.raises(StateError, match="I/O"):
        opened.fold(head)
    opened._database.execute("DROP TRIGGER no")
    opened.close()
    opened, again = Store.open(tmp_path / "s.db", bundle="b", head=LDA())
    opened.close()
    assert bits(again) == before


def test_it_belongs_to_one_bundle(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    opened, _ = Store.open(path, bundle="b" * 64, head=LDA())
    opened.close()
    before = path.read_bytes()
    with pytest.raises(
        StateError, match=r"another bundle \(bbbbbbbbbbbb\.\.\., not c+\.\.\.\).*give a new file"
    ):
        Store.open(path, bundle="c" * 64, head=LDA())
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    opened, _ = Store.open(path, bundle="b", head=LDA())
    opened._database.execute("PRAGMA user_version = 9")
    opened.close()
    with pytest.raises(StateError, match=r"schema 9.*upgrade"):
        Store.open(path, bundle="b", head=LDA())


def test_files_that_are_no_state_are_left_alone(tmp_path: Path) -> None:
    text, other, folder = tmp_path / "a.txt", tmp_path / "other.db", tmp_path / "folder"
    text.write_text("my diary " * 200)
    folder.mkdir()
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE diary (day TEXT)")
    database.commit()
    database.close()
    for path, says in (
        (text, "no state file"),
        (other, "some other SQLite database"),
        (folder, "one file in a folder"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(StateError, match=says):
            Store.open(path, bundle="b", head=LDA())
        assert (path.read_bytes() if path.is_file() else b"") == before
    with pytest.raises(StateError, match="folder that exists"):
        Store.open(tmp_path / "none" / "s.db", bundle="b", head=LDA())


def test_damage_is_found_or_harmless(tmp_path: Path) -> None:
    path, copy = tmp_path / "s.db", tmp_path / "copy.db"
    opened, head = Store.open(path, bundle="b" * 64, head=LDA())
    for event in events(12):
        head = do(opened, head, event)
    opened.close()
    whole, wanted, found = path.read_bytes(), bits(head), 0
    for place in [*range(0, 100), *range(100, len(whole), 37)]:
        copy.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        for companion in tmp_path.glob("copy.db-*"):
            companion.unlink()
        try:
            opened, again = Store.open(copy, bundle="b" * 64, head=LDA())
        except StateError:
            found += 1
            continue
        opened.close()
        assert bits(again) == wanted, place
    assert found > 50
    for kept in (50, 4096, len(whole) // 2, len(whole) - 4096):
        copy.write_bytes(whole[:kept])
        with pytest.raises(StateError):
            Store.open(copy, bundle="b" * 64, head=LDA())


def test_lost_or_changed_rows_are_found(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    for change in (
        "DELETE FROM journal WHERE seq = 2",
        "UPDATE journal SET features = zeroblob(length(features)) WHERE seq = 1",
        "UPDATE journal SET features = NULL WHERE seq = 1",
        "UPDATE journal SET event = replace(event, 'a', 'b') WHERE seq = 1",
        "UPDATE snapshot SET arrays = NULL",
        "UPDATE snapshot SET seq = 1",
        "DELETE FROM snapshot",
        "DROP TABLE journal",
    ):
        path.unlink(missing_ok=True)
        opened, head = Store.open(path, bundle="b", head=LDA())
        for event in events(4):
            head = do(opened, head, event)
        opened._database.execute(change)
        opened.close()
        with pytest.raises(StateError, match="damaged"):
            Store.open(path, bundle="b", head=LDA())


def test_two_learners_cannot_share_a_state(bundle: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from everlearn_runtime import EdgeLearner, StateError\n"
        "try: EdgeLearner.open(sys.argv[1], state=sys.argv[2])\n"
        "except StateError as error: print(error)"
    )
    state = tmp_path / "device.db"
    with EdgeLearner.open(bundle, state=state):
        with pytest.raises(StateError, match="in use"):
            EdgeLearner.open(bundle, state=state)
        command = [sys.executable, "-c", program, str(bundle), str(state)]
        assert "in use" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    EdgeLearner.open(bundle, state=state).close()


LEARNS_FOR_EVER = """
import sys
import numpy as np
from everlearn_runtime import EdgeLearner, store
store.FOLD_EVENTS = 3
learner = EdgeLearner.open(sys.argv[1], state=sys.argv[2], threads=1)
known = learner.counts.get("cup", 0)
while True:
    learner.learn(np.full((1, 8, 8, 3), known % 251, np.uint8), ["cup"])
    known += 1
    print(known, flush=True)
    if sys.argv[3] == str(known):
        import os
        os._exit(1)
"""


@pytest.mark.parametrize("durable", [False, True])
def test_a_killed_process_loses_nothing_it_acknowledged(bundle: Path, tmp_path: Path, durable: bool) -> None:
    state, acknowledged = tmp_path / "device.db", 0
    program = LEARNS_FOR_EVER.replace("threads=1", f"threads=1, durable={durable}")
    for round_, stop in enumerate(("4", "kill", "kill")):
        command = [sys.executable, "-c", program, str(bundle), str(state), stop]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                acknowledged = int(line)
                if stop == "kill" and acknowledged >= 20 * round_:
                    os.kill(process.pid, signal.SIGKILL)
                    stop = "killed"
        plain = LDA()
        with EdgeLearner.open(bundle, state=state) as learner:
            known = learner.counts["cup"]
            # The call that was under way when the process died may be in or out.
            assert acknowledged <= known <= acknowledged + 1
            for shade in range(known):
                image = np.full((1, 8, 8, 3), shade % 251, np.uint8)
                plain.update(learner._features(image), ["cup"])
            np.testing.assert_allclose(learner._head.prototypes[2], plain.prototypes[0], rtol=1e-12)
        acknowledged = known


def test_a_learner_folds_its_journal(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FOLD_EVENTS", 3)
    state = tmp_path / "device.db"
    with EdgeLearner.open(bundle, state=state) as learner:
        for shade in range(10):
            learner.learn(np.full((1, 8, 8, 3), shade, np.uint8), ["cup"])
        learner.forget("mug")
        assert learner._store is not None
        assert learner._store._database.execute("SELECT count(*) FROM journal").fetchone()[0] <= 3
        before = bits(learner._head)
    with EdgeLearner.open(bundle, state=state) as learner:
        assert bits(learner._head) == before


def test_the_journal_holds_no_image(bundle: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(256, size=(1, 8, 8, 3)).astype(np.uint8)
    with EdgeLearner.open(bundle, state=tmp_path / "device.db") as learner:
        learner.learn(image, ["cup"])
    raw = b"".join(path.read_bytes() for path in tmp_path.glob("device.db*"))
    assert image.tobytes()[:16] not in raw
    assert b"cup" in raw
