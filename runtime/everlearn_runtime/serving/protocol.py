"""HTTP as uvicorn speaks it, without its patience: nobody keeps a connection by not asking."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 10.0  # seconds


class ImpatientProtocol(H11Protocol):
    """Hangs up on a client that connects, or begins a request, and does not say in time what it wants.

    uvicorn itself waits for ever until the first request's head is there. For bodies, see `Limits`.
    """

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: D102
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._stop()
        super().connection_lost(exc)

    def _look(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # it has said what it wants
            self._stop()
        elif self._waits is None:
            self._waits = self.loop.call_later(PATIENCE, self.transport.close)

    def _stop(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None
