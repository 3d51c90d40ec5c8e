"""Changes that are asked for twice, because the first answer was lost on the way, are made once."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from everlearn_runtime.serving.limits import Refused

HEADER = "idempotency-key"
LONGEST = 255  # characters
KEYS, BYTES = 1024, 1 << 20  # that are remembered; the oldest goes first


class Once:
    """Remembers what was answered under which ``Idempotency-Key``.

    What was refused changed nothing and is not remembered, so that it may be tried again. It is used from
    one thread, in which one change comes after the other: a request that comes twice at once waits for
    the first one's answer. It forgets with the process.

    Source: draft-ietf-httpapi-idempotency-key-header-06, section 2.
    """

    def __init__(self, keys: int = KEYS, size: int = BYTES) -> None:
        self._keys, self._size = keys, size
        self._answers: OrderedDict[bytes, tuple[bytes, bytes]] = OrderedDict()
        self._held = 0

    def answer(
        self, key: str | None, asked: bytes, call: Callable[[], dict[str, Any]]
    ) -> tuple[dict[str, Any], bool]:
        """What was answered to a request, or what is answered now.

        Args:
            key: What came in the header; None: nothing, and the call is made.
            asked: Of equal requests the same, see :func:`fingerprint`.
            call: Makes the change.

        Returns:
            The answer, and whether the call was made.

        Raises:
            Refused: 400 for a key that is none, 422 for one that came with another request; what ``call``
                raises.
        """
        if key is None:
            return call(), True
        name = _digest(checked_key(key).encode())
        if name in self._answers:
            before, text = self._answers[name]
            if before != asked:
                raise Refused(422, "this Idempotency-Key came with another request before; give each its own")
            found: dict[str, Any] = json.loads(text)
            return found, False
        found = call()
        text = json.dumps(found).encode()
        self._answers[name] = asked, text
        self._held += len(text)
        while len(self._answers) > self._keys or (self._held > self._size and len(self._answers) > 1):
            _, (_, gone) = self._answers.popitem(last=False)
            self._held -= len(gone)
        return found, True


def checked_key(key: str) -> str:
    """The key itself, of a header's value: in quotes, as the draft has it, or without.

    Raises:
        Refused: 400, nothing, too much, or characters that a header's text does not have.

    >>> checked_key('"8e03978e-40d5-43e8"')
    '8e03978e-40d5-43e8'
    """
    found = re.fullmatch(r'"([ !#-\[\]-~]+)"|([!#-\[\]-~]+)', key)
    if found is None or len(key) > LONGEST:
        raise Refused(
            400, f"an Idempotency-Key is 1 to {LONGEST} letters, digits and signs, such as a UUID, in quotes"
        )
    return str(found[1] or found[2])


def fingerprint(*parts: bytes) -> bytes:
    """32 bytes that differ if any of the parts does."""
    return _digest(b"".join(_digest(part) for part in parts))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
