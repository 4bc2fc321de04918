"""Limits of a PostgreSQL and of the pool: who waits, who is refused, how often it is tried; and all goes on after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import func

from memory_store import DurableTimeoutError, DurableUnavailableError, Episode, MemoryStore
from memory_store.durable.changes import shard_of
from tests.fault.servers_support import SETTINGS, Timed, dsn_of, eventually, nothing_left, truth_of
from tests.fault.support import episode
from tests.fault.test_server_cuts import through_proxy
from tests.servers.databases import PostgresDatabases
from tests.servers.fixtures import MakePostgres

NOBODY = ("127.0.0.1", 1)


@asynccontextmanager
async def locked(url: str, sql: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Hold what a statement locks, in a session of somebody else."""
    holder = await asyncpg.connect(dsn_of(url))
    transaction = holder.transaction()
    await transaction.start()
    try:
        await holder.execute(sql)
        yield holder
    finally:
        await transaction.rollback()
        await holder.close()


async def test_callers_wait_for_a_connection_as_long_as_they_may(postgres_url: str) -> None:
    """Two long transactions have the whole pool; who is refused holds nobody up, and leaves nothing."""
    settings = {**SETTINGS, "pool_size": 2, "pool_timeout_s": 0.3, "heads": 16}
    names = {shard_of(name, 16): name for name in map("n{}".format, range(100))}
    async with MemoryStore(postgres_url, **settings) as store, truth_of(postgres_url) as truth:
        first, second, third = (store.namespace(name) for name in list(names.values())[:3])
        async with first.transaction() as one, second.transaction() as two:
            await one.episodes.put(episode("a"))
            await two.episodes.put(episode("a"))
            for refused in (
                lambda: third.episodes.put(episode("b")),
                lambda: third.episodes.get("c"),
                lambda: third.transaction().__aenter__(),
            ):
                with Timed() as taken, pytest.raises(DurableTimeoutError):
                    await refused()
                assert 0.25 < taken.seconds < 2
            with Timed() as taken, pytest.raises(DurableTimeoutError):  # not behind the transaction that was refused
                await third.episodes.put(episode("b"))
            assert taken.seconds < 2
            assert await truth.sessions() == 2
        await asyncio.gather(*(third.episodes.put(episode(f"{i}")) for i in range(20)), first.episodes.get("z"))
        assert await third.episodes.count() == 20
        await nothing_left(store, truth, settings)


async def test_a_lock_is_waited_for_as_long_as_it_may(postgres_url: str) -> None:
    settings = {**SETTINGS, "timeout_s": 0.3, "heads": 1}
    async with MemoryStore(postgres_url, **settings) as store, truth_of(postgres_url) as truth:
        await store.episodes.put(episode("a"))
        async with locked(postgres_url, "SELECT * FROM head FOR UPDATE"):
            for write in (
                lambda: store.episodes.put(episode("b")),
                lambda: store.episodes.update("a", domain="x"),
                lambda: store.transaction().__aenter__(),
            ):
                with Timed() as taken, pytest.raises(DurableTimeoutError):
                    await write()
                assert 0.25 < taken.seconds < 2
            assert (await store.episodes.get("a", freshness="linearizable")) is not None  # reads wait for nobody
        await store.episodes.put(episode("b"))
        assert await truth.log_problems() == []
        await nothing_left(store, truth)


async def test_a_statement_runs_as_long_as_it_may(postgres_url: str) -> None:
    async with MemoryStore(postgres_url, **SETTINGS, statement_timeout_s=0.3) as store, truth_of(postgres_url) as truth:
        await store.episodes.put(episode("a"))
        with Timed() as taken, pytest.raises(DurableTimeoutError):
            await store.episodes.list(func.pg_sleep(60).is_(None) & (Episode.c.domain == "web"))
        assert taken.seconds < 2
        assert await store.episodes.count() == 1
        await nothing_left(store, truth)


@pytest.mark.parametrize("in_block", [False, True], ids=["put", "transaction"])
async def test_a_deadlock_with_plain_sql_is_tried_again_or_told(in_block: bool, postgres_url: str) -> None:
    """The library is the one who is undone: its session looks for deadlocks sooner."""
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    async with truth_of(postgres_url) as truth:
        async with MemoryStore(postgres_url, **SETTINGS) as store:
            await store.episodes.put(episode("a"))
        await truth.connection.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '400ms'")
        async with MemoryStore(postgres_url, **SETTINGS) as store, truth_of(postgres_url) as other:
            plain = other.connection
            await plain.execute("BEGIN; SET LOCAL deadlock_timeout = '60s'")
            await plain.execute("UPDATE episodes SET reflection = 'plain' WHERE id = 'a'")
            # It has the row and takes the head as it commits; the library has the head and waits for the row.
            writing = asyncio.create_task(_update(store, in_block))
            await asyncio.sleep(0.1)
            await plain.execute("COMMIT")
            if in_block:
                with pytest.raises(DurableUnavailableError, match="40P01"):
                    await writing
            else:
                assert await writing == 3
            found = await store.episodes.get("a", freshness="linearizable")
            assert found is not None
            assert found.reflection == "plain"
            assert found.domain == ("web" if in_block else "library")
            assert await truth.log_problems() == []
            await nothing_left(store, truth)


async def _update(store: MemoryStore, in_block: bool) -> int:
    if not in_block:
        return (await store.episodes.update("a", domain="library")).revision
    async with store.transaction() as tx:
        return (await tx.episodes.update("a", domain="library")).revision


async def test_a_full_server_refuses_new_stores_and_serves_those_that_have_connections(
    make_postgres: MakePostgres,
) -> None:
    settings = {"max_connections": "8", "superuser_reserved_connections": "0", "max_wal_senders": "0"}
    server = make_postgres(durable=False, settings=settings)
    url = server.create_database("full")
    async with MemoryStore(url, **SETTINGS) as store:
        await store.episodes.put(episode("a"))
        async with AsyncExitStack() as others:
            with pytest.raises(asyncpg.TooManyConnectionsError):
                await _connect_often(url, others)
            with Timed() as taken, pytest.raises(DurableUnavailableError, match="53300"):
                await MemoryStore(url, **SETTINGS).open()
            assert taken.seconds < 5
            assert (await store.episodes.put(episode("b"))).revision == 1
        async with MemoryStore(url, **SETTINGS) as another:
            assert await another.episodes.count() == 2


async def _connect_often(url: str, held: AsyncExitStack) -> None:
    for _ in range(20):
        connection = await asyncpg.connect(dsn_of(url))
        held.push_async_callback(connection.close)


async def test_a_forgotten_transaction_ends_by_itself(postgres_url: str) -> None:
    settings = {**SETTINGS, "transaction_timeout_s": 0.3, "heads": 1}
    async with MemoryStore(postgres_url, **settings) as store, truth_of(postgres_url) as truth:

        async def forget() -> None:
            async with store.transaction() as tx:
                await tx.episodes.put(episode("a"))
                waiting = asyncio.create_task(store.namespace("other").episodes.put(episode("b")))
                async with asyncio.timeout(3):
                    await waiting

        with pytest.raises(DurableTimeoutError):
            await forget()
        assert await truth.connection.fetchval("SELECT array_agg(id) FROM episodes") == ["b"]
        await nothing_left(store, truth)


async def test_attempts_are_bounded_and_the_breaker_opens_and_closes(
    postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    """Counted at the proxy: five failures in a row, then one try a pause, however many callers there are."""
    settings = {"breaker_failures": 5, "breaker_pause_s": 0.5, "pool_size": 3}
    async with through_proxy(postgres_server, postgres_url, **settings) as (store, proxy, truth):
        await store.episodes.put(episode("a"))
        proxy.upstream = NOBODY
        proxy.drop_all()
        accepted, told, at_once = proxy.accepted, 0, 0
        with Timed() as outage:
            with Timed() as taken, pytest.raises(DurableUnavailableError):
                await store.episodes.count()
            assert taken.seconds < 5
            while time.monotonic() - outage.began < 2:
                calls = (store.episodes.put(episode("b")), store.episodes.get(f"{told}"), store.episodes.count())
                for error in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(error, DurableUnavailableError)
                    told += 1
                    at_once += "next try" in str(error)
                await asyncio.sleep(0.01)
        # One more than the limit by each of those that were connecting when it was reached.
        assert 5 <= proxy.accepted - accepted <= 5 + 2 + outage.seconds / 0.5
        assert at_once > told / 2
        proxy.upstream = postgres_server.upstream
        await asyncio.sleep(0.6)
        assert (await store.episodes.put(episode("b"))).revision == 1
        await asyncio.gather(*(store.episodes.get(f"{i}") for i in range(10)))
        assert await truth.log_problems() == []
        await nothing_left(store, truth)


@pytest.mark.parametrize("outage_staleness_s", [0, 30])
async def test_hits_in_an_outage_are_served_or_refused_as_configured(
    outage_staleness_s: float, postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    settings = {"outage_staleness_s": outage_staleness_s, "breaker_pause_s": 0.1}
    async with through_proxy(postgres_server, postgres_url, **settings) as (store, proxy, truth):
        await store.episodes.put(episode("a", context={"mark": 1}))
        assert await store.episodes.get("a") is not None
        proxy.upstream = NOBODY
        proxy.drop_all()
        await asyncio.sleep(0.1)  # longer than staleness_s
        for _ in range(3):
            if outage_staleness_s:
                found = await store.episodes.get("a")
                assert found is not None
                assert found.context["mark"] == 1
            else:
                with pytest.raises(DurableUnavailableError):
                    await store.episodes.get("a")
            with pytest.raises(DurableUnavailableError):
                await store.episodes.get("a", freshness="linearizable")
            with pytest.raises(DurableUnavailableError):
                await store.episodes.get("b")
        await truth.connection.execute("UPDATE episodes SET context = '{\"mark\": 2}'")
        proxy.upstream = postgres_server.upstream

        async def mark() -> Any:
            try:
                found = await store.episodes.get("a", freshness="linearizable")
            except DurableUnavailableError:
                return None
            return found and found.context["mark"]

        await eventually(mark, 2, 5)
        found = await store.episodes.get("a")
        assert found is not None
        assert found.context["mark"] == 2


async def test_no_answer_at_all_is_noticed(postgres_server: PostgresDatabases, postgres_url: str) -> None:
    """Half-open connections: what is written there is for nobody, and no error comes back."""
    settings = {"statement_timeout_s": 0.3, "timeout_s": 1.0}
    async with through_proxy(postgres_server, postgres_url, **settings) as (store, proxy, truth):
        await store.episodes.put(episode("a"))
        calls = [store.episodes.get("a", freshness="linearizable"), store.episodes.update("a", domain="x")]
        proxy.blackhole()
        running = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0.1)
        proxy.blackhole(False)
        with Timed() as taken:
            found, updated = await asyncio.gather(*running)
        assert taken.seconds < 15
        assert found is not None
        assert updated is not None
        assert updated.revision == 2
        proxy.drop_all()
        assert await truth.log_problems() == []
        await nothing_left(store, truth)
