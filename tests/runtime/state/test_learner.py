"""The learner on its state: one unit, one owner, and nothing lost when the process dies."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from everlearn_runtime import LDA, EdgeLearner, Head, StateError

from .harness import TORTURE, Bomb, bits, crashed, opened

MakeImages = Callable[..., NDArray[np.uint8]]
MakeBundle = Callable[..., Path]


def test_the_same_graph_and_head_in_another_bundle(
    make_bundle: MakeBundle, tmp_path: Path, make_images: MakeImages
) -> None:
    state = tmp_path / "device.db"
    with EdgeLearner.open(make_bundle("one"), state=state) as learner:
        learner.learn(make_images("cup"), ["cup"] * 4)
        before = bits(learner._head)
    newer = make_bundle("two", parity={"max_abs_difference": 2e-6}, everlearn="0.2.0")
    with EdgeLearner.open(newer, state=state) as learner:
        assert bits(learner._head) == before
    with pytest.raises(StateError, match="another graph or head"):
        EdgeLearner.open(make_bundle("three", LDA(shrinkage=0.5)), state=state)


def test_a_session_with_versions(bundle: Path, tmp_path: Path, make_images: MakeImages) -> None:
    state = tmp_path / "device.db"
    with EdgeLearner.open(bundle, state=state) as learner:
        assert learner.version == 0
        learned = learner.learn(make_images("cup", 3), ["cup", "cup", "mug"])
        assert (learned.number, learned.counts) == (1, {"cup": 2, "mug": 1})
        assert learner.forget("pen").counts == {"pen": 4}
        with EdgeLearner.open(bundle, state=state, read_only=True) as reader:
            assert reader.version == 2
            assert reader.classes == learner.classes == ("mug", "cup")
            assert learner.undo().to == 1
            assert reader.predict(make_images("pen")).labels == ["pen"] * 4
            learner.rollback(2)
            assert reader.counts == {"mug": 5, "cup": 2}
            with pytest.raises(StateError, match="read_only"):
                reader.learn(make_images("pen"), ["pen"] * 4)
        learner.backup(tmp_path / "copy.db")
        assert [version.number for version in learner.history()] == [0, 1, 2, 3, 4]
        learner.forget("cup", purge=True)
        assert [version.number for version in learner.history()] == [5]
        with pytest.raises(ValueError, match="give a version's number"):
            learner.rollback("1")  # type: ignore[arg-type]
    with EdgeLearner.open(bundle, state=tmp_path / "copy.db") as copy:
        assert copy.classes == ("mug", "cup")
        assert copy.version == 4


def test_arguments_that_do_not_go_together(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read_only=True without a state"):
        EdgeLearner.open(bundle, read_only=True)
    with pytest.raises(ValueError, match="state is 7; give a path"):
        EdgeLearner.open(bundle, state=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="retention is -1"):
        EdgeLearner.open(bundle, state=tmp_path / "s.db", retention=-1)
    with EdgeLearner.open(bundle) as learner:
        assert learner.history() == []
        for call in (learner.undo, lambda: learner.rollback(0), lambda: learner.backup(tmp_path / "b")):
            with pytest.raises(ValueError, match="without a state"):
                call()


def test_the_journal_holds_no_image(bundle: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(256, size=(1, 8, 8, 3)).astype(np.uint8)
    with EdgeLearner.open(bundle, state=tmp_path / "device.db") as learner:
        learner.learn(image, ["cup"])
        raw = b"".join(path.read_bytes() for path in tmp_path.glob("device.db*"))
    assert image.tobytes()[:16] not in raw
    assert b"cup" in raw


# One unit.


@pytest.mark.parametrize("opcodes", [False, True])
def test_whatever_raises_gives_the_turn_back_and_leaves_the_state(
    learner: EdgeLearner, tmp_path: Path, make_images: MakeImages, bundle: Path, opcodes: bool
) -> None:
    """At any line of the learner, and at any bytecode between its turns."""
    images = make_images("cup", 2)
    turns = os.sep + "turns.py"

    def only(name: str) -> bool:
        return not (opcodes and name.endswith(turns))

    with Bomb(-1, opcodes=opcodes, only=only) as bomb:
        learner.learn(images, ["cup", "mug"])
    stride = max(1, bomb.count // (bomb.count if TORTURE else 40))
    for at in range(0, bomb.count + 3, stride):
        before = learner.counts
        with Bomb(at, opcodes=opcodes, only=only), suppress(KeyboardInterrupt):
            learner.learn(images, ["cup", "mug"])
        after: list[Any] = []
        other = threading.Thread(target=lambda after=after: after.append(learner.counts))
        other.start()
        other.join(20)
        assert after, f"the turn is lost at {at}"
        assert after[0] in (before, {**before, "cup": before["cup"] + 1, "mug": before["mug"] + 1})
        with EdgeLearner.open(bundle, state=crashed(tmp_path / "device.db", tmp_path / "left")) as again:
            assert bits(again._head) == bits(learner._head)


def test_predicting_is_part_of_that(
    learner: EdgeLearner, tmp_path: Path, make_images: MakeImages, bundle: Path
) -> None:
    """Heads work in what waits when they are asked; an interrupt there must not lose it."""
    images = make_images("cup", 1)
    for at in range(0, 400, 1 if TORTURE else 11):
        learner.learn(images, ["cup"])
        counts = learner.version
        with Bomb(at), suppress(KeyboardInterrupt):
            learner.predict(images)
        assert learner.counts["cup"] == counts
        found = learner.predict(images)
        with EdgeLearner.open(bundle, state=crashed(tmp_path / "device.db", tmp_path / "left")) as again:
            assert bits(again._head) == bits(learner._head)
            np.testing.assert_allclose(again.predict(images).scores, found.scores, rtol=1e-9)


def test_a_call_within_a_call_is_refused(
    learner: EdgeLearner, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler would find the head half done."""
    said: list[str] = []
    update = Head.update

    def interrupted(self: Head, *arguments: Any) -> None:
        try:
            learner.counts  # noqa: B018
        except StateError as error:
            said.append(str(error))
        update(self, *arguments)

    monkeypatch.setattr(Head, "update", interrupted)
    learner.learn(make_images("cup"), ["cup"] * 4)
    assert len(said) == 1
    assert "in the middle of another call" in said[0]
    assert learner.counts["cup"] == 4


# One owner.


def test_two_learners_cannot_share_a_state(bundle: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from everlearn_runtime import EdgeLearner, StateError\n"
        "try: EdgeLearner.open(sys.argv[1], state=sys.argv[2])\n"
        "except StateError as error: print(error)"
    )
    state = tmp_path / "device.db"
    command = [sys.executable, "-c", program, str(bundle), str(state)]
    with EdgeLearner.open(bundle, state=state) as learner:
        learner.learn(np.zeros((1, 8, 8, 3), np.uint8), ["cup"])
        with pytest.raises(StateError, match="in use"):
            EdgeLearner.open(bundle, state=state)
        shutil.copy(state, tmp_path / "copy")
        assert "in use" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    EdgeLearner.open(bundle, state=state).close()


def test_one_that_nobody_closes_leaves_a_whole_file(bundle: Path, tmp_path: Path) -> None:
    program = (
        "import sys, numpy; from everlearn_runtime import EdgeLearner\n"
        "learner = EdgeLearner.open(sys.argv[1], state=sys.argv[2])\n"
        "learner.learn(numpy.zeros((1, 8, 8, 3), numpy.uint8), ['cup'])\n"
    )
    state = tmp_path / "device.db"
    for number in (1, 2):
        subprocess.run([sys.executable, "-c", program, str(bundle), str(state)], check=True)
        with EdgeLearner.open(bundle, state=state) as learner:
            assert learner.counts["cup"] == number
    learner = EdgeLearner.open(bundle, state=state)
    learner.learn(np.zeros((1, 8, 8, 3), np.uint8), ["cup"])
    del learner
    with EdgeLearner.open(bundle, state=state) as learner:
        assert learner.counts["cup"] == 3
    assert not (tmp_path / "device.db-wal").exists()


def test_a_close_that_was_interrupted_can_be_repeated(
    bundle: Path, tmp_path: Path, make_images: MakeImages
) -> None:
    state = tmp_path / "device.db"
    with EdgeLearner.open(bundle, state=state) as learner, Bomb(-1) as bomb:
        learner.learn(make_images("cup"), ["cup"] * 4)
        learner.close()
    for at in range(bomb.count - 120, bomb.count, 1 if TORTURE else 7):
        learner = EdgeLearner.open(bundle, state=state)
        learner.learn(make_images("cup"), ["cup"] * 4)
        wanted = learner.counts
        with Bomb(at % 150), suppress(KeyboardInterrupt):
            learner.close()
        if at % 2:
            learner.close()
            assert not (tmp_path / "device.db-wal").exists()
        del learner
        with EdgeLearner.open(bundle, state=state) as again:
            assert again.counts == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_so(learner: EdgeLearner, make_images: MakeImages) -> None:
    images = make_images("cup")
    learner.learn(images, ["cup"] * 4)
    calls: list[Callable[[], Any]] = [
        lambda: learner.predict(images),
        lambda: learner.learn(images, ["cup"] * 4),
        lambda: learner.forget("cup"),
        lambda: learner.counts,
        lambda: learner.undo(),
        lambda: learner.history(),
    ]

    def child(queue: Any) -> None:
        said = []
        for call in calls:
            try:
                call()
            except StateError as error:
                said.append(str(error))
        learner.close()
        queue.put(said)

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    said = queue.get()
    process.join()
    assert len(said) == len(calls)
    assert all(f"belongs to process {os.getpid()}" in text for text in said)
    learner.learn(images, ["cup"] * 4)
    assert learner.counts["cup"] == 8


# Processes that die.

CHANGES_FOR_EVER = """
import random, sys
import numpy as np
from everlearn_runtime import EdgeLearner
from everlearn_runtime.state import file, folding
folding.fold_bytes = lambda size: 3000
folding.PIECE_BYTES = 128
file.CHECKPOINT_BYTES = 30_000
random.seed(int(sys.argv[3]))
learner = EdgeLearner.open(sys.argv[1], state=sys.argv[2], threads=1, retention=20_000, durable={durable})
while True:
    what = random.random()
    if what < 0.8 or len(learner.classes) < 3:
        shade = random.randrange(256)
        learner.learn(np.full((1, 8, 8, 3), shade, np.uint8), [random.choice("abcdefgh")])
    elif what < 0.88:
        learner.forget(random.choice(learner.classes))
    elif what < 0.9:
        learner.forget(random.choice(learner.classes), purge=True)
    else:
        history = learner.history()
        learner.rollback(random.choice(history).number)
    print(learner.version, sorted(learner.counts.items()), flush=True)
"""


@pytest.mark.parametrize("durable", [False, True])
def test_a_killed_process_loses_nothing_it_acknowledged(bundle: Path, tmp_path: Path, durable: bool) -> None:
    state, said = tmp_path / "device.db", ""
    moments = random.Random(durable)
    program = CHANGES_FOR_EVER.replace("{durable}", str(durable))
    for round_ in range(250 if TORTURE else 4):
        command = [sys.executable, "-c", program, str(bundle), str(state), str(round_)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            timer = threading.Timer(
                0.2 + moments.random() * 1.5, lambda process=process: os.kill(process.pid, signal.SIGKILL)
            )
            timer.start()
            for line in process.stdout:
                if line.endswith("\n"):
                    said = line
            timer.join()
        with EdgeLearner.open(bundle, state=state) as learner:
            found = f"{learner.version} {sorted(learner.counts.items())}\n"
            # The change that was under way when the process died may be in or out.
            if found != said and said:
                assert learner.version == int(said.split(maxsplit=1)[0]) + 1
            for version in random.Random(round_).sample(learner.history(), k=min(3, len(learner.history()))):
                learner.rollback(version.number)
            said = f"{learner.version} {sorted(learner.counts.items())}\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_in_the_middle_of_a_call_can_end(tmp_path: Path) -> None:
    """Without a graph: onnxruntime itself does not end in such a child."""
    program = """
import os, sys, threading, time
from pathlib import Path
from runtime.state.harness import own, rows
from everlearn_runtime import EdgeLearner
owner = own(Path(sys.argv[1]))
learner = EdgeLearner(None, None, owner)
inside = threading.Event()

def slow():
    inside.set()
    time.sleep(1)
    owner.learn(rows(1), ["cup"])

thread = threading.Thread(target=learner._turns.take, args=(slow,))
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
thread.join()
owner.learn(rows(1), ["cup"])
os._exit(0)
"""
    path = tmp_path / "s.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", program, str(path)]
    subprocess.run(command, check=True, timeout=60, env=environment)
    with opened(path) as owner:
        assert owner.head.counts.tolist() == [2]
