"""A client of the page's application, without a socket, and a real server on the loopback."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from everlearn_runtime import EdgeLearner

MakeClient = Callable[..., Any]
MakeServer = Callable[..., str]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """One picture's file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def text(pixels: NDArray[np.uint8]) -> list[str]:
    """Pictures as JSON carries them."""
    return [base64.b64encode(png(one)).decode() for one in pixels]


def state_of(learner: EdgeLearner) -> tuple[Any, ...]:
    """All that a refused call must leave as it was."""
    return learner.version, learner.counts, learner.nbytes, [one.number for one in learner.history()]


@pytest.fixture
def make_client(learner: EdgeLearner) -> Iterator[MakeClient]:
    from starlette.testclient import TestClient

    from everlearn_runtime.serving.app import App
    from everlearn_runtime.serving.limits import Limits

    opened: list[Any] = []

    def make(headers: dict[str, str] | None = None, **options: Any) -> TestClient:
        limits = {"rate": 1e6, "burst": 1_000_000, **options.pop("limits", {})}
        app = App(learner, limits=Limits(**limits), **options)
        opened.append(app)
        return TestClient(
            app, base_url="http://localhost:8000", headers=headers, raise_server_exceptions=False
        )

    yield make
    for app in opened:
        app.close()


@pytest.fixture
def client(make_client: MakeClient) -> Any:
    return make_client()


@pytest.fixture
def serve() -> Iterator[MakeServer]:
    """Serve a learner on a free port; gives the address."""
    import uvicorn

    from everlearn_runtime.serving.app import App
    from everlearn_runtime.serving.command import configured, listen
    from everlearn_runtime.serving.limits import Limits

    ends: list[Callable[[], None]] = []

    def start(learner: EdgeLearner, *, token: str | None = None, **limits: Any) -> str:
        app = App(learner, limits=Limits(**{"rate": 1e6, "burst": 1_000_000, **limits}), token=token)
        listening = listen("127.0.0.1", 0, token)
        server = uvicorn.Server(configured(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
            listening.close()
            app.close()

        ends.append(end)
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for end in ends:
        end()


@pytest.fixture
def pens(tmp_path: Path, make_images: Callable[..., NDArray[np.uint8]]) -> list[str]:
    return text(make_images("pen"))
