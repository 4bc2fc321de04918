"""Four processes on one file: nothing stale, torn or lost, and nothing goes backwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.processes.mixed import run_processes, summary


def test_four_processes_see_one_history(tmp_path: Path, show: Callable[..., None]) -> None:
    operations, verdict = run_processes(tmp_path, 5, seed=1)
    assert verdict.violations == []
    show(summary(operations, verdict, 5))
    checks = verdict.checks
    for fresh in ("linearizable", "bounded"):
        for name in ("get", "get_many", "of", "count"):
            assert checks[f"{fresh}: {name}"] > 20
    for name in ("at_least", "a transaction reads what its commit follows", "linearizable: list"):
        assert checks[name] > 10
    assert verdict.behind_s, "no read was behind another process: the bound was not tried"


def test_reads_that_are_further_behind_than_allowed_are_found(tmp_path: Path) -> None:
    """The judge tried on a real history: stores that may be 50 ms behind, judged by 2 ms."""
    _, verdict = run_processes(tmp_path, 2, seed=2, allowed_s=0.002)
    assert {violation.partition(":")[0] for violation in verdict.violations} == {"stale"}
