"""`everlearn.analysis.diagnosis`, by its short name."""

from everlearn.analysis.diagnosis import Diagnosis, diagnose, diagnose_run, method_report

__all__ = ["Diagnosis", "diagnose", "diagnose_run", "method_report"]
