"""Adding up deltas on Ray Data: blocks wherever there is a core, their sums in the blocks' order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from everlearn_runtime.bundle import dump_arrays, load_arrays
from everlearn_runtime.errors import DeltaError, MissingExtra, TrustError
from everlearn_runtime.heads import Head, HeadState, from_state

if TYPE_CHECKING:
    from everlearn_runtime.fleet.merging import BlockSum, Item


def sums_on_ray(add_up: BlockSum, blocks: Sequence[Sequence[Item]]) -> Iterator[Head]:
    """What each block adds up to, in their order.

    Args:
        add_up: Adds up one block; every worker reads the bundle and the deltas by their paths.
        blocks: The deltas.

    Raises:
        MissingExtra: Ray is not installed.
        DeltaError, TrustError: As a worker raised it.
    """
    try:
        import ray.data
    except ImportError:
        raise MissingExtra("merging on Ray", "ray") from None

    def one(row: dict[str, Any]) -> dict[str, Any]:
        try:
            state = add_up(_items(row["items"])).state()
        except ValueError as error:  # told as it is: Ray would wrap it in pages of its own
            return {"says": json.dumps([type(error).__name__, str(error)]), "arrays": b""}
        says = json.dumps([state.kind, state.options, list(state.classes)])
        return {"says": says, "arrays": dump_arrays(state.arrays)}

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = [{"items": json.dumps(block)} for block in blocks]
    found = ray.data.from_items(rows, override_num_blocks=max(len(rows), 1)).map(one)
    for row in found.iter_rows():
        if not row["arrays"]:
            name, says = json.loads(row["says"])
            raise TrustError(says) if name == TrustError.__name__ else DeltaError(says)
        kind, options, classes = json.loads(row["says"])
        try:
            yield from_state(HeadState(kind, tuple(classes), options, load_arrays(row["arrays"])))
        except ValueError as error:
            raise DeltaError(f"the deltas cannot be added: {str(error)[:500]}") from None


def _items(text: str) -> list[Item]:
    """A block's items, which went as JSON."""
    from everlearn_runtime.fleet.merging import Item
    from everlearn_runtime.ledger import Mark, Span

    return [
        Item(path, device, Span(Mark(*start), Mark(*end)), model, tuple(forgotten), noise)
        for path, device, (start, end), model, forgotten, noise in json.loads(text)
    ]
