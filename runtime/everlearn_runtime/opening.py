"""From a bundle and a state file to what keeps the head: in memory, owned, read, or moved to this bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from everlearn_runtime.bundle import Bundle
from everlearn_runtime.errors import OtherModel, StateError
from everlearn_runtime.fleet import take_in
from everlearn_runtime.heads import Head, from_state
from everlearn_runtime.identity import model_of
from everlearn_runtime.migration import Carried, Migrated, Replaced
from everlearn_runtime.state import Memory, Owner, Reader


def check_path(what: str, path: object, wanted: str = "a path") -> None:
    """Raise a ValueError for what is no path, or one that no file can have.

    Args:
        what: What it is of, for the message.
        path: Anything.
        wanted: What to give.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"{what} is {path!r}; give {wanted}")
    name = os.fspath(path)
    try:
        sound = isinstance(name, str) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        sound = False
    if not sound:
        raise ValueError(f"{what} is {path!r}, which no file can be called; give {wanted}")


@dataclass(frozen=True)
class StateFile:
    """Where and how a device keeps its state; the fields are those of ``EdgeLearner.open``.

    Raises:
        ValueError: A field that is wrong, or two that contradict each other.
    """

    path: str | Path | None
    durable: bool
    read_only: bool
    retention: int
    migrate: bool

    def __post_init__(self) -> None:
        if self.path is not None:
            check_path("state", self.path, "a path, or None")
        if self.read_only and self.path is None:
            raise ValueError("read_only=True without a state; give the state file to read")
        if self.migrate and self.path is None:
            raise ValueError("migrate=True without a state; give the state file to carry over")
        if self.read_only and self.migrate:
            raise ValueError(
                "migrate=True with read_only=True; let the learner that owns the state migrate it"
            )
        if type(self.retention) is not int or self.retention < 0:
            raise ValueError(f"retention is {self.retention!r}; give a number of bytes, at least 0")

    def check_outside(self, bundle: Bundle) -> None:
        """Raise a ValueError if the state lies in the bundle's folder."""
        if self.path is None:
            return
        # Not `Path.resolve`, which for links that go round raises a RuntimeError.
        if Path(os.path.realpath(self.path)).is_relative_to(os.path.realpath(bundle.path)):
            raise ValueError(
                f"state is {self.path}, inside the bundle; bundles are read-only, put it next to it"
            )

    def open(self, bundle: Bundle) -> tuple[Memory | Owner | Reader, Migrated | None]:
        """What keeps the head, and what was carried over from another bundle, if anything was.

        Raises:
            OtherModel: The state goes with another bundle, and was not to be moved or cannot be.
            StateError: It is damaged or in use.
        """
        if self.path is None:
            return Memory(bundle.head), None
        model = model_of(bundle.manifest)
        try:
            if self.read_only:
                return Reader(self.path, model=model, bundle=bundle.id, base=bundle.head), None
            return self._own(model, bundle.id, bundle.head), None
        except OtherModel as error:
            replaced, merged = bundle.replaced(), error.model in bundle.ledger().chain
            known = replaced is not None and error.model in (replaced.model, replaced.bundle)
            if not (known or merged):
                raise
            if not self.migrate:
                raise OtherModel(
                    f"{error}; this bundle {'was merged from' if merged else 'replaces'} that one, and with "
                    "migrate=True carries over what the device has learned",
                    error.model,
                ) from None
            if merged:
                return self._take_in(bundle, error.model)
            assert replaced is not None
            return self._carry_over(bundle, replaced)

    def _own(self, model: str, bundle: str, base: Callable[[], Head]) -> Owner:
        assert self.path is not None
        return Owner(
            self.path,
            model=model,
            bundle=bundle,
            base=base,
            durable=self.durable,
            retention=self.retention,
        )

    def _carry_over(self, bundle: Bundle, replaced: Replaced) -> tuple[Owner, Migrated]:
        """Open a state of the replaced bundle, and carry it over to this one."""
        owner = self._own(replaced.model, replaced.bundle, replaced.head)

        def carry() -> Carried:
            if owner.use(lambda head: owner.adapters) is not None:
                raise StateError(
                    f"{owner.path} has adapters of its own, and the new bundle's map is from features under "
                    "those of the old bundle; roll back to before adapt with the old bundle, then migrate"
                )
            return take_in(owner, bundle.head(), bundle.ledger(), -1, replaced)

        moved, kept = _move(owner, bundle, carry)
        return owner, Migrated(
            kept, moved.learned, moved.forgotten, replaced.images, replaced.explained, replaced.agreement
        )

    def _take_in(self, bundle: Bundle, model: str) -> tuple[Owner, Migrated]:
        """Open a state of a bundle that this one was merged from, and go on with what is not in this one."""
        ledger = bundle.ledger()
        age = ledger.chain.index(model)

        def base() -> Head:
            if (state := ledger.head_of(age)) is None:
                raise StateError(
                    f"{self.path}: {len(ledger.chain) - age} bundles were merged since its own, and this one "
                    f"has the heads of the last {len(ledger.before)} alone; open it with a bundle between "
                    "first"
                )
            return from_state(state)

        owner = self._own(model, "", base)
        moved, kept = _move(owner, bundle, lambda: take_in(owner, bundle.head(), ledger, age))
        return owner, Migrated(kept, moved.learned, moved.forgotten, 0, 1.0, None)


def _move(owner: Owner, bundle: Bundle, carry: Callable[[], Carried]) -> tuple[Carried, Path]:
    """Let a state go on with another bundle; what was carried, and where the old state is kept."""
    try:
        carried = carry()
        return carried, owner.migrate(model_of(bundle.manifest), bundle.head, carried.head)
    except BaseException:
        owner.close()
        raise
