"""The errors that have a name of their own; every other user mistake is a plain ``ValueError``."""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle is missing, damaged, or written in a format that this version cannot read."""


class TrustError(BundleError):
    """A bundle or a delta is not signed by a key that is trusted, or was altered after it was signed."""


class DeltaError(ValueError):
    """A delta is damaged, or does not go with a bundle or with other deltas."""


class StateError(ValueError):
    """A device's state file is damaged, in use, or belongs to something else."""


class OtherModel(StateError):  # noqa: N818 - says what is wrong
    """A state goes with another graph or head.

    Args:
        message: What to say.
        model: What the state goes with: sha256 of graph and head; of an old state, the id of its bundle.
    """

    def __init__(self, message: str, model: str) -> None:
        super().__init__(message)
        self.model = model


class GuardError(ValueError):
    """What was to be learned is refused, because a guard was asked for; nothing has been learned.

    Args:
        message: What to say.
        before: Share of the canaries that were right, in [0, 1]; None if they are not the reason.
        after: Share that would have been.
    """

    def __init__(self, message: str, before: float | None = None, after: float | None = None) -> None:
        super().__init__(message)
        self.before = before
        self.after = after


class MissingExtra(ImportError):  # noqa: N818 - says what is wrong, like ImportError's own subclasses
    """An optional dependency is not installed.

    Args:
        what: What was about to be done, as the start of a sentence.
        extra: The extra of the ``everlearn`` distribution that brings the dependency.

    >>> print(MissingExtra("reading image files", "images"))
    reading image files needs: pip install "everlearn[images]"
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs: pip install "everlearn[{extra}]"')
