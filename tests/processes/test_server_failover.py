"""A primary killed under several processes and its standby promoted: clients follow by a URL with both hosts."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from memory_store import DurableError, MemoryStore
from tests.fault.servers_support import truth_of
from tests.fault.support import episode
from tests.processes.server_kills import lines, run_through
from tests.servers.databases import PostgresDatabases
from tests.servers.fixtures import MakePostgres, MakeStandby
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy


def url_of_both(database: str, *servers: PostgresServer) -> str:
    """Return the URL by which a client finds whichever is the primary."""
    folders = ",".join(str(server.socket_folder) for server in servers)
    return f"postgresql://postgres@/{database}?host={folders}&target_session_attrs=primary"


def test_nothing_is_lost_when_a_synchronous_standby_takes_over(
    make_postgres: MakePostgres, make_standby: MakeStandby, show: Callable[..., None]
) -> None:
    began = time.monotonic()
    counted = fail_over_once(make_postgres, make_standby, seed=1)
    show(lines("failover", 1, counted, time.monotonic() - began))
    assert counted["acknowledged"] > 10


def fail_over_once(make_postgres: MakePostgres, make_standby: MakeStandby, seed: int) -> Counter[str]:
    """Kill a primary under load and promote its synchronous standby; raise what is wrong, return what was counted."""
    primary = make_postgres(durable=False)
    primary.create_database("pair")
    standby = make_standby(primary)

    def fail_over(_: int) -> PostgresDatabases:
        primary.kill()
        standby.configure(synchronous_standby_names="")
        standby.promote()
        return standby

    urls = [url_of_both("pair", primary, standby), url_of_both("pair", standby, primary)]
    counted = run_through(urls, fail_over, database="pair", times=1, check_every=1, seed=seed, longest_pause_s=2.0)
    standby.close()
    primary.close()
    return counted


@pytest.mark.parametrize("writes_after", [0, 5])
async def test_caches_drop_what_an_asynchronous_standby_had_not_got(
    writes_after: int, make_postgres: MakePostgres, make_standby: MakeStandby
) -> None:
    """What was lost was never promised; but nobody may go on reading it, however far the new primary has come."""
    primary = make_postgres(durable=False)
    primary.create_database("pair")
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(Proxy(primary.upstream, postgres=False))
        standby = await asyncio.to_thread(make_standby, primary, synchronous=False, through=link.port)
        url = url_of_both("pair", primary, standby)
        store, reader = [
            await stack.enter_async_context(MemoryStore(url, heads=1, cache_path="", breaker_pause_s=0.05))
            for _ in range(2)
        ]
        await store.episodes.put_many([episode(id_, context={"mark": 0}) for id_ in ("kept", "changed")])
        lsn = primary.execute("SELECT pg_current_wal_insert_lsn()")[0][0]
        await asyncio.to_thread(standby.wait_for, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'")
        link.blackhole()  # it gets no more
        for mark in (1, 2, 3):
            await store.episodes.update("changed", context={"mark": mark})
        lost = await store.episodes.put(episode("lost"))
        for process in (store, reader):
            assert await process.episodes.get_many(["kept", "changed", "lost"]) != []
        primary.kill()
        link.drop_all()
        standby.promote()
        async with asyncio.timeout(20):
            for number in range(writes_after):
                await _until_there(reader, f"new{number}")
            for process in (reader, store):
                for freshness in ("bounded", "linearizable"):
                    found = await process.episodes.get_many(["kept", "changed", "lost"], freshness=freshness)  # type: ignore[arg-type]
                    assert found[2] is None
                    assert [record and record.context["mark"] for record in found[:2]] == [0, 0]
                    assert await process.episodes.count() == 2 + writes_after
            assert lost.position is not None
            changed = await store.episodes.update("changed", context={"mark": 9})
            assert changed.revision == 2
        async with truth_of(standby.url("pair")) as truth:
            assert await truth.log_problems() == []


async def _until_there(store: MemoryStore, id_: str) -> None:
    while True:
        try:
            await store.episodes.put(episode(id_))
        except DurableError:
            await asyncio.sleep(0.02)
        else:
            return
