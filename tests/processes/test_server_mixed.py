"""Four processes on one PostgreSQL, plain SQL in between, some stopped for a while: nothing stale, torn or lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.processes.mixed import summary
from tests.processes.server_mixed import run_on_server


def test_four_processes_on_a_server_see_one_history(tmp_path: Path, server_url: str, show: Callable[..., None]) -> None:
    operations, verdict = run_on_server(server_url, tmp_path, 6, seed=1)
    assert verdict.violations == []
    show(summary(operations, verdict, 6))
    for fresh in ("linearizable", "bounded"):
        for name in ("get", "get_many", "of", "count"):
            assert verdict.checks[f"{fresh}: {name}"] > 20
    assert verdict.checks["plain writes in between"] > 20
    assert verdict.behind_s, "no read was behind another process: the bound was not tried"
