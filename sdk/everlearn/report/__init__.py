"""Pictures and an HTML page of a run: what ``everlearn train`` or ``everlearn bench`` wrote.

from everlearn.report import write_report

write_report("runs/")  # runs/report/index.html, and the pictures beside it
"""

from everlearn.report.findings import Findings, findings
from everlearn.report.page import PAGE, write_report

__all__ = ["PAGE", "Findings", "findings", "write_report"]
