"""A device takes the bundle that many have learned for, and keeps what it has learned since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.errors import StateError
from everlearn_runtime.fleet.stamps import stamp
from everlearn_runtime.heads import Head
from everlearn_runtime.ledger import Ledger
from everlearn_runtime.migration import Carried, Replaced, carry_onto

if TYPE_CHECKING:
    from everlearn_runtime.state import Owner, Version
    from everlearn_runtime.state.owner import Past

MEND = (
    "merge a new delta of this device into the bundle that it has, in place of the earlier ones, or start "
    "anew with a new state"
)


def take_in(owner: Owner, onto: Head, ledger: Ledger, age: int, replaced: Replaced | None = None) -> Carried:
    """What a device goes on with that gets a bundle which was merged from its own.

    It is what it would be, had the device taken all bundles between. What it had handed in, and taken back
    since, comes back with the bundle, for which it counts. Classes of which the bundle has nothing, because
    the device had fewer samples than ``min_count`` when it handed in, it keeps as far as its journal has
    them.

    Args:
        owner: Its state.
        onto: The merged bundle's head, which is changed: to it comes what the device has learned since the
            version that it had handed in.
        ledger: What is in the merged bundle.
        age: How many bundles came before the one that the state goes with; -1 for that of another graph,
            which the bundle replaces.
        replaced: The bundle of that graph.

    Raises:
        StateError: What is in the bundle cannot be told from the rest of what the device knows, or the state
            is damaged.
    """
    past, known = handed_in(owner, ledger, age), onto.classes
    own, forgotten = owner.use(lambda head: (head.since(past.head, past.forgotten), past.gone(head)))
    # Who has missed that a class was forgotten, and perhaps learned anew by others, has not forgotten that.
    forgotten = tuple(name for name in forgotten if ledger.forgotten.get(name, age) <= age)
    rows = {} if past.begin.version == 0 else _withheld(owner, past, own, {*known, *ledger.forgotten})
    for name, more in rows.items():
        own.update(more, [name] * len(more))
    if replaced is not None:
        own = replaced.moved(own, onto)
    for name in own.classes:
        if ledger.forgotten.get(name, age) > age and name not in past.forgotten:
            own.remove(name)
    return carry_onto(onto, own, forgotten, owner.head)


def handed_in(owner: Owner, ledger: Ledger, age: int) -> Past:
    """A device's last version that is in a bundle, and what came of it.

    Args:
        owner: Its state.
        ledger: What is in the bundle.
        age: As :func:`take_in`.

    Raises:
        StateError: As :func:`take_in`.
    """
    mark = ledger.end(owner.device)
    if mark is None or ledger.latest[owner.device] <= age:  # then the bundle that it has holds as much
        return owner.since(None)
    says = f"{owner.path} cannot go on with this bundle, which holds what it had learned up to version "
    says += f"{mark.version}: "
    history = owner.history()
    first, spans = history[0].number, ledger.devices[owner.device]
    if len(spans) > 1 or spans[0].start.version > max(first - 1, 0):
        there = ", ".join(f"{span.start.version} to {span.end.version}" for span in spans)
        raise StateError(f"{says}but not all, of it are there only versions {there}; {MEND}")
    if mark.version > owner.version:
        raise StateError(
            f"{says}it is at version {owner.version}, as a backup or a copy of this device's state is; start "
            "anew with a new state"
        )
    if mark.version == first - 1 and history[0].kind == "migrate":
        # All that it had learned when it took the bundle that it has is in this one.
        return owner.since(first)
    if mark.version < first:
        raise StateError(
            f"{says}its history goes from version {first} to {owner.version}, so that what came since cannot "
            f"be told apart; {MEND}"
        )
    if not any(stamp(owner.device, one) == mark for one in history):
        raise StateError(
            f"{says}that is not the version of this number here: two devices go on from copies of one state; "
            "start anew with a new state"
        )
    before = set(_line(history, mark.version))
    common = next((version for version in _line(history, owner.version) if version in before), None)
    if common is None:
        raise StateError(f"{says}it went back to before all that its history has; {MEND}")
    return owner.since(common)


def _line(history: Sequence[Version], version: int) -> Iterator[int]:
    """What a version goes back on, the newest first: what was rolled back is passed over."""
    there = {one.number: one for one in history}
    while version in there:
        yield version
        back = there[version].to
        version = version - 1 if back is None else back


def _withheld(owner: Owner, past: Past, own: Head, known: set[str]) -> Mapping[str, NDArray[np.float64]]:
    """Features (n, F), by class, of what was learned before a version, of classes nothing of which is known
    elsewhere."""
    later = dict(zip(own.classes, own.counts.tolist(), strict=True))
    found = {}
    for name, rows in owner.samples(None).items():
        before = len(rows) - later.get(name, 0)
        if name not in known and before > 0:
            found[name] = rows[:before]
    return found
