"""Export for devices: torch to ONNX, behind a parity gate, written as a bundle."""

from typing import TYPE_CHECKING

from everlearn_runtime import lazy
from everlearn_runtime.version import __version__

if TYPE_CHECKING:
    from everlearn_export.bundle import export_bundle
    from everlearn_export.files import write_files
    from everlearn_export.parity import LIMITS, Limits, Parity, ParityError, verify
else:
    _PARITY = "everlearn_export.parity"
    __getattr__, __dir__ = lazy.names(
        __name__,
        {
            "export_bundle": "everlearn_export.bundle",
            "write_files": "everlearn_export.files",
            **dict.fromkeys(["LIMITS", "Limits", "Parity", "ParityError", "verify"], _PARITY),
        },
    )

__all__ = [
    "LIMITS",
    "Limits",
    "Parity",
    "ParityError",
    "__version__",
    "export_bundle",
    "verify",
    "write_files",
]
