"""kill -9 at any instant: everything acknowledged is there, nothing is half there, the cache never lies about it."""

from __future__ import annotations

from pathlib import Path

from tests.fault.killing import kill_again_and_again


async def test_nothing_acknowledged_is_lost_over_50_kills(tmp_path: Path) -> None:
    ledger, met = await kill_again_and_again(tmp_path / "agent.db", 50, seed=9)
    assert ledger.acknowledged > 200
    assert {"opening", "open", "closing"} <= met, "the kills did not meet what they should"
