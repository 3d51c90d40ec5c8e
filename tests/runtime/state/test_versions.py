"""Every change is a version, and every version in the history can be gone back to, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everlearn_runtime import LDA, Head, StateError
from everlearn_runtime.state import Memory

from .harness import TORTURE, Bits, bits, crashed, opened, own, rows

NewHead = Callable[[], Head]


def test_what_a_version_says(tmp_path: Path) -> None:
    with opened(tmp_path / "s.db") as owner:
        assert [(one.number, one.kind) for one in owner.history()] == [(0, "start")]
        learned = owner.learn(rows(3), ["mug", "mug", "pen"])
        forgot = owner.forget("mug")
        undone = owner.undo()
        assert (learned.number, learned.kind, learned.counts) == (1, "learn", {"mug": 2, "pen": 1})
        assert learned.labels == ("mug", "pen")
        assert (forgot.number, forgot.kind, forgot.counts) == (2, "forget", {"mug": 2})
        assert (undone.number, undone.kind, undone.to, undone.labels) == (3, "rollback", 1, ())
        assert owner.version == 3
        assert owner.history()[1:] == [learned, forgot, undone]
        assert abs(learned.time - datetime.now(timezone.utc)) < timedelta(minutes=1)


def test_undo_goes_back_one_change_at_a_time_and_rollback_anywhere(
    tmp_path: Path, new: NewHead, folds_early: None
) -> None:
    path = tmp_path / "s.db"
    with opened(path, new) as owner:
        states: dict[int, Bits] = {0: bits(owner.head)}
        for number in range(20):
            owner.learn(rows(1 + number % 4, seed=number), [*"abcd"][: 1 + number % 4])
            states[owner.version] = bits(owner.head)
        owner.forget("b")
        states[21] = bits(owner.head)
        for back in range(20, 10, -1):
            assert owner.undo().to == back
            assert bits(owner.head) == states[back]
            states[owner.version] = bits(owner.head)
        assert owner.version == 31
        owner.rollback(21)
        assert bits(owner.head) == states[21]
        states[32] = bits(owner.head)
        for to in (5, 32, 0, 31, 13):
            owner.rollback(to)
            assert bits(owner.head) == states[to]
            with opened(crashed(path, tmp_path / "left"), new) as again:
                assert bits(again.head) == states[to]
        assert owner.undo().to == 12


def test_what_is_out_of_reach_is_said(tmp_path: Path, folds_early: None) -> None:
    with opened(tmp_path / "s.db", retention=0) as owner:
        with pytest.raises(ValueError, match="nothing left to undo"):
            owner.undo()
        with pytest.raises(ValueError, match="version 3 cannot be gone back to; from 0 to 0 can") as caught:
            owner.rollback(3)
        assert not isinstance(caught.value, StateError)  # nothing is damaged
        states = {}
        for number in range(150):
            owner.learn(rows(1, seed=number), ["abc"[number % 3]])
            states[owner.version] = bits(owner.head)
        history = owner.history()
        first = history[0].number
        assert 0 < first < 140
        assert [one.number for one in history] == list(range(first, 151))
        assert all(one.kind == "learn" for one in history)
        with pytest.raises(
            ValueError, match=f"version {first - 1} cannot be gone back to; from {first} to 150"
        ):
            owner.rollback(first - 1)
        for to in range(first, 151, 7):
            owner.rollback(to)
            assert bits(owner.head) == states[to]
        with pytest.raises(ValueError, match="nothing left to undo"):  # noqa: PT012 - at some time
            for _ in range(200):
                owner.undo()


operations = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), st.integers(0, 9), st.integers(1, 5)),
        st.tuples(st.just("forget"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("undo"), st.just(0), st.just(0)),
        st.tuples(st.just("rollback"), st.integers(0, 200), st.just(0)),
        st.tuples(st.just("open"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(
    max_examples=1000 if TORTURE else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(done=operations, retention=st.sampled_from([0, 3000, 1 << 20]))
def test_any_changes_in_any_order(
    tmp_path: Path, folds_early: None, done: list[tuple[str, int, int]], retention: int
) -> None:
    path = tmp_path / "s.db"
    path.unlink(missing_ok=True)
    owner = own(path, retention=retention)
    states = {0: bits(owner.head)}
    for kind, number, size in done:
        names = owner.head.classes
        if kind == "learn":
            owner.learn(rows(size, seed=number), [*"abcdef"][:size])
        elif kind == "forget" and number < len(names):
            owner.forget(names[number])
        elif kind == "undo":
            try:
                before = owner.undo().to
            except ValueError:
                continue
            assert before is not None
            assert bits(owner.head) == states[before]
        elif kind == "rollback":
            reach = [version.number for version in owner.history()]
            to = reach[number % len(reach)]
            owner.rollback(to)
            assert bits(owner.head) == states[to]
        elif kind == "open":
            owner.close()
            owner = own(path, retention=retention)
        states[owner.version] = bits(owner.head)
    for version in owner.history():
        owner.rollback(version.number)
        assert bits(owner.head) == states[version.number]
    owner.close()


# Gone for good.


def test_a_purge_leaves_neither_name_nor_features(tmp_path: Path, new: NewHead, folds_early: None) -> None:
    path = tmp_path / "s.db"
    secret = rows(3, seed=77)
    plain = new()
    with opened(path, new) as owner:
        for number in range(30):
            owner.learn(rows(2, seed=number), ["pen", "cup"])
            plain.update(rows(2, seed=number), ["pen", "cup"])
        owner.learn(secret, ["Zoë's diary", "pen", "Zoë's diary"])
        owner.learn(secret[:1], ["Zoë's diary"])
        for number in range(30, 40):
            owner.learn(rows(2, seed=number), ["pen", "cup"])
        assert _found(path, secret)
        purged = owner.purge("Zoë's diary")
        assert (purged.number, purged.kind, purged.labels) == (43, "purge", ())
        assert not _found(path, secret)
        assert owner.head.classes == ("pen", "cup")
        assert [one.number for one in owner.history()] == [43]
        with pytest.raises(ValueError, match="nothing left to undo"):
            owner.undo()
        owner.learn(rows(2, seed=50), ["pen", "cup"])
        wanted = owner.version, bits(owner.head)
    assert not _found(path, secret)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.db"]
    with opened(path, new) as owner:
        assert (owner.version, bits(owner.head)) == wanted
        owner.undo()
        assert owner.head.counts.tolist() == [41, 40]


def _found(path: Path, secret: object) -> bool:
    raw = b"".join(entry.read_bytes() for entry in path.parent.glob(f"{path.name}*"))
    names = ("Zoë's diary".encode(), b"Zo\\u00eb", "Zoë's diary".encode("utf-16-le"))
    numbers = [row.tobytes()[:8] for row in secret]  # type: ignore[attr-defined]
    return any(bytes_ in raw for bytes_ in (*names, *numbers))


def test_a_class_that_was_forgotten_before_can_be_purged(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    secret = rows(3, seed=77)
    with opened(path) as owner:
        owner.learn(secret, ["Zoë's diary"] * 3)
        owner.forget("Zoë's diary")
        assert _found(path, secret)
        owner.purge("Zoë's diary")
        assert not _found(path, secret)
        with pytest.raises(ValueError, match="nor one in the history"):
            owner.purge("Zoë's diary")


# A copy.


def test_a_backup_opens_as_a_state(tmp_path: Path, new: NewHead, folds_early: None) -> None:
    path, copy = tmp_path / "s.db", tmp_path / "copy.db"
    with opened(path, new) as owner:
        for number in range(40):
            owner.learn(rows(2, seed=number), ["pen", "cup"])
        owner.rollback(20)
        job = owner.backup(copy)
        wanted, history = (owner.version, bits(owner.head)), owner.history()
        steps = 0
        while not job.step():
            steps += 1
            owner.learn(rows(2, seed=steps), ["pen", "cup"])
        assert steps > 1
        with opened(copy, new) as other:
            assert (other.version, bits(other.head)) == wanted
            assert other.history() == history
            other.learn(rows(1), ["mug"])
            other.rollback(13)
        with pytest.raises(ValueError, match="exists"):
            owner.backup(copy)
        purged = owner.backup(tmp_path / "other.db")
        purged.step()
        owner.purge("pen")
        with pytest.raises(StateError, match="purged while"):
            purged.step()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy.db", "s.db"]


# Without a file.


def test_memory_counts_its_versions_and_keeps_none() -> None:
    memory = Memory(LDA)
    assert memory.learn(rows(2), ["a", "b"]).number == 1
    assert memory.forget("a").counts == {"a": 1}
    assert memory.purge("b").kind == "purge"
    assert memory.version == 3
    assert memory.history() == []
    for back in (memory.undo, lambda: memory.rollback(1)):
        with pytest.raises(ValueError, match="without a state file"):
            back()


def test_memory_that_was_interrupted_says_so() -> None:
    memory = Memory(LDA)
    memory.learn(rows(4), [*"abab"])

    def interrupted(head: Head) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.use(interrupted)
    with pytest.raises(StateError, match="interrupted half way"):
        memory.head  # noqa: B018
