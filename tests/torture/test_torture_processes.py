"""Several processes on one file at length: minutes of calls, more than a thousand kills."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes.kills import kill_again_and_again
from tests.processes.mixed import run_processes, summary
from tests.processes.shown import show

__all__ = ["show"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [11, 12])
def test_four_processes_see_one_history_for_a_minute(seed: int, tmp_path: Path, show: Callable[..., None]) -> None:
    operations, verdict = run_processes(tmp_path, 60, seed)
    assert verdict.violations == []
    show(summary(operations, verdict, 60))
    assert sum(verdict.checks.values()) > 20_000


@pytest.mark.parametrize("seed", range(5))
def test_nothing_acknowledged_is_lost_over_1250_kills(seed: int, tmp_path: Path, show: Callable[..., None]) -> None:
    figures = kill_again_and_again(tmp_path / "agent.db", 250, 100 + seed)
    show(figures.lines())
    assert figures.acknowledged > 250
