"""Servers killed, failed over and cut off at length."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memory_store import DurableError, MemoryStore
from tests.fault.servers_support import SETTINGS, WRITE_PATHS, WritePath, truth_of
from tests.fault.support import Child, Parent, episode
from tests.fault.test_server_writes import INSTANTS, kill_at, meet_another
from tests.processes.mixed import summary
from tests.processes.server_kills import disturbances, lines, run_through
from tests.processes.server_mixed import run_on_server
from tests.processes.shown import show
from tests.processes.test_server_failover import fail_over_once
from tests.servers.databases import PostgresDatabases
from tests.servers.fixtures import MakePostgres, MakeStandby

__all__ = ["show"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_over_300_kills_of_the_server(
    seed: int, make_postgres: MakePostgres, show: Callable[..., None]
) -> None:
    server = make_postgres(durable=seed == 0)
    url = server.create_database("killed")
    began = time.monotonic()
    counted = run_through(
        [url],
        disturbances(server, seed),
        database="killed",
        times=100,
        check_every=5,
        seed=100 + seed,
        longest_pause_s=0.6,
    )
    show(lines("kills of the server", 100, counted, time.monotonic() - began))
    assert counted["acknowledged"] > 200
    assert counted["unknown"] > 0


@pytest.mark.parametrize("instant", INSTANTS)
@pytest.mark.parametrize("path", [path for path in WRITE_PATHS if path.commit], ids=str)
async def test_a_process_killed_at_every_instant_of_every_write(
    path: WritePath, instant: str, postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    await kill_at(path, instant, postgres_server, postgres_url)


@pytest.mark.parametrize("path", WRITE_PATHS, ids=str)
async def test_another_process_writes_the_same_record_at_every_message(
    path: WritePath, postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    await meet_another(path, postgres_server, postgres_url, every=1)


async def test_a_stopped_process_keeps_others_waiting_no_longer_than_it_may(postgres_url: str) -> None:
    """It holds the head and says nothing: the server ends its transaction, after `transaction_timeout_s` and 5 s."""
    settings: dict[str, Any] = {**SETTINGS, "timeout_s": 20, "heads": 1}
    async with MemoryStore(postgres_url, **settings) as store, truth_of(postgres_url) as truth:
        with Child(_hold, postgres_url, settings) as child:
            pid = await asyncio.to_thread(child.receive)
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            await store.episodes.put(episode("b"))
            assert time.monotonic() - began < 8
            os.kill(pid, signal.SIGCONT)
            assert await asyncio.to_thread(child.receive) == "told"
        assert await truth.connection.fetchval("SELECT array_agg(id) FROM episodes") == ["b"]
        assert await truth.log_problems() == []


async def _hold(parent: Parent, url: str, settings: dict[str, Any]) -> str:
    async with MemoryStore(url, **settings, transaction_timeout_s=0.2) as store:
        try:
            async with store.transaction() as tx:
                await tx.episodes.put(episode("a"))
                parent.send(os.getpid())
                await asyncio.sleep(0.1)
        except DurableError:
            return "told"
    return "committed"


@pytest.mark.parametrize("seed", [11, 12])
def test_four_processes_on_a_server_see_one_history_for_a_minute(
    seed: int, tmp_path: Path, postgres_url: str, show: Callable[..., None]
) -> None:
    operations, verdict = run_on_server(postgres_url, tmp_path, 60, seed)
    assert verdict.violations == []
    show(summary(operations, verdict, 60))
    assert sum(verdict.checks.values()) > 20_000


def test_nothing_is_lost_over_ten_failovers(
    make_postgres: MakePostgres, make_standby: MakeStandby, show: Callable[..., None]
) -> None:
    acknowledged = 0
    for seed in range(10):
        acknowledged += fail_over_once(make_postgres, make_standby, seed)["acknowledged"]
    show([f"10 failovers: {acknowledged:,} acknowledged writes, 0 lost, 0 wrong"])
    assert acknowledged > 100
