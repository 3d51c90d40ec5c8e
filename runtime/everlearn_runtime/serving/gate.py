"""Who may ask: the name that the device was called by, the page that asks, and the token."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping

from everlearn_runtime.serving.limits import Refused

SHORTEST_TOKEN = 16
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
"""What every answer carries."""

_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[^\[\]:@/\s]+))(?::\d{1,5})?", re.IGNORECASE)


class Gate:
    """Decides whether a request may come in.

    Args:
        token: What a request must carry as ``Authorization: Bearer TOKEN``; None: nothing.
        names: Names that the device goes by, beside its IP addresses, ``localhost`` and its host name. A page
            from elsewhere whose name was made to point here (DNS rebinding) has another.

    Raises:
        ValueError: A token that is too short, or cannot be sent.
    """

    def __init__(self, token: str | None = None, names: Iterable[str] = ()) -> None:
        if token is not None:
            check_token(token)
        self._token = None if token is None else _digest(token.encode())
        own = socket.gethostname().lower()
        self._names = {"localhost", own, f"{own}.local", *(name.lower() for name in names)}

    def check(self, headers: Mapping[str, str], *, public: bool) -> None:
        """Let a request in.

        Args:
            headers: With their names in lower case.
            public: Whether it asks for something that needs no token, such as the page itself.

        Raises:
            Refused: 403 for another host or origin, 401 for a missing or wrong token.
        """
        host = headers.get("host", "").lower()
        if not self._is_here(host):
            raise Refused(403, f"this device is not called {host[:80]!r}; add the name with --name if it is")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Refused(403, f"pages of {origin[:80]!r} may not ask this device")
        if self._token is None or public:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(_digest(given.strip().encode("utf-8", "replace")), self._token)
        if scheme.lower() != "bearer" or not right:
            raise Refused(401, "the token is missing or wrong; send it as Authorization: Bearer TOKEN")

    def _is_here(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found["six"] or found["name"]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.rstrip(".") in self._names
        return True  # whoever can be made to point here is a name, never an address


def check_token(token: str) -> None:
    """Raise a ``ValueError`` if a token can be guessed, or cannot be sent in a header."""
    if len(token) < SHORTEST_TOKEN:
        raise ValueError(
            f"a token of {len(token)} characters; give at least {SHORTEST_TOKEN}, for example of "
            "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("the token holds blanks, or characters beyond ASCII; give letters, digits and signs")


def is_loopback(address: str) -> bool:
    """Whether only programs on this machine reach an IP address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _digest(text: bytes) -> bytes:
    """Of equal length whatever the text, so that comparing tells nothing about its length either."""
    return hashlib.sha256(text).digest()
