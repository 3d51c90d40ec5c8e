"""A real server on the loopback: many clients at once, bytes that are no HTTP, and the command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from everlearn_runtime import EdgeLearner
from everlearn_runtime.cli import main
from everlearn_runtime.serving.command import listen

from .conftest import MakeServer, png, state_of, text

MakeImages = Callable[..., NDArray[np.uint8]]
CLIENTS = 50


def ask(url: str, data: object = None, token: str | None = None) -> tuple[int, dict[str, object]]:
    body = None if data is None else json.dumps(data).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def raw(url: str, sent: bytes, *, close: bool = False) -> bytes:
    """What comes back for bytes as they are."""
    place = urlsplit(url)
    assert place.hostname
    assert place.port
    with socket.create_connection((place.hostname, place.port), timeout=20) as line:
        line.sendall(sent)
        if close:
            line.shutdown(socket.SHUT_WR)
        parts = []
        try:
            while part := line.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


def test_fifty_clients_lose_no_update(
    serve: MakeServer, learner: EdgeLearner, make_images: MakeImages
) -> None:
    url, calls = serve(learner), 4
    begin = threading.Barrier(CLIENTS)

    def client(number: int) -> list[int]:
        mine = f"class {number % 10}"
        begin.wait()
        versions = []
        for call in range(calls):
            images = text(make_images(mine, 2, seed=100 * number + call))
            status, said = ask(f"{url}/learn", {"images": images, "label": mine})
            assert status == 200, said
            versions.append(int(str(said["version"])))
            status, said = ask(f"{url}/predict", {"images": images[:1]})
            assert status == 200, said
        return versions

    with ThreadPoolExecutor(CLIENTS) as pool:
        versions = [one for each in pool.map(client, range(CLIENTS)) for one in each]
    assert sorted(versions) == list(range(1, CLIENTS * calls + 1))
    assert learner.version == CLIENTS * calls
    expected = {f"class {number}": CLIENTS // 10 * calls * 2 for number in range(10)}
    assert learner.counts == {"mug": 4, "pen": 4, **expected}


HEAD = b"POST /forget HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
BODY = b'{"label":"mug"}'


@pytest.mark.parametrize(
    ("sent", "close", "status"),
    [
        (HEAD + b"Content-Length: 10000\r\n\r\n" + BODY, True, b""),  # hung up before it was all there
        (HEAD + b"Content-Length: 10000\r\n\r\n" + BODY, False, b"408"),  # the rest never comes
        (HEAD + b"Content-Length: 99999999999\r\n\r\n" + BODY, False, b"413"),
        (HEAD + b"Content-Length: 5\r\n\r\n" + BODY, False, b"400"),  # cut by its own word
        (HEAD + b"Content-Length: -1\r\n\r\n" + BODY, True, b"400"),
        (HEAD + b"Content-Length: x\r\n\r\n" + BODY, True, b"400"),
        (HEAD + b"Content-Length: 15\r\nContent-Length: 16\r\n\r\n" + BODY, True, b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY, True, b"400"),
        (HEAD.replace(b"Host: localhost\r\n", b"") + b"Content-Length: 15\r\n\r\n" + BODY, True, b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", True, b"400"),  # TLS
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", False, b"404"),
        (b"GET /%2e%2e/calls.py HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", False, b"404"),
        (
            b"GET http://evil.example/status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
            False,
            b"403",
        ),
    ],
    ids=range(13),
)
@pytest.mark.filterwarnings("ignore:Invalid HTTP request")
def test_bytes_that_lie(
    serve: MakeServer, learner: EdgeLearner, sent: bytes, close: bool, status: bytes
) -> None:
    url, before = serve(learner, seconds=1.0), state_of(learner)
    answer = raw(url, sent, close=close)
    if status:
        assert answer.split(b" ")[1] == status
    else:
        assert answer == b""
    assert state_of(learner) == before
    assert ask(f"{url}/status")[0] == 200  # and it goes on


@pytest.mark.parametrize("sent", [b"", b"GET /status HTTP/1.1\r\nHost:"])
def test_who_does_not_ask_is_hung_up_on(
    serve: MakeServer, learner: EdgeLearner, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("everlearn_runtime.serving.protocol.PATIENCE", 0.2)
    url = serve(learner)
    assert raw(url, sent) == b""
    asked = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    place = urlsplit(url)
    with socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=20) as line:
        line.sendall(asked)
        time.sleep(0.5)
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        line.sendall(asked + sent)  # the connection is as good as before
        assert line.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_connection_too_many_is_told(
    serve: MakeServer, learner: EdgeLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everlearn_runtime.serving.command.CONNECTIONS", 3)
    url = serve(learner)
    place = urlsplit(url)
    lines = [socket.create_connection((str(place.hostname), int(place.port or 0))) for _ in range(3)]
    time.sleep(0.3)
    assert b" 503 " in raw(url, b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    for line in lines:
        line.close()
    deadline = time.monotonic() + 20
    while raw(url, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").find(b" 200 ") != 8:
        assert time.monotonic() < deadline


def test_a_rate_counts_who_connects_whatever_the_headers_say(serve: MakeServer, learner: EdgeLearner) -> None:
    url = serve(learner, rate=0.001, burst=5)
    found = []
    for number in range(8):
        asked = urllib.request.Request(f"{url}/status", headers={"X-Forwarded-For": f"10.0.0.{number}"})
        try:
            with urllib.request.urlopen(asked) as answer:
                found.append(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                found.append(error.code)
    assert found == [200] * 5 + [429] * 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command(bundle: Path, tmp_path: Path, make_images: MakeImages, how: signal.Signals) -> None:
    state, token = tmp_path / "device.db", "a-token-of-some-length"
    started = subprocess.Popen(
        [sys.executable, "-m", "everlearn_runtime.cli", "serve", bundle, "--state", state, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "EVERLEARN_TOKEN": token},
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        found = re.fullmatch(r"teach it at (http://127\.0\.0\.1:\d+)/ \(Ctrl-C stops\)\n", line)
        assert found, (line, started.stderr and started.stderr.read())
        url = found[1]
        assert ask(f"{url}/status")[0] == 401
        learned = ask(f"{url}/learn", {"images": text(make_images("cup", 3)), "label": "cup"}, token)
        assert learned[0] == 200
        started.send_signal(how)
        out, err = started.communicate(timeout=30)
    finally:
        started.kill()
        started.wait()
    assert (started.returncode, out, err) == (0, "stopped at version 1\n", "")
    assert not Path(f"{state}-wal").exists()  # it was closed in good order
    with EdgeLearner.open(bundle, state=state) as learner:
        assert learner.counts["cup"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "lets others in"),
        (["--host", "::"], "lets others in"),
        (["--host", "0.0.0.0", "--token", "short"], "a token of 5 characters"),
        (["--token", ""], "a token of 0 characters"),
        (["--host", "no such host"], "is no address of this machine"),
        (["--port", "70000"], "from 0 to 65535"),
        (["--cert", "a.pem"], "--cert and --cert-key go together"),
        (["--port", "0", "--cert", "a.pem", "--cert-key", "b.pem"], "--cert is a.pem: no such file"),
        (["--most-images", "0"], "--most-images is 0"),
    ],
)
def test_it_refuses_to_start(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["serve", str(bundle), "--state", str(tmp_path / "device.db"), *options]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_an_address_that_is_taken(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(bundle), "--state", str(tmp_path / "device.db"), "--port", port]) == 2
    assert "in use" in capsys.readouterr().err


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    with listen("127.0.0.1", 0, None) as listening:
        host, port = listening.getsockname()
        with socket.create_connection((host, port)), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "prometheus_client"])
def test_without_the_extra_one_line_names_it(bundle: Path, tmp_path: Path, missing: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from everlearn_runtime.cli import main
sys.exit(main(["serve", {str(bundle)!r}, "--state", {str(tmp_path / "device.db")!r}, "--port", "0"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'everlearn-device: serving a page needs: pip install "everlearn[serve]"\n'
    assert not (tmp_path / "device.db").exists()


def test_the_runtime_alone_brings_in_no_server() -> None:
    program = "import sys, everlearn_runtime.cli; print(sorted({n.split('.')[0] for n in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not any(name in out for name in ("starlette", "uvicorn", "prometheus", "anyio"))


def test_predictions_do_not_wait_for_a_long_lesson(
    serve: MakeServer, learner: EdgeLearner, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, learning, go_on = serve(learner), threading.Event(), threading.Event()
    learn = learner.learn

    def slowly(*arguments: object, **options: object) -> object:
        learning.set()
        assert go_on.wait(30)
        return learn(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(learner, "learn", slowly)
    images = text(make_images("mug", 1))
    with ThreadPoolExecutor(8) as pool:
        lessons = [pool.submit(ask, f"{url}/learn", {"images": images, "label": "mug"}) for _ in range(8)]
        assert learning.wait(30)
        begin = time.monotonic()
        assert ask(f"{url}/predict", {"images": images})[0] == 200
        assert ask(f"{url}/status")[0] == 200
        assert time.monotonic() - begin < 20
        assert not any(one.done() for one in lessons)
        go_on.set()
        assert [one.result()[0] for one in lessons] == [200] * 8
    assert learner.counts["mug"] == 12


def test_pictures_of_a_phone(serve: MakeServer, learner: EdgeLearner) -> None:
    picture = np.full((1500, 2000, 3), (200, 30, 30), np.uint8)
    asked = urllib.request.Request(f"{serve(learner)}/predict", png(picture), {"Content-Type": "image/png"})
    with urllib.request.urlopen(asked) as answer:
        found = json.loads(answer.read())["predictions"]
    assert [one["label"] for one in found] == learner.predict(picture).labels
