"""The connection to PostgreSQL cut at every message of every way to write: a write is there once or not, as told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from memory_store import CommitUnknownError, DurableUnavailableError, Episode, MemoryStore
from memory_store.durable.changes import shard_of
from tests.fault.servers_support import (
    SETTINGS,
    WRITE_PATHS,
    Nth,
    State,
    Truth,
    WritePath,
    is_cached_right,
    nothing_left,
    truth_of,
)
from tests.fault.support import episode
from tests.servers.databases import PostgresDatabases
from tests.servers.proxy import Cut, Proxy

_MOST_MESSAGES = 200


@asynccontextmanager
async def through_proxy(
    server: PostgresDatabases, url: str, **settings: Any
) -> AsyncIterator[tuple[MemoryStore, Proxy, Truth]]:
    """Open a store through a proxy, and a connection past it."""
    database = url.partition("?")[0].rpartition("/")[2]
    async with Proxy(server.upstream) as proxy, truth_of(url) as truth:
        through = server.url_through(proxy.port, database)
        async with MemoryStore(through, **{**SETTINGS, **settings}) as store:
            yield store, proxy, truth


async def states_of(path: WritePath, store: MemoryStore, truth: Truth, tag: str = "calm") -> tuple[State, State]:
    """Return what is there before and after the write when nothing goes wrong."""
    if path.prepare is not None:
        await path.prepare(store, tag)
    before = await truth.state(tag, store.name)
    await path.write(store, tag)
    return before, await truth.state(tag, store.name)


async def write(path: WritePath, store: MemoryStore, tag: str) -> bool | None:
    """Write; return whether that is said to have happened, None for unknown."""
    try:
        await path.write(store, tag)
    except CommitUnknownError:
        return None
    except DurableUnavailableError:
        return False
    return True


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
@pytest.mark.parametrize("path", WRITE_PATHS, ids=str)
async def test_a_write_cut_off_at_any_message_is_made_once_or_not_at_all(
    path: WritePath, cut: Cut, stride: int, postgres_server: PostgresDatabases, server_url: str
) -> None:
    """The server can be asked on another connection: nothing stays unknown. Only a block of the caller's may fail."""
    async with through_proxy(postgres_server, server_url) as (store, proxy, truth):
        before, after = await states_of(path, store, truth)
        assert before != after
        failed = 0
        for number in range(1, _MOST_MESSAGES, stride):
            tag = f"cut{number}"
            if path.prepare is not None:
                await path.prepare(store, tag)
            nth = Nth(number, requests=cut is not Cut.BEFORE_REQUEST)
            rule = proxy.on_message(nth, cut)
            async with asyncio.timeout(20):
                said = await write(path, store, tag)
            proxy.rules.remove(rule)
            at = f"cut at message {number}, of {nth.sql[:60]!r}"
            held = await truth.state(tag, store.name)
            assert said is not None, f"unknown, {at}"
            assert said or path.in_block, f"not made, {at}"
            assert held == (after if said else before), at
            failed += not said
            assert await is_cached_right(store, tag, before, after, held), at
            await nothing_left(store, truth)
            if not rule.hits:
                break
        else:
            pytest.fail("it never ends")
        assert number > 1
        assert bool(failed) == path.in_block or cut is Cut.IN_REPLY
        assert await truth.log_problems() == []


async def _list(store: MemoryStore) -> list[str]:
    page = await store.episodes.list(Episode.c.domain == "web", limit=10)
    return [found.id for found in page.items]


async def _get(store: MemoryStore) -> Any:
    found = await store.episodes.get("a", freshness="linearizable")
    return found and found.context


async def _get_uncached(store: MemoryStore) -> Any:
    """What is not there is not cached for long: each asks the server."""
    return await store.episodes.get(f"none-{time.monotonic_ns()}")


READS: dict[str, Callable[[MemoryStore], Awaitable[Any]]] = {
    "get": _get,
    "get of nothing": _get_uncached,
    "get_many": lambda store: store.episodes.get_many([f"none-{time.monotonic_ns()}-{i}" for i in range(20)]),
    "steps": lambda store: store.steps.of(f"none-{time.monotonic_ns()}"),
    "list": _list,
    "count": lambda store: store.episodes.count(Episode.c.domain == "web", freshness="linearizable"),
    "several at once": lambda store: asyncio.gather(_get(store), _list(store), _get_uncached(store)),
}


@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
@pytest.mark.parametrize("name", READS)
async def test_a_read_cut_off_at_any_message_is_made_again(
    name: str, cut: Cut, postgres_server: PostgresDatabases, server_url: str
) -> None:
    read = READS[name]
    async with through_proxy(postgres_server, server_url, cache_max_bytes=0) as (store, proxy, truth):
        await store.episodes.put_many([episode(id_, context={"mark": id_}) for id_ in "abc"])
        right = await read(store)
        for number in range(1, _MOST_MESSAGES):
            rule = proxy.on_message(Nth(number, requests=cut is not Cut.BEFORE_REQUEST), cut)
            async with asyncio.timeout(20):
                assert await read(store) == right
            proxy.rules.remove(rule)
            await nothing_left(store, truth)
            if not rule.hits:
                break
        assert number > 1


@pytest.mark.parametrize("half_close", [False, True], ids=["reset", "half-closed"])
async def test_idle_connections_that_broke_are_not_noticed_by_callers(
    half_close: bool, postgres_server: PostgresDatabases, server_url: str
) -> None:
    """All of the pool at once, as when a server was restarted or a firewall forgot them."""
    async with through_proxy(postgres_server, server_url) as (store, proxy, truth):
        for round_ in range(5):
            async with asyncio.TaskGroup() as tasks:
                for number in range(8):
                    tasks.create_task(store.namespace(f"n{number}").episodes.put(episode(f"{round_}")))
            proxy.half_close() if half_close else proxy.drop_all()
            assert await store.episodes.count() == 0
            async with store.transaction() as tx:
                assert await tx.episodes.get("none") is None
        assert await truth.connection.fetchval("SELECT count(*) FROM episodes") == 40
        await nothing_left(store, truth)


@pytest.mark.parametrize("work", ["reads", "writes"])
async def test_a_server_that_drops_every_connection_at_work_is_used_again_at_once(
    work: str, postgres_server: PostgresDatabases, server_url: str
) -> None:
    """Ten statements broken off by one event are not ten failures to reach the server: the breaker stays closed."""
    async with through_proxy(postgres_server, server_url, pool_size=12, heads=16) as (store, proxy, truth):
        going_on = asyncio.Event()
        of_each_head = {shard_of(name, 16): store.namespace(name) for name in map("n{}".format, range(200))}
        used = list(of_each_head.values())[:10]
        await asyncio.gather(*(namespace.episodes.get("none") for namespace in used))  # so that all have a connection
        rule = proxy.on_message(lambda _, sql: "episodes" in sql, going_on.wait, times=10)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            for namespace in used:
                call = namespace.episodes.put(episode("a")) if work == "writes" else namespace.episodes.get("a")
                tasks.create_task(call)
            while rule.hits < 10:
                await asyncio.sleep(0.005)
            proxy.drop_all()
            going_on.set()
        assert await truth.connection.fetchval("SELECT count(*) FROM episodes") == (10 if work == "writes" else 0)
        assert await truth.log_problems() == []


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_a_connection_cut_off_while_it_is_made_is_made_again(
    direction: Literal["to_server", "to_client"], postgres_server: PostgresDatabases, server_url: str
) -> None:
    async with through_proxy(postgres_server, server_url, hints=False) as (store, proxy, truth):
        await store.episodes.put(episode("a", context={"mark": 1}))
        for count in (0, 1, 8, 9, 40, 100, 150, 300, 390, 450):
            proxy.drop_all()
            proxy.cut_after(count, direction)
            async with asyncio.timeout(20):
                await store.episodes.update("a", context={"mark": count})
            assert await truth.state("", store.name) == {}
            [[context]] = await truth.connection.fetch("SELECT context::text FROM episodes")
            assert json.loads(context) == {"mark": count}
            proxy.cut_after(1 << 40, direction)
            await nothing_left(store, truth)
        assert await truth.log_problems() == []


async def test_an_opening_cut_off_at_any_request_leaves_a_database_that_opens(
    postgres_server: PostgresDatabases, server_url: str
) -> None:
    """Opening makes the schema: that is one transaction, so it is there or not."""
    database = server_url.partition("?")[0].rpartition("/")[2]
    outcomes = []
    async with Proxy(postgres_server.upstream) as proxy, truth_of(server_url) as truth:
        through = postgres_server.url_through(proxy.port, database)
        for number in (*range(1, 12), 20, 40, 60, 80):
            rule = proxy.on_message(Nth(number, requests=True), Cut.BEFORE_REPLY)
            try:
                async with MemoryStore(through, **SETTINGS) as store:
                    await store.episodes.put(episode(f"e{number}"))
            except DurableUnavailableError:
                outcomes.append(False)
            else:
                outcomes.append(True)
            proxy.rules.remove(rule)
            await truth.quiet()
        async with MemoryStore(through, **SETTINGS) as store:
            assert await store.episodes.count() == outcomes.count(True)
        assert await truth.log_problems() == []
