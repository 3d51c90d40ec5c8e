"""The HTTP side: an ASGI application with a fixed table of calls and files."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from everlearn_runtime.edge import EdgeLearner
from everlearn_runtime.serving.calls import Calls
from everlearn_runtime.serving.gate import HEADERS, Gate
from everlearn_runtime.serving.limits import Limits, Rate, Refused, Room
from everlearn_runtime.serving.metrics import TYPE, Metrics
from everlearn_runtime.serving.once import HEADER, Once, fingerprint
from everlearn_runtime.serving.openapi import describe
from everlearn_runtime.serving.requests import data_of

log = logging.getLogger(__name__)

SCRIPTS = ("page.js", "api.js", "pictures.js", "view.js")
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in SCRIPTS},
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""All that is ever served from the disk, read once at the start."""

METHODS = {
    "predict": "POST",
    "learn": "POST",
    "forget": "POST",
    "undo": "POST",
    "rollback": "POST",
    "history": "GET",
    "status": "GET",
}
PICTURES = ("predict", "learn")
CHANGES = ("learn", "forget", "undo", "rollback")
SMALL_BODY = 1 << 16  # bytes, of calls without pictures
PREDICTING, CHANGING, LOOKING = 4, 1, 2  # threads


class App:
    """Answers HTTP requests with a learner: the page, the API, its description and metrics.

    Args:
        learner: Who predicts and learns; it is not closed here.
        limits: What one call, one client and all together may ask for.
        token: What requests must carry, see `Gate`; None only where nobody else can connect.
        names: Names that the device goes by, see `Gate`.
    """

    def __init__(
        self,
        learner: EdgeLearner,
        *,
        limits: Limits | None = None,
        token: str | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        limits = limits or Limits()
        self._calls = Calls(learner, limits)
        self._gate = Gate(token, names)
        self._limits = limits
        self._rate = Rate(limits.rate, limits.burst)
        self._room = Room(limits.memory)
        self._metrics = Metrics(learner)
        self._once = Once()
        folder = files("everlearn_runtime.serving")
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
        description = describe(limits, token is not None)
        self._files["/openapi.json"] = (json.dumps(description).encode(), "application/json")
        # Learning waits in a queue of its own, so that it never takes the threads of predictions.
        self._predicting = ThreadPoolExecutor(PREDICTING, "predict")
        self._changing = ThreadPoolExecutor(CHANGING, "change")
        self._looking = ThreadPoolExecutor(LOOKING, "look")

    def close(self) -> None:
        """Finish what has begun."""
        for pool in (self._predicting, self._changing, self._looking):
            pool.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        assert scope["type"] == "http"
        start, path = time.perf_counter(), scope["path"]
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        request = Request(scope, receive)
        try:
            response = await self._answer(request, path)
        except Refused as error:
            response = _error(error)
        except ClientDisconnect:
            return
        except Exception:
            log.exception("%s failed", path)
            response = _error(Refused(500, "something went wrong on the device; its log says what"))
        response.headers.update(HEADERS)
        try:
            await response(scope, receive, told)
        finally:
            name = path[1:] if path[1:] in METHODS or path == "/metrics" or path in self._files else "other"
            self._metrics.requests.labels(name or "page", str(status)).inc()
            self._metrics.seconds.labels(name or "page").observe(time.perf_counter() - start)

    async def _answer(self, request: Request, path: str) -> Response:
        self._rate.take(request.client.host if request.client else "")
        self._gate.check(request.headers, public=path in self._files)
        name = path[1:]
        method = METHODS.get(name) if path.startswith("/") else None
        if method is None and path not in self._files and path != "/metrics":
            raise Refused(404, f"nothing is at {path[:80]!r}; /openapi.json says what is")
        _check_method(request, method or "GET")
        if path in self._files:
            content, kind = self._files[path]
            return Response(content, media_type=kind)
        if path == "/metrics":
            text = await asyncio.get_running_loop().run_in_executor(self._looking, self._metrics.text)
            return Response(text, media_type=TYPE)
        return await self._call(request, name)

    async def _call(self, request: Request, name: str) -> Response:
        pool = {"predict": self._predicting, "history": self._looking, "status": self._looking}
        kind, query = request.headers.get("content-type", ""), request.url.query
        with self._room.share() as take:
            most = self._limits.body if name in PICTURES else SMALL_BODY
            reading = _body(request, most, take)
            try:
                body = await asyncio.wait_for(reading, self._limits.seconds)
            except asyncio.TimeoutError:
                raise Refused(
                    408, f"the request took more than {self._limits.seconds:g} s to arrive"
                ) from None
            key = request.headers.get(HEADER) if name in CHANGES else None

            def answer() -> tuple[dict[str, Any], bool]:
                asked = fingerprint(name.encode(), kind.encode(), query.encode(), body) if key else b""
                return self._once.answer(
                    key, asked, lambda: self._calls.answer(name, data_of(name, kind, query, body))
                )

            said, made = await asyncio.get_running_loop().run_in_executor(
                pool.get(name, self._changing), answer
            )
        if made:
            self._count(name, said)
        return _json(said, 200)

    def _count(self, name: str, said: dict[str, Any]) -> None:
        if name == "predict":
            known = [one["known"] for one in said["predictions"]]
            self._metrics.images.labels("predict").inc(len(known))
            self._metrics.unknown.inc(known.count(False))
        elif name == "learn":
            self._metrics.images.labels("learn").inc(sum(one["samples"] for one in said["learned"]))


async def _body(request: Request, most: int, take: Any) -> bytes:
    """A request's body, no more of it than is allowed; whatever its Content-Length says."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "the body is compressed; send it plain")
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > most:
        raise Refused(413, f"a body of {said[:20]} bytes; send at most {most:,}")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused(413, f"a body of more than {most:,} bytes; send no more than that")
        take(len(part))
        parts.append(part)
    return b"".join(parts)


def _check_method(request: Request, method: str) -> None:
    allowed = ("GET", "HEAD") if method == "GET" else (method,)
    if request.method not in allowed:
        raise Refused(405, f"{request.method[:20]} is not for this; use {method}", allow=", ".join(allowed))


def _error(error: Refused) -> Response:
    response = _json({"error": str(error)}, error.status)
    if error.wait is not None:
        response.headers["retry-after"] = str(max(math.ceil(error.wait), 1))
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if error.allow is not None:
        response.headers["allow"] = error.allow
    return response


def _json(data: dict[str, Any], status: int) -> Response:
    # Only ASCII: a name may hold what UTF-8 does not have, if it came from elsewhere.
    return Response(json.dumps(data).encode(), status, media_type="application/json")
