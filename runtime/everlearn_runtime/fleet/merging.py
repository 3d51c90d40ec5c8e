"""Deltas of many devices, added to the bundle that they have learned on.

Two looks at each: first what it says, to find those that count; then its sums, in blocks of a thousand, so
that what one process or many do is the same arithmetic in the same order, and memory is that of a block.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from everlearn_runtime.bundle import Bundle, check_target, rewrite_bundle
from everlearn_runtime.errors import DeltaError
from everlearn_runtime.fleet.composition import Privacy, of_each
from everlearn_runtime.fleet.delta import Delta
from everlearn_runtime.fleet.noise import add_means
from everlearn_runtime.fleet.stamps import contradict
from everlearn_runtime.heads import Head, from_state
from everlearn_runtime.identity import graph_of, model_of
from everlearn_runtime.ledger import Ledger, Span, add_span, two_pasts
from everlearn_runtime.migration import Replaced

BLOCK = 1000
ANCESTORS = 8


@dataclass(frozen=True)
class Merged:
    """What came of a merge.

    Args:
        deltas: How many were added.
        counted: Files that were counted already, by an earlier merge or within another delta.
        learned: Samples that were added, by class.
        forgotten: Classes that went because a device had forgotten them.
        alike: Pairs of classes in the new bundle whose names look the same, and are not.
        told: For each device, by its number, several of whose files are of the same versions and some with
            noise, what these tell together of one image at most. Of files that were not given here nobody
            knows.
    """

    deltas: int
    counted: tuple[str, ...]
    learned: dict[str, int]
    forgotten: tuple[str, ...]
    alike: tuple[tuple[str, str], ...]
    told: Mapping[str, Privacy]


def merge(
    bundle: str | Path,
    deltas: Iterable[str | Path],
    out: str | Path,
    *,
    trust: Sequence[str | Path] | None = None,
    overwrite: bool = False,
    ray: bool = False,
    ancestors: int = ANCESTORS,
) -> Merged:
    """Add what devices have learned to a bundle: the result is that of one device that saw everything.

    Sums add, so the order does not matter. Of deltas with noise the class means are added, and the bundle's
    covariance within classes stays. A delta that is merged twice, or lies within another one of the
    same device, counts once. A class that a device has forgotten goes from the bundle and from what other
    devices have learned of it with this bundle or an earlier one; what is learned of it after that stays.

    Args:
        bundle: The bundle on which the devices have learned, or one that was merged from it.
        deltas: Their files. Each is read twice, one at a time: memory does not grow with their number, but by
            some hundred bytes each.
        out: The new bundle.
        trust: Public keys, one of which must have signed each delta; None: no signature is looked at.
        overwrite: Replace a bundle at ``out``.
        ray: Add up on Ray Data, in blocks of a thousand, with whatever cluster ``ray.init`` was told of, or
            this machine's cores. The result is the same to the bit.
        ancestors: A device may have missed up to so many bundles, this one among them, and still take it: it
            holds the head of each, at least of the one that it was merged from.

    Raises:
        BundleError: The bundle is damaged.
        MissingExtra: Ray is not installed, or cryptography where ``trust`` is given.
        DeltaError: A delta is damaged, of another graph or head, or overlaps what is counted already.
        TrustError: A delta is not signed by any key of ``trust``, or was altered after that.
        ValueError: No delta, ``ancestors`` below 1, or something is in the way at ``out``.
    """
    if type(ancestors) is not int or ancestors < 1:
        raise ValueError(f"ancestors is {ancestors!r}; give a number of bundles, at least 1")
    opened = Bundle.open(bundle)
    check_target(Path(out), overwrite)
    places = [str(place) for place in deltas]
    if not places:
        raise ValueError("no delta to merge; give at least one file")
    ledger = opened.ledger()
    models = (*ledger.chain, model_of(opened.manifest))
    chosen, counted, devices, told = _choose(places, opened, ledger)
    gone = dict(ledger.forgotten)
    for item in chosen:
        for name in item.forgotten:
            # Unless it has gone since, and may be learned anew.
            if _age(item.model, models) >= ledger.forgotten.get(name, -1):
                gone[name] = len(models)
    head, learned = opened.head(), dict[str, int]()
    forgotten = tuple(
        name for name in head.classes if name in gone and ledger.forgotten.get(name) != gone[name]
    )
    for name in forgotten:
        head.remove(name)
    add_up = BlockSum(str(opened.path), gone, models, None if trust is None else tuple(map(str, trust)))
    noisy: Head | None = None
    for items in ([item for item in chosen if not item.noise], [item for item in chosen if item.noise]):
        for own in _sums(add_up, items, ray):
            for name, count in zip(own.classes, own.counts.tolist(), strict=True):
                learned[name] = learned.get(name, 0) + count
            try:
                if not items[0].noise:
                    head.merge(own)
                elif noisy is None:
                    noisy = own
                else:
                    noisy.merge(own)
            except ValueError as error:
                raise DeltaError(f"the deltas do not go with the bundle: {error}") from None
    try:
        head = head if noisy is None else add_means(head, noisy)
        head.settle()
        from_state(head.state())  # within the bounds of what can be read again
    except ValueError as error:
        raise DeltaError(f"the deltas cannot be added: {str(error)[:500]}") from None
    rewrite_bundle(
        opened,
        out,
        head=head,
        ledger=Ledger(
            devices,
            gone,
            models,
            (*ledger.before, opened.head().state())[-ancestors:],
            {**ledger.latest, **{item.device: len(models) for item in chosen}},
        ),
        overwrite=overwrite,
    )
    return Merged(len(chosen), tuple(counted), learned, forgotten, _alike(head.classes), told)


def _alike(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of names that are the same in Unicode's compatible form, whatever their case and spaces."""
    found: dict[str, str] = {}
    pairs = []
    for name in names:
        looks = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if looks in found:
            pairs.append((found[looks], name))
        found.setdefault(looks, name)
    return tuple(pairs)


def _sums(add_up: BlockSum, items: Sequence[Item], ray: bool) -> Iterator[Head]:
    """What deltas add up to, block by block."""
    blocks = [items[start : start + BLOCK] for start in range(0, len(items), BLOCK)]
    if not ray or not blocks:
        return map(add_up, blocks)
    from everlearn_runtime.fleet.on_ray import sums_on_ray

    return sums_on_ray(add_up, blocks)


class Item(NamedTuple):
    """A delta that counts: what is looked at before its sums are read."""

    path: str
    device: str
    span: Span
    model: str
    forgotten: tuple[str, ...]
    noise: bool


@dataclass(frozen=True)
class BlockSum:
    """Adds up some deltas, wherever that is done.

    Args:
        bundle: The folder of the bundle that they are merged into.
        gone: Classes that go from deltas of bundles older than so many, see `Ledger.forgotten`.
        models: sha256 of graph and head of the bundles before, and of this one.
        trust: As :func:`merge`.
    """

    bundle: str
    gone: Mapping[str, int]
    models: tuple[str, ...]
    trust: tuple[str, ...] | None

    def __call__(self, items: Sequence[Item]) -> Head:
        """A head that has seen what these deltas hold; raises like :func:`merge`."""
        total: Head | None = None
        for item in items:
            own = self._sums(item)
            if total is None:
                total = own
                continue
            try:
                total.merge(own)
            except ValueError as error:
                raise DeltaError(f"{item.path}: {error}") from None
        assert total is not None
        return total

    @cached_property
    def _opened(self) -> Bundle:
        return Bundle.open(self.bundle)

    @cached_property
    def _replaced(self) -> Replaced | None:
        return self._opened.replaced()

    @cached_property
    def _graph(self) -> str:
        return graph_of(self._opened.manifest)

    def _sums(self, item: Item) -> Head:
        """A delta's sums in this bundle's features, less what was forgotten."""
        delta = Delta.read(item.path, trust=self.trust)
        if _item(item.path, delta) != item:
            raise DeltaError(f"{item.path} was changed while it was merged")
        own, replaced = delta.head(), self._replaced
        moves = delta.graph != self._graph and replaced is not None
        if not moves and own.width not in (None, self._opened.manifest.width):
            raise DeltaError(
                f"{item.path} has sums of {own.width} features, the bundle of {self._opened.manifest.width}"
            )
        if moves and replaced is not None:
            try:
                own = replaced.moved(own, own if item.noise else self._opened.head())
            except ValueError as error:
                raise DeltaError(f"{item.path}: {error}") from None
        age = _age(delta.model, self.models)
        for name in own.classes:
            if name not in delta.forgotten and age < self.gone.get(name, age):
                own.remove(name)
        return own


def _item(path: str, delta: Delta) -> Item:
    return Item(path, delta.device, delta.span, delta.model, delta.forgotten, delta.noise is not None)


def _choose(
    places: list[str], bundle: Bundle, ledger: Ledger
) -> tuple[list[Item], list[str], dict[str, tuple[Span, ...]], dict[str, Privacy]]:
    """The deltas that count, in an order of their own; those that do not; what is in it then; and what those
    with noise tell together."""
    found: dict[str, list[Item]] = {}
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
                "first; merge it into that one"
            )
        found.setdefault(delta.device, []).append(_item(place, delta))
    chosen, counted, devices = list[Item](), list[str](), dict(ledger.devices)
    for device in sorted(found):
        _check_one_past(device, found[device])
        # The longest first, so that what lies within it is counted with it.
        for item in sorted(found[device], key=lambda one: (-_length(one.span), one.span, one.path)):
            try:
                more = add_span(devices.get(device, ()), item.span, device)
            except ValueError as error:
                raise DeltaError(f"{item.path}: {error}") from None
            if more is None:
                counted.append(item.path)
            else:
                devices[device] = more
                chosen.append(item)
    noisy = {
        device: [item.path for item in items]
        for device, items in found.items()
        if len(items) > 1 and any(item.noise for item in items)
    }
    order = sorted(chosen, key=lambda item: (item.device, item.span))
    return order, sorted(counted), devices, of_each(noisy)


def _check_one_past(device: str, items: Sequence[Item]) -> None:
    """Raise a DeltaError if some of a device's deltas are those of another one with the same number."""
    known: dict[int, str] = {}
    for item in items if len(items) > 1 else ():
        marks = [*item.span, *Delta.peek(item.path).passed]
        if (version := contradict(known.items(), marks)) is not None:
            raise DeltaError(f"{item.path}: {two_pasts(device, version)}")
        known.update(marks)


def _age(model: str, models: tuple[str, ...]) -> int:
    """How many bundles came before one of these; -1 for that of another graph, which all of them replace."""
    return models.index(model) if model in models else -1


def _length(span: Span) -> int:
    return span.end.version - span.start.version
