"""Errors of the workstation that have a name of their own, and what training needs."""

from importlib.util import find_spec

from everlearn_runtime.errors import MissingExtra

NEEDED = ("torch", "timm", "onnx", "onnxscript", "onnxslim", "sklearn", "tqdm")
"""Packages of the extra ``train`` without which nothing of the workstation can be imported."""


class ElsewhereError(RuntimeError):
    """Another process has failed; the message is that one's."""


def need_training() -> None:
    """Check that what training needs is installed: ``MissingExtra``, one line that names the rest."""
    missing = [name for name in NEEDED if not find_spec(name)]
    if missing:
        raise MissingExtra(f"training (without {', '.join(missing)} here)", "train,cpu")
