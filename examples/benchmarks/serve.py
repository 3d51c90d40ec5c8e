"""How long the page's API takes to answer: one client, ten, fifty, and beside one that teaches.

    python examples/benchmarks/serve.py [BUNDLE] [--seconds 5]

Without a bundle it exports the bundled backbone with the digits that come with scikit-learn. The server is
``everlearn-device serve`` in a process of its own, the clients are threads of this one, on the loopback; each
keeps its connection, and sends one picture a call. Beside, the same picture, decoded, in a plain
``EdgeLearner`` here: what HTTP, JSON and decoding add. At the end the sums are held against what was sent: no
update may be lost.
"""

import argparse
import http.client
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from everlearn import Frozen, Learner
from everlearn.data import digits
from everlearn_runtime import EdgeLearner

SIDE = 240  # pixels, about what a page sends of a camera


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = arguments.bundle or make_bundle(folder / "bundle")
        plain = in_process(bundle, arguments.seconds)
        print(f"{'':<34}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'calls/s':>9}")
        row("EdgeLearner.predict, no server", plain, arguments.seconds)
        with server(bundle, folder / "device.db") as port:
            before = samples(port)
            for clients in (1, 10, 50):
                times, _ = load(port, clients, 0, arguments.seconds)
                row(f"/predict, {clients} clients", times, arguments.seconds)
            times, taught = load(port, 10, 1, arguments.seconds)
            row("/predict, 10 clients, 1 teaches", times, arguments.seconds)
            _, more = load(port, 0, 50, arguments.seconds)
            row("/learn, 50 clients", more, arguments.seconds)
            learned, sent = samples(port) - before, len(taught) + len(more)
        print(f"\n{sent} pictures were taught, {learned} are in the sums")
        if learned != sent:
            sys.exit("updates were lost")


def make_bundle(path: Path) -> Path:
    train, _ = digits()
    learner = Learner(method=Frozen(), progress=False)
    learner.fit(train)
    learner.export(path)
    return path


def picture(seed: int) -> bytes:
    """A JPEG of blurred noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def in_process(bundle: Path, seconds: float) -> list[float]:
    image, times = np.asarray(Image.open(io.BytesIO(picture(0)))), []
    with EdgeLearner.open(bundle, threads=1) as learner:
        learner.predict(image)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            learner.predict(image)
            times.append(time.perf_counter() - start)
    return times


@contextmanager
def server(bundle: Path, state: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "everlearn_runtime.cli", "serve", str(bundle), "--state", str(state)]
    options = ["--port", "0", "--json", "--threads", "1", "--most-rate", "1000000"]
    started = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        url = json.loads(started.stdout.readline())["url"]
        yield int(url.rstrip("/").rpartition(":")[2])
    finally:
        started.terminate()
        started.wait()


def load(port: int, predicting: int, teaching: int, seconds: float) -> tuple[list[float], list[float]]:
    """Let clients ask for some seconds; gives the time of every call, of the two kinds."""
    predicted: list[float] = []
    taught: list[float] = []
    begin, failures = threading.Barrier(predicting + teaching), list[str]()

    def client(number: int) -> None:
        teaches = number >= predicting
        path = f"/learn?label={quote(f'class {number % 10}')}" if teaches else "/predict"
        line, body, end = http.client.HTTPConnection("127.0.0.1", port, timeout=60), picture(number), 0.0
        begin.wait()
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            line.request("POST", path, body, {"Content-Type": "image/jpeg"})
            answer = line.getresponse()
            said = answer.read()
            if answer.status != 200:
                failures.append(f"{answer.status} {said!r}")
                break
            (taught if teaches else predicted).append(time.perf_counter() - start)
        line.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(predicting + teaching)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(failures[0])
    return predicted, taught


def samples(port: int) -> int:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    line.request("GET", "/status")
    said = json.loads(line.getresponse().read())
    line.close()
    return sum(one["samples"] for one in said["classes"])


def row(name: str, times: list[float], seconds: float) -> None:
    low, high, highest = np.percentile(times, [50, 90, 99]) * 1000
    print(f"{name:<34}{low:>9.1f}{high:>9.1f}{highest:>9.1f}{len(times) / seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
