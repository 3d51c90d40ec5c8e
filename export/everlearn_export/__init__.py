"""Export for devices: torch to ONNX, behind a parity gate, written as a bundle."""

from everlearn_export.bundle import export_bundle
from everlearn_export.files import write_files
from everlearn_export.verify import LIMITS, Limits, Parity, ParityError, verify

__all__ = ["LIMITS", "Limits", "Parity", "ParityError", "export_bundle", "verify", "write_files"]
