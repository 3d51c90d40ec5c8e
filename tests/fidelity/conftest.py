"""Print how near the reference numbers were met, when pytest is verbose."""

import pytest

from .compare import LARGEST, table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LARGEST and terminalreporter.verbosity > 0:
        terminalreporter.section("largest differences from the reference numbers")
        terminalreporter.write_line(table())
