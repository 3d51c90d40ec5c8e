"""`everlearn.analysis.diagnosis` and the diagnosis of a learner, by a short name."""

from everlearn.analysis.diagnosis import Diagnosis, Factor, diagnose
from everlearn.analysis.of_run import diagnose_run, method_report, regularisation_of

__all__ = ["Diagnosis", "Factor", "diagnose", "diagnose_run", "method_report", "regularisation_of"]
