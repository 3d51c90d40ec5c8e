"""The journal: what was done to a head, entry by entry."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.heads import Head, Judgement
from everlearn_runtime.state.versions import Version

KINDS = ("learn", "forget", "adapt", "rollback", "settle", "start", "purge", "migrate")
DTYPES = ("<f4", "<f8")
FORMS = ("", "exact", "pooled")
LATEST = (1 << 47) - 1  # milliseconds; the year 6429
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Event:
    """What one entry says.

    Args:
        kind: "learn", "forget" and "adapt"; "rollback"; "settle", which is no version of its own: the head
            finished what it had put off, as it must before a snapshot; "start", "purge"
            and "migrate", with which a file begins.
        version: The version that it makes.
        time: Milliseconds since 1970, UTC.
        labels: Of "learn" and "adapt", one for each row; of "forget", the class.
        samples: Of "forget", how many the class had.
        dtype: Of "learn", of the features.
        width: Of "learn", of the features.
        to: Of "rollback", the version that it went back to.
        seq: Of "rollback", the last entry of that version.
        form: Of "forget" and "purge", how the class went, see `Version`.
        judged: Of "learn", what the head said of the rows before, as `Judgement.says` gives it; empty where
            it was not asked, and in entries of earlier versions.
        head: Of "adapt", what there is of the head beside arrays: ``kind``, ``classes`` and ``options``.
    """

    kind: str
    version: int
    time: int
    labels: tuple[str, ...] = ()
    samples: int = 0
    dtype: str = ""
    width: int = 0
    to: int = 0
    seq: int = 0
    form: str = ""
    judged: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text that goes into the journal: what is not as by default."""
        said = {name: value for name, value in vars(self).items() if value}
        return json.dumps(said, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: object) -> Event:
        """The reverse of :meth:`to_json`.

        Raises:
            ValueError: No such text. Its numbers, labels and kind are checked.
        """
        try:
            said = json.loads(text) if isinstance(text, str) else None
        except RecursionError:
            raise ValueError("an entry is nested too deeply") from None
        if not isinstance(said, dict) or not set(said) <= set(cls.__dataclass_fields__):
            raise ValueError("an entry is not one of a journal")
        labels = said.pop("labels", ())
        event = cls(**{"kind": "", "version": 0, "time": 0, **said}, labels=tuple(labels))
        numbers = (event.version, event.time, event.samples, event.width, event.to, event.seq)
        if event.kind not in KINDS or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("an entry is not one of a journal")
        if event.time > LATEST or any(not isinstance(label, str) for label in event.labels):
            raise ValueError("an entry is not one of a journal")
        if event.form not in FORMS or not isinstance(event.judged, dict) or not isinstance(event.head, dict):
            raise ValueError("an entry is not one of a journal")
        return event

    def told(self) -> Version:
        """This event for users."""
        counted = Counter(self.labels)
        forgotten = dict.fromkeys(self.labels, self.samples)
        counts = {"learn": counted, "adapt": counted, "forget": forgotten}
        return Version(
            self.version,
            EPOCH + timedelta(milliseconds=self.time),
            self.kind,
            dict(counts.get(self.kind, {})),
            self.to if self.kind == "rollback" else None,
            self.form or None,
        )

    def names(self, label: str) -> bool:
        """Whether a class is named here."""
        return label in self.labels or label in self.head.get("classes", ())

    def replay(self, head: Head, features: bytes) -> None:
        """Do to a head what this event says, unless it puts another one in its place: "adapt" does.

        Raises:
            ValueError: It does not go with this head.
        """
        if self.kind == "learn":
            learn(
                head, self.rows(features), self.labels, Judgement.read(self.judged) if self.judged else None
            )
        elif self.kind == "forget":
            (label,) = self.labels
            head.remove(label)
        elif self.kind == "settle":
            head.settle()
        elif self.kind in ("rollback", "adapt"):
            raise ValueError(f"{self.kind} is not replayed on a head")

    def rows(self, features: bytes) -> NDArray[Any]:
        """Of "learn", the features (B, F).

        Raises:
            ValueError: It says no type or width of them.
        """
        if self.dtype not in DTYPES or self.width < 1:
            raise ValueError(f"features of {self.dtype!r} and width {self.width}")
        return np.frombuffer(features, dtype=self.dtype).reshape(-1, self.width)


def pack(
    features: NDArray[np.floating[Any]], labels: Sequence[str], judgement: Judgement | None = None
) -> tuple[dict[str, Any], bytes]:
    """What a "learn" says, and its features as bytes, kept to the bit.

    Args:
        features: float32 or float64 (B, F).
        labels: B class names.
        judgement: What the head said of them, if it was asked.
    """
    dtype = features.dtype.newbyteorder("<")
    says = {"labels": tuple(labels), "dtype": dtype.str, "width": features.shape[1]}
    if judgement is not None:
        says["judged"] = judgement.says()
    return says, np.ascontiguousarray(features, dtype=dtype).tobytes()


def learn(
    head: Head, features: NDArray[np.floating[Any]], labels: Sequence[str], judgement: Judgement | None
) -> None:
    """Let a head learn rows (B, F), and note what it said of them before."""
    head.update(features, labels)
    if judgement is not None:
        head.note(judgement)


def form_of(head: Head, label: str) -> str:
    """How a head drops a class that it knows."""
    return "exact" if head.removes_exactly(label) else "pooled"


def digest(before: bytes, seq: int, total: int, text: str, features: bytes) -> bytes:
    """The checksum of an entry and of all entries before it, 32 bytes.

    Args:
        before: That of the entry before.
        seq: The entry's number.
        total: Bytes of the journal up to here.
        text: What it says.
        features: Its features.
    """
    sha = hashlib.sha256(before)
    sha.update(f"{seq} {total} {text}\n".encode("utf-8", "surrogatepass"))
    sha.update(features)
    return sha.digest()


def now() -> int:
    """Milliseconds since 1970, UTC, by the device's clock, whatever that says."""
    return min(max(time.time_ns() // 1_000_000, 0), LATEST)
