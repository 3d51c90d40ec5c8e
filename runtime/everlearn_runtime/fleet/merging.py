"""Deltas of many devices, added to the bundle that they have learned on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn_runtime.bundle import Bundle, rewrite_bundle
from everlearn_runtime.errors import DeltaError
from everlearn_runtime.fleet.delta import Delta
from everlearn_runtime.heads import Head
from everlearn_runtime.identity import graph_of, model_of
from everlearn_runtime.ledger import Ledger, Span, add_span
from everlearn_runtime.migration import Carried

if TYPE_CHECKING:
    from everlearn_runtime.state import Owner


@dataclass(frozen=True)
class Merged:
    """What came of a merge.

    Args:
        deltas: How many were added.
        counted: Files that were counted already, by an earlier merge or within another delta.
        learned: Samples that were added, by class.
        forgotten: Classes that went because a device had forgotten them.
    """

    deltas: int
    counted: tuple[str, ...]
    learned: dict[str, int]
    forgotten: tuple[str, ...]


def merge(
    bundle: str | Path,
    deltas: Iterable[str | Path],
    out: str | Path,
    *,
    trust: Sequence[str | Path] | None = None,
    overwrite: bool = False,
) -> Merged:
    """Add what devices have learned to a bundle: the result is that of one device that saw everything.

    Sums add, so the order does not matter. A delta that is merged twice, or lies within another one of the
    same device, counts once. A class that a device has forgotten goes from the bundle and from what other
    devices have learned of it with this bundle or an earlier one; what is learned of it after that stays.

    Args:
        bundle: The bundle on which the devices have learned, or one that was merged from it.
        deltas: Their files. Each is read twice, one at a time: memory does not grow with their number, but by
            some hundred bytes each.
        out: The new bundle.
        trust: Public keys, one of which must have signed each delta; None: no signature is looked at.
        overwrite: Replace a bundle at ``out``.

    Raises:
        BundleError: The bundle is damaged.
        DeltaError: A delta is damaged, of another graph or head, or overlaps what is counted already.
        TrustError: A delta is not signed by any key of ``trust``, or was altered after that.
        ValueError: No delta, or something is in the way at ``out``.
    """
    opened = Bundle.open(bundle)
    places = [Path(place) for place in deltas]
    if not places:
        raise ValueError("no delta to merge; give at least one file")
    ledger = opened.ledger()
    chosen, counted, devices = _choose(places, opened, ledger)
    generation = len(ledger.chain)
    gone = dict(ledger.forgotten)
    gone.update({name: generation + 1 for _, delta in chosen for name in delta.forgotten})
    head, learned = opened.head(), dict[str, int]()
    forgotten = tuple(
        name for name in head.classes if name in gone and ledger.forgotten.get(name) != gone[name]
    )
    for name in forgotten:
        head.remove(name)
    age = {model: place for place, model in enumerate([*ledger.chain, model_of(opened.manifest)])}
    for place, said in chosen:
        delta = Delta.read(place, trust=trust)
        if replace(delta, state=said.state) != said or delta.state.classes != said.state.classes:
            raise DeltaError(f"{place} was changed while it was merged")
        own = _in_this_graph(delta, opened, place)
        for name in own.classes:
            if name in gone and name not in delta.forgotten and age.get(delta.model, generation) < gone[name]:
                own.remove(name)
        try:
            head.merge(own)
        except ValueError as error:
            raise DeltaError(f"{place}: {error}") from None
        for name, count in zip(own.classes, map(int, own.counts), strict=True):
            learned[name] = learned.get(name, 0) + count
    head.settle()
    now = Ledger(devices, gone, (*ledger.chain, model_of(opened.manifest)), opened.head().state())
    rewrite_bundle(opened, out, head=head, ledger=now, overwrite=overwrite)
    return Merged(len(chosen), tuple(map(str, counted)), learned, forgotten)


def take_in(owner: Owner, onto: Head, ledger: Ledger) -> Carried:
    """What a device goes on with that gets a bundle which was merged from its own.

    Args:
        owner: Its state.
        onto: The merged bundle's head, which is changed: to it comes what the device has learned since the
            version that it had handed in.
        ledger: What is in the merged bundle.

    Raises:
        ValueError: That version cannot be reached any more, or is not in this device's past.
        StateError: The state is damaged.
    """
    mark = ledger.end(owner.device)
    past = owner.since(None if mark is None else mark.version)
    if mark is not None and past.begin != mark:
        raise ValueError(
            f"version {mark.version} of this state is not the one that was merged: two devices go on from "
            "copies "
            "of one state; start anew with a new state"
        )
    device = owner.head
    own, kept = device.since(past.head), device.kept(past.head)
    forgotten = tuple(dict.fromkeys([*past.forgotten, *(c for c in past.head.classes if c not in kept)]))
    for name in forgotten:
        if name in onto.classes:
            onto.remove(name)
    for name in own.classes:
        if name in ledger.forgotten and name not in forgotten:
            own.remove(name)
    onto.merge(own)
    onto.settle()
    learned = dict(zip(own.classes, map(int, own.counts), strict=True))
    return Carried(onto, learned, tuple(name for name in forgotten if name not in device.classes))


def _choose(
    places: list[Path], bundle: Bundle, ledger: Ledger
) -> tuple[list[tuple[Path, Delta]], list[Path], dict[str, tuple[Span, ...]]]:
    """The deltas that count, in an order of their own; those that do not; and what is in it then."""
    found: dict[str, list[tuple[Span, Path, Delta]]] = {}
    known, graph = {*ledger.chain, model_of(bundle.manifest)}, graph_of(bundle.manifest)
    replaced = bundle.replaced()
    for place in places:
        delta = Delta.peek(place)
        old = replaced is not None and delta.model == replaced.model
        if not old and delta.graph != graph:
            raise DeltaError(f"{place} is of another graph or head; merge it into the bundle of its device")
        if not old and delta.model not in known:
            raise DeltaError(
                f"{place} was learned on another bundle with the same graph, which knew something else at "
                "first; "
                "merge it into that one"
            )
        found.setdefault(delta.device, []).append((delta.span, place, delta))
    chosen, counted, devices = list[tuple[Path, Delta]](), list[Path](), dict(ledger.devices)
    for device in sorted(found):
        # The longest first, so that what lies within it is counted with it.
        for span, place, delta in sorted(
            found[device], key=lambda one: (one[0].start.version - one[0].end.version, one[0], str(one[1]))
        ):
            try:
                more = add_span(devices.get(device, ()), span, device)
            except ValueError as error:
                raise DeltaError(f"{place}: {error}") from None
            if more is None:
                counted.append(place)
            else:
                devices[device] = more
                chosen.append((place, delta))
    chosen.sort(key=lambda one: (one[1].device, one[1].span))
    return chosen, sorted(counted), devices


def _in_this_graph(delta: Delta, bundle: Bundle, place: Path) -> Head:
    """A delta's sums, by the bundle's map if they are of the graph before this one."""
    own, replaced = delta.head(), bundle.replaced()
    if delta.graph == graph_of(bundle.manifest) or replaced is None:
        return own
    try:
        return own.moved(replaced.drift, bundle.head())
    except ValueError as error:
        raise DeltaError(f"{place}: {error}") from None
