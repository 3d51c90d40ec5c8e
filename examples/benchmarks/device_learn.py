"""What learning costs on the device: time, disk, and what it costs those who predict meanwhile.

    python examples/benchmarks/device_learn.py [BUNDLE]

Without a bundle it exports the bundled backbone with an LDA of 100 classes, learned from noise. What is
compared is measured in turn, call by call, in one process, and given as a ratio of medians, so that a busy
machine slows all alike. The state file is on, as on a device.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from everlearn import LDA, Frozen, Learner, Ridge
from everlearn_runtime import EdgeLearner, Head, InputSpec, write_bundle

Call = Callable[[], object]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else make_bundle(folder / "bundle")
        learn_against_predict(bundle, folder)
        against_bare(bundle, folder)
        beside(bundle, folder)
        in_a_row(folder)
        start(folder)


def make_bundle(path: Path) -> Path:
    """Export the bundled backbone with an LDA head of 100 classes, learned from noise."""
    learner = Learner(method=Frozen(), head=LDA())
    learn_noise(learner.head, learner.backbone.width)
    learner.export(path)
    return path


def make_small_bundle(path: Path, head: Head, width: int = 768) -> Path:
    """A bundle whose graph costs next to nothing: 8 x 8 pixels times random weights, 100 classes."""
    weights = np.random.default_rng(0).normal(size=(192, width)).astype(np.float32) / 128
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["features"]),
    ]
    body = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weights, "weights")],
    )
    graph = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(graph)
    learn_noise(head, width)
    write_bundle(
        path,
        features=graph.SerializeToString(),
        head=head,
        input=InputSpec(8, 8, resize=8),
        sections=[width],
        training={},
        parity={},
        everlearn="benchmark",
    )
    return path


def learn_noise(head: Head, width: int) -> None:
    """Let a head learn 400 rows of noise in 100 classes."""
    names = [f"class {number % 100}" for number in range(400)]
    head.update(np.random.default_rng(0).normal(size=(400, width)), names)


def noise(edge: EdgeLearner, batch: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images of noise (batch, height, width, 3)."""
    return np.random.default_rng(seed).integers(
        0, 256, (batch, *edge.bundle.manifest.input.shape), dtype=np.uint8
    )


def medians(steps: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median milliseconds of each step, the steps taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: float(np.median(each)) for name, each in times.items()}


def learn_against_predict(bundle: Path, folder: Path, rounds: int = 60) -> None:
    """Learning a batch, and the first prediction after it, which solves the head anew."""
    print(f"{'batch':>5} {'predict':>12} {'learn':>12} {'learn / predict':>16} {'then predict':>14}")
    with EdgeLearner.open(bundle, state=folder / "learn.db") as edge:
        for batch in (1, 16, 32):
            images, labels = noise(edge, batch), list(edge.classes[:batch])
            edge.predict(images)  # the first call of all warms up
            steps: dict[str, Call] = {
                "predict": partial(edge.predict, images),
                "learn": partial(edge.learn, images, labels),
                "then": partial(edge.predict, images),
            }
            found = medians(steps, rounds)
            predict, learn, then = found["predict"], found["learn"], found["then"]
            print(f"{batch:5} {predict:9.2f} ms {learn:9.2f} ms {learn / predict:16.3f} {then:11.2f} ms")


def against_bare(bundle: Path, folder: Path, rounds: int = 60) -> None:
    """Predicting against the bare graph, and learning with a state against without and durably."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(bundle / "features.onnx"), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    print(f"\n{'batch':>5} {'predict / graph':>16} {'state / none':>14} {'durable / predict':>18}")
    with (
        EdgeLearner.open(bundle) as none,
        EdgeLearner.open(bundle, state=folder / "state.db") as state,
        EdgeLearner.open(bundle, state=folder / "durable.db", durable=True) as durable,
    ):
        for batch in (1, 16):
            images, labels = noise(none, batch), list(none.classes[:batch])
            none.predict(images)
            steps: dict[str, Call] = {
                "graph": partial(session.run, None, {name: images}),
                "predict": partial(none.predict, images),
            }
            found = medians(steps, rounds)
            steps = {
                "none": partial(none.learn, images, labels),
                "state": partial(state.learn, images, labels),
                "durable": partial(durable.learn, images, labels),
            }
            found |= medians(steps, rounds)
            sync = sync_time(folder)
            print(
                f"{batch:5} {found['predict'] / found['graph']:16.3f} {found['state'] / found['none']:14.3f} "
                f"{(found['durable'] - sync) / found['predict']:18.3f}  (less a sync of {sync:.1f} ms)"
            )


def sync_time(folder: Path, rounds: int = 30) -> float:
    """Median milliseconds of bringing a few kilobytes to this disk."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(rounds):
            file.write(bytes(8192))
            file.flush()
            begin = time.perf_counter()
            os.fsync(file.fileno())
            times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times))


def beside(bundle: Path, folder: Path, rounds: int = 200) -> None:
    """Predicting one image alone, and beside a thread that learns batches of 64."""
    print(f"\n{'threads':>8} {'alone':>12} {'beside':>12} {'beside / alone':>15}")
    for threads in (None, 1):
        with EdgeLearner.open(bundle, state=folder / f"beside {threads}.db", threads=threads) as edge:
            step: dict[str, Call] = {"predict": partial(edge.predict, noise(edge, 1))}
            medians(step, 20)
            alone = medians(step, rounds)["predict"]
            with learning(edge):
                together = medians(step, rounds)["predict"]
            alone = (alone + medians(step, rounds)["predict"]) / 2
        print(f"{threads!s:>8} {alone:9.2f} ms {together:9.2f} ms {together / alone:15.2f}")


@contextmanager
def learning(edge: EdgeLearner, batch: int = 64) -> Iterator[None]:
    """A thread that goes on learning batches."""
    images, labels = noise(edge, batch, seed=1), [edge.classes[place % 100] for place in range(batch)]
    stop = threading.Event()

    def learn() -> None:
        while not stop.is_set():
            edge.learn(images, labels)

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def in_a_row(folder: Path, images: int = 2000) -> None:
    """Single images one after the other: how even that is, and what it writes to the disk."""
    heads: dict[str, Head] = {"LDA": LDA(), "Ridge(projection=2000)": Ridge(projection=2000)}
    print(f"\n{'768 features, 100 classes':>26} {'median':>10} {'p99 / median':>13} {'written':>12}")
    for name, head in heads.items():
        bundle = make_small_bundle(folder / name, head)
        with EdgeLearner.open(bundle, state=folder / f"{name}.db", threads=1) as edge:
            batch, classes = noise(edge, 64), edge.classes
            times = []
            before = written()
            for number in range(3 * images):
                image, label = batch[number % 64][None], [classes[number % 100]]
                begin = time.perf_counter()
                edge.learn(image, label)
                times.append(1e3 * (time.perf_counter() - begin))
            each = (written() - before) / len(times) / 1e3
        parts = np.array(times).reshape(3, images)
        ratio = float(np.median(np.percentile(parts, 99, axis=1) / np.median(parts, axis=1)))
        print(f"{name:>26} {np.median(times):7.2f} ms {ratio:13.2f} {each:9.1f} kB")


def written() -> int:
    """Bytes that this process has had written to disks; 0 where the system does not say."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(dict(line.split(": ") for line in text.splitlines())["write_bytes"])


OPENS = """
import sys, time
begin = time.perf_counter()
import numpy
from everlearn_runtime import EdgeLearner
with EdgeLearner.open(sys.argv[1], state=sys.argv[2] or None, threads=1) as edge:
    edge.predict(numpy.zeros((1, *edge.bundle.manifest.input.shape), numpy.uint8))
    print(time.perf_counter() - begin)
"""


def start(folder: Path, entries: int = 10_000, rounds: int = 9) -> None:
    """Import, open and predict in a new process; without a state, and with much history."""
    bundle = make_small_bundle(folder / "start", LDA())
    state = folder / "start.db"
    with EdgeLearner.open(bundle, state=state, threads=1) as edge:
        batch, classes = noise(edge, 64), edge.classes
        for number in range(entries):
            edge.learn(batch[number % 64][None], [classes[number % 100]])
        kept = len(edge.history())
    times: dict[str, list[float]] = {"": [], str(state): []}
    for _ in range(rounds):
        for place, each in times.items():
            command = [sys.executable, "-c", OPENS, str(bundle), place]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            each.append(float(done.stdout))
    without, with_state = (float(np.median(each)) for each in times.values())
    print(f"\nimport, open, predict: {without:.2f} s; with a history of {kept} versions {with_state:.2f} s")


if __name__ == "__main__":
    main()
