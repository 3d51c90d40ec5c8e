"""Pictures and an HTML page of a run: what ``everlearn train`` or ``everlearn bench`` wrote.

from everlearn.report import look_into, write_report

write_report("runs/")  # runs/report/index.html, and the pictures beside it
write_report("run/", findings=look_into(learner, train, test))  # also what limits it, its mistakes, ...
"""

from everlearn.report.findings import Findings, look_into
from everlearn.report.page import PAGE, write_report

__all__ = ["PAGE", "Findings", "look_into", "write_report"]
