"""How much one call may ask for, and how often: what is refused costs next to nothing."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Addresses whose rate is remembered; the one that has been quiet for longest is forgotten first.
REMEMBERED = 1024


class Refused(Exception):  # noqa: N818 - says what happened, not that something broke
    """A request that is answered with an error.

    Args:
        status: The HTTP status code.
        message: One sentence for people.
        wait: Seconds after which to try again, if that may help.
        allow: The HTTP methods that are allowed, if another one came.
    """

    def __init__(
        self, status: int, message: str, wait: float | None = None, allow: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.wait = wait
        self.allow = allow


@dataclass(frozen=True)
class Limits:
    """What one call, one client, and all of them together may ask for.

    Args:
        body: Bytes of a request.
        pixels: Of one picture, when unpacked.
        images: Pictures in a call.
        label: Characters of a new class's name.
        rate: Requests a second from one address, on average.
        burst: Requests from one address at once.
        memory: Bytes of all requests that are being received or answered.
        seconds: How long a request may take to arrive.

    Raises:
        ValueError: A limit that is not above zero.
    """

    body: int = 16 << 20
    pixels: int = 16_000_000
    images: int = 64
    label: int = 100
    rate: float = 50.0
    burst: int = 100
    memory: int = 64 << 20
    seconds: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value!r}; give a number above 0")


class Rate:
    """A bucket of tokens for each address, filled at a steady rate.

    Args:
        rate: Tokens a second.
        burst: Tokens in a full bucket.
        clock: Seconds, never set back.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> None:
        """Take a token.

        Args:
            address: The client's IP address; IPv6 counts by its /64, which one client has to itself.

        Raises:
            Refused: 429, none is left.
        """
        key, now = _network(address), self._clock()
        tokens, last = self._buckets.pop(key, (float(self._burst), now))
        tokens = min(tokens + (now - last) * self._rate, self._burst)
        enough = tokens >= 1
        self._buckets[key] = (tokens - enough, now)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        if not enough:
            raise Refused(
                429, f"more than {self._rate:g} requests a second; wait a little", (1 - tokens) / self._rate
            )


class Room:
    """Bytes that all requests share while they are received and answered.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Give one request a way to ask for bytes; what it got is given back at the end.

        The function that it gives raises `Refused`, 503, where no room is left.
        """
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            with self._lock:
                if count > self._left:
                    raise Refused(503, "busy with other requests; try again", 1.0)
                self._left -= count
                taken += count

        try:
            yield take
        finally:
            with self._lock:
                self._left += taken


def _network(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # no address at all, a test's or a socket file's
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))
