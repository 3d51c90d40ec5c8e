"""What a device has learned, in one SQLite file.

Every call that changes the head is written to a journal, in one transaction with the change itself:
features and labels of a ``learn``, the label of a ``forget``; never an image. From time to time
the head goes into a snapshot, piece by piece beside the caller's work. The newest snapshot and the
entries after it give the head as it was left, to the bit; older ones give what it was before,
as far back as the file is allowed to reach.

A process that dies at any point leaves the state before or after a call, never between. With
``durable=False`` (SQLite's WAL with synchronous=NORMAL) a crash of the process loses nothing; a
power failure may lose the last calls, but not the file. ``durable=True`` (synchronous=FULL) brings
every call to the disk before it returns. While in use the file has a ``-wal`` companion, which
belongs to it.
"""

from everlearn_runtime.state.memory import Memory
from everlearn_runtime.state.owner import RETENTION, Owner
from everlearn_runtime.state.reader import Reader
from everlearn_runtime.state.versions import Version

__all__ = ["RETENTION", "Memory", "Owner", "Reader", "Version"]
