"""``everlearn-device serve``."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from everlearn_runtime.edge import EdgeLearner
from everlearn_runtime.errors import MissingExtra
from everlearn_runtime.serving.gate import check_token, is_loopback
from everlearn_runtime.serving.limits import Limits

if TYPE_CHECKING:
    import uvicorn

    from everlearn_runtime.serving.app import App

TOKEN = "EVERLEARN_TOKEN"
CONNECTIONS = 256  # open ones; beyond these, uvicorn answers 503 by itself
_HELP = {
    "body": "bytes of a request",
    "pixels": "pixels of one picture",
    "images": "pictures in a call",
    "label": "characters of a new class's name",
    "rate": "requests a second from one address",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command takes beside a bundle and a state."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 127.0.0.1, which only this machine reaches"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free; default 8000")
    parser.add_argument(
        "--token",
        help=f"what requests must carry, wanted beyond 127.0.0.1; better in the environment, as {TOKEN}",
    )
    parser.add_argument(
        "--name", action="append", default=[], help="name that the device is called by, beside its host name"
    )
    parser.add_argument("--cert", metavar="PEM", help="certificate, for https")
    parser.add_argument("--cert-key", metavar="PEM", help="its private key")
    for field in fields(Limits):
        if field.name in _HELP:
            parser.add_argument(
                f"--most-{field.name}",
                type=type(field.default),
                default=field.default,
                metavar="N",
                help=f"{_HELP[field.name]}; default {field.default:,}",
            )


def serve(
    arguments: argparse.Namespace, open_learner: Callable[[argparse.Namespace], EdgeLearner]
) -> tuple[Any, str]:
    """Serve until a signal says stop.

    Args:
        arguments: See :func:`add_options`.
        open_learner: Opens the bundle and the state.

    Returns:
        What was reached when it stopped, as JSON and in words.

    Raises:
        MissingExtra: starlette, uvicorn or prometheus-client is not installed.
        ValueError: An address beyond this machine without a token, or an argument out of range.
        OSError: The address cannot be listened on.
    """
    try:
        import uvicorn

        from everlearn_runtime.serving.app import App
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("uvicorn", "starlette", "prometheus_client"):
            raise
        raise MissingExtra("serving a page", "serve") from None
    token = arguments.token if arguments.token is not None else os.environ.get(TOKEN) or None
    try:
        limits = Limits(**{name: getattr(arguments, f"most_{name}") for name in _HELP})
    except ValueError as error:  # which begins with the limit's name
        raise ValueError(f"--most-{error}") from error
    if token is not None:
        check_token(token)
    if (arguments.cert is None) != (arguments.cert_key is None):
        raise ValueError("--cert and --cert-key go together; give both")
    for option, file in (("--cert", arguments.cert), ("--cert-key", arguments.cert_key)):
        if file is not None and not os.path.isfile(file):
            raise ValueError(f"{option} is {file}: no such file")
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(listen(arguments.host, arguments.port, token))
        learner = stack.enter_context(open_learner(arguments))
        app = App(learner, limits=limits, token=token, names=(arguments.host, *arguments.name))
        stack.callback(app.close)
        config = configured(app, arguments.cert, arguments.cert_key)
        config.load()  # a certificate that cannot be read is told before the address is
        url = _url(listening, https=arguments.cert is not None)
        print(json.dumps({"url": url}) if arguments.json else f"teach it at {url} (Ctrl-C stops)", flush=True)
        # uvicorn stops in good order, and then raises the signal again.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: None))
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
        version = learner.version
    return {"url": url, "version": version}, f"stopped at version {version}"


def configured(app: App, cert: str | None = None, key: str | None = None) -> uvicorn.Config:
    """How uvicorn runs the application.

    Args:
        app: What it runs.
        cert: A certificate's file, for https.
        key: Its private key's file.
    """
    import uvicorn

    from everlearn_runtime.serving.protocol import ImpatientProtocol

    return uvicorn.Config(
        app,
        loop="asyncio",
        http=ImpatientProtocol,
        limit_concurrency=CONNECTIONS,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks is who connects, whatever the headers say
        timeout_graceful_shutdown=10,
        ssl_certfile=cert,
        ssl_keyfile=key,
    )


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """Open a socket.

    Args:
        host: An address or a name of this machine.
        port: 0 for any that is free.
        token: What requests must carry; None only where nobody else can connect.

    Raises:
        ValueError: No such address, or one beyond this machine without a token.
        OSError: It cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; give a number from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"host {host!r} is no address of this machine ({error})") from None
    if token is None and not is_loopback(str(address[0])):
        raise ValueError(
            f"listening on {host} lets others in, who could teach it anything: give a token, as {TOKEN} in "
            "the environment, or listen on 127.0.0.1"
        )
    listening = socket.create_server(address[:2], family=family)
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, which these do not;
    # without it an answer's body waits 40 ms for its head to be acknowledged.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _url(listening: socket.socket, *, https: bool) -> str:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:  # all of this machine's
        shown = socket.gethostname()
    return f"{'https' if https else 'http'}://{shown}:{port}/"
