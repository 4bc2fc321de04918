"""Through a pooler in transaction mode: each transaction lands on another connection of the server's."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from memory_store import DurableError, DurableTimeoutError, Episode, MemoryStore
from tests.fault.servers_support import (
    SETTINGS,
    WRITE_PATHS,
    WritePath,
    dsn_of,
    eventually,
    is_cached_right,
    truth_of,
)
from tests.fault.support import episode
from tests.fault.test_server_cuts import states_of
from tests.fault.test_server_limits import locked
from tests.servers.databases import PostgresDatabases
from tests.servers.pooler import Pooler
from tests.servers.proxy import Cut, Proxy, runs

_SETTINGS = {**SETTINGS, "pooler": True, "hints": True, "statement_timeout_s": 2.0}


def _database(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


@pytest.mark.parametrize("path", WRITE_PATHS, ids=str)
async def test_every_way_to_write_works_through_a_pooler(
    path: WritePath, postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    async with Pooler(postgres_server.upstream, size=3) as pooler, truth_of(postgres_url) as truth:
        url = postgres_server.url_through(pooler.port, _database(postgres_url))
        async with MemoryStore(url, **_SETTINGS) as store, MemoryStore(url, **_SETTINGS) as other:
            before, after = await states_of(path, store, truth)
            tags = [f"t{number}" for number in range(6)]
            for number, tag in enumerate(tags):
                if path.prepare is not None:
                    await path.prepare((store, other)[number % 2], tag)
            await asyncio.gather(*(path.write((store, other)[n % 2], tag) for n, tag in enumerate(tags)))
            for tag in tags:
                assert await truth.state(tag) == after
                for process in (store, other):
                    await process.episodes.get("none", freshness="linearizable")
                    assert await is_cached_right(process, tag, before, after, after)
            page = await other.episodes.list(Episode.c.task_type != "", limit=3)
            assert len(page.items) == min(3, await store.episodes.count())
        assert await truth.log_problems() == []
        assert pooler.lent > 20


async def test_limits_of_a_transaction_hold_through_a_pooler(
    postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    """They cannot be the session's: nothing of them may be left to whoever gets the connection next."""
    settings = {**_SETTINGS, "timeout_s": 0.3, "heads": 1}
    async with Pooler(postgres_server.upstream, size=2) as pooler:
        url = postgres_server.url_through(pooler.port, _database(postgres_url))
        async with MemoryStore(url, **settings) as store:
            await store.episodes.put(episode("a"))
            async with locked(dsn_of(postgres_url), "SELECT * FROM head FOR UPDATE"):
                for write in (
                    lambda: store.episodes.put(episode("b")),
                    lambda: store.episodes.update("a", domain="x"),
                    lambda: store.transaction().__aenter__(),
                ):
                    async with asyncio.timeout(5):
                        with pytest.raises(DurableTimeoutError):
                            await write()
            assert (await store.episodes.put(episode("b"))).revision == 1
        pooled = await asyncpg.connect(dsn_of(url), statement_cache_size=0)
        assert [await pooled.fetchval("SHOW lock_timeout") for _ in range(4)] == ["0"] * 4
        await pooled.close()


async def test_a_commit_cut_off_behind_a_pooler_is_settled(
    postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    async with (
        Proxy(postgres_server.upstream) as proxy,
        Pooler(("127.0.0.1", proxy.port), size=2) as pooler,
        truth_of(postgres_url) as truth,
    ):
        url = postgres_server.url_through(pooler.port, _database(postgres_url))
        async with MemoryStore(url, **_SETTINGS) as store:
            await store.episodes.put(episode("first"))
            for number, cut in enumerate(Cut):
                rule = proxy.on_message(runs("COMMIT"), cut)
                written = True
                try:
                    async with asyncio.timeout(10), store.transaction() as tx:
                        await tx.episodes.put(episode(f"t{number}"))
                except DurableError:
                    written = False
                assert rule.hits == 1
                proxy.rules.remove(rule)
                sql = "SELECT count(*) = 1 FROM episodes WHERE id = $1"
                assert await truth.connection.fetchval(sql, f"t{number}") == written
                await eventually(lambda n=number: _put(store, f"p{n}"), True)  # type: ignore[misc]
        assert await truth.log_problems() == []


async def _put(store: MemoryStore, id_: str) -> bool:
    return (await store.episodes.put(episode(id_))).revision == 1
