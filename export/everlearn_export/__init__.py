"""Export for devices: torch to ONNX, behind a parity gate, written as a bundle."""

from everlearn_export.bundle import export_bundle
from everlearn_export.verify import Parity, ParityError, verify

__all__ = ["Parity", "ParityError", "export_bundle", "verify"]
