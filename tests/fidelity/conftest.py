"""Print or write down how near the reference numbers were met."""

from pathlib import Path

import pytest

from .compare import LARGEST, table, write


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write", metavar="PAGE", help="put the tables of errors into this page")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if LARGEST and terminalreporter.verbosity > 0:
        terminalreporter.section("largest differences from the reference numbers")
        for file in LARGEST:
            terminalreporter.write_line(f"{file}\n{table(file)}\n")
    if page := config.getoption("--write", None):
        write(Path(page))
