"""What the runs with several processes measured is printed at the end."""

from __future__ import annotations

import pytest

from tests.processes.shown import LINES, show

__all__ = ["show"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print it."""
    for line in config.stash.get(LINES, []):
        terminalreporter.write_line(line)
