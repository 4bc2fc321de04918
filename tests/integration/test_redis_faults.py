"""The shared cache level when its server fails: a miss, after one timeout at most, and never an error."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from memory_store import MemoryStore
from memory_store.cache.redis import RedisLink
from tests.integration.redis_support import counters, forget, level, link, opened, settled
from tests.servers.fixtures import MakeRedis
from tests.servers.installation import free_port
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer
from tests.unit.samples import make_episode


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def use(store: MemoryStore, rounds: int) -> None:
    """Write and read, and check each answer."""
    for round_ in range(rounds):
        written = await store.episodes.put(make_episode(id="x", reward_score=float(round_)))
        forget(store)
        assert await store.episodes.get("x", freshness="linearizable") == written
        assert await store.episodes.get(f"absent {round_}", freshness="linearizable") is None


async def is_shared(ours: MemoryStore, theirs: MemoryStore) -> None:
    """Check that what one writes now reaches the other by way of the shared level."""
    await until(lambda: link(ours).up and link(theirs).up)
    await use(ours, 1)
    await settled(ours)
    forget(theirs)
    await theirs.episodes.get("x", freshness="linearizable")
    await settled(ours, theirs)
    forget(theirs)
    before = counters(theirs).hits
    assert await theirs.episodes.get("x") == await ours.episodes.get("x")
    assert counters(theirs).hits == before + 1


@pytest.fixture
def server(make_redis: MakeRedis) -> RedisServer:
    return make_redis()


@asynccontextmanager
async def two(url: str, redis_url: str, timeout_s: float = 20.0) -> AsyncIterator[tuple[MemoryStore, MemoryStore]]:
    async with (
        opened(url, redis_url, shared_cache_timeout_s=timeout_s) as ours,
        opened(url, redis_url, shared_cache_timeout_s=timeout_s) as theirs,
    ):
        yield ours, theirs


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_server_that_is_killed_and_comes_back_empty(
    database: str, server: RedisServer, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("absent_url" if database == "sqlite" else "postgres_url")
    async with two(url, server.url()) as (ours, theirs):
        await is_shared(ours, theirs)
        server.kill()
        await use(ours, 5)
        await use(theirs, 5)
        await until(lambda: not link(ours).up)
        assert link(ours).outages == 1
        server.start()
        await is_shared(ours, theirs)


async def test_an_old_dump_that_is_restored(file_url: str, make_redis: MakeRedis) -> None:
    server = make_redis(settings={"dbfilename": "dump.rdb"})
    async with two(file_url, server.url()) as (ours, theirs):
        await use(ours, 3)
        kept = await ours.episodes.put(make_episode(id="kept"))
        await settled(ours)
        await link(ours)._client.save()
        shutil.copy(server.folder / "dump.rdb", server.folder / "old.rdb")
        new = await ours.episodes.update("x", domain="new")
        await use(theirs, 3)
        await settled(ours, theirs)
        server.kill()
        shutil.copy(server.folder / "old.rdb", server.folder / "dump.rdb")
        server.start()
        last = await ours.episodes.get("x", freshness="linearizable")
        assert last is not None
        assert last.revision > new.revision
        for store in (ours, theirs):
            await use(store, 2)
            link(store)._failed("read", OSError())  # whoever met no failure while it was away goes on as before
        await is_shared(ours, theirs)
        forget(theirs)
        before = counters(theirs).hits
        assert await theirs.episodes.get("kept") == kept
        assert counters(theirs).hits == before + 1, "what had not changed since the dump is right"


async def test_a_server_that_is_stopped_costs_few_timeouts(file_url: str, server: RedisServer) -> None:
    async with two(file_url, server.url(), timeout_s=0.2) as (ours, theirs):
        await use(ours, 1)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            forget(ours)
            asking = [asyncio.create_task(ours.episodes.get(f"y{n}")) for n in range(300)]
            assert await asyncio.gather(*asking) == [None] * 300
            # 300 keys are three requests; when the first one fails, nobody waits for a second.
            assert link(ours).failures <= 2
            await use(ours, 5)
            await until(lambda: not link(ours).up)
            failures = link(ours).failures
            assert failures <= 8
            for number in range(20):
                forget(ours)
                assert await ours.episodes.get(f"z{number}") is None
            assert not level(ours)._asking
            assert link(ours)._in_a_row["read"] <= 3
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await is_shared(ours, theirs)


async def test_a_store_opens_writes_and_closes_over_a_stopped_server(file_url: str, server: RedisServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        async with opened(file_url, server.url(), shared_cache_timeout_s=0.05) as ours:
            await use(ours, 3)
            assert not link(ours).up
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_a_store_closes_though_the_server_has_stopped_meanwhile(file_url: str, server: RedisServer) -> None:
    assert server.pid is not None
    async with asyncio.timeout(30):
        async with opened(file_url, server.url(), shared_cache_timeout_s=0.2) as ours:
            await use(ours, 1)
            os.kill(server.pid, signal.SIGSTOP)
            await ours.episodes.put(make_episode())
            forget(ours)
            reading = asyncio.create_task(ours.episodes.get("x"))
            await asyncio.sleep(0)
        os.kill(server.pid, signal.SIGCONT)
        assert await reading is not None


async def test_a_server_that_is_not_there_is_not_waited_for(file_url: str) -> None:
    async with opened(file_url, f"redis://127.0.0.1:{free_port()}/0") as ours:
        await use(ours, 5)
        assert not link(ours).up
        assert counters(ours).misses == 0, "it is not even asked"


async def test_a_server_that_is_started_later_is_found(file_url: str, make_redis: MakeRedis) -> None:
    server = make_redis()
    server.stop()
    async with two(file_url, server.url()) as (ours, theirs):
        await use(ours, 2)
        server.start()
        await is_shared(ours, theirs)


FAULTS: dict[str, Callable[[Proxy], object]] = {
    "dropped": lambda proxy: proxy.drop_all(),
    "half closed": lambda proxy: proxy.half_close(),
    "swallowed": lambda proxy: proxy.blackhole(),
    "held back": lambda proxy: proxy.pause(),
    "cut in a request": lambda proxy: proxy.cut_after(20, "to_server"),
    "cut in an answer": lambda proxy: proxy.cut_after(20, "to_client"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_network_that_fails(fault: str, file_url: str, server: RedisServer) -> None:
    async with (
        Proxy(server.port, postgres=False) as proxy,
        two(file_url, server.tcp_url(port=proxy.port), timeout_s=0.3) as (ours, theirs),
    ):
        await use(ours, 2)
        accepted = proxy.accepted
        for _ in range(2):
            FAULTS[fault](proxy)
            await use(ours, 4)
            await use(theirs, 4)
            await settled(ours, theirs)
            proxy.blackhole(on=False)
            proxy.resume()
            if fault == "swallowed":
                proxy.drop_all()
        # An idle connection that was ended is noticed before it is used.
        assert link(ours).failures + link(theirs).failures > 0 or proxy.accepted > accepted
        await is_shared(ours, theirs)


async def test_a_server_that_speaks_another_language(file_url: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    async with other, opened(file_url, f"redis://127.0.0.1:{port}/0") as ours:
        await use(ours, 3)
        assert not link(ours).up


async def test_a_server_that_only_reads(file_url: str, server: RedisServer) -> None:
    """As after a failover, when the old primary has become a replica."""
    async with two(file_url, server.url()) as (ours, theirs):
        await is_shared(ours, theirs)
        await link(ours)._client.replicaof("127.0.0.1", "1")
        await use(ours, 5)
        await use(theirs, 5)
        assert link(ours).failures > 0
        await link(ours)._client.replicaof("NO", "ONE")
        await is_shared(ours, theirs)


async def test_a_script_the_server_has_forgotten_is_sent_again(file_url: str, server: RedisServer) -> None:
    async with two(file_url, server.url()) as (ours, theirs):
        await is_shared(ours, theirs)
        await link(ours)._client.script_flush()
        await is_shared(ours, theirs)
        assert link(ours).failures == link(theirs).failures == 0


async def test_connections_are_few(file_url: str, server: RedisServer) -> None:
    async with opened(file_url, server.url()) as ours:
        for round_ in range(3):
            forget(ours)
            names = [ours.namespace(f"n{n}") for n in range(30)]
            await asyncio.gather(*(one.episodes.put(make_episode(id=str(round_))) for one in names))
            await asyncio.gather(*(one.episodes.get(str(n)) for one in names for n in range(10)))
        assert len(await link(ours)._client.client_list()) <= 4


def test_a_link_is_made_without_a_server() -> None:
    async def make() -> bool:
        made = RedisLink("redis://127.0.0.1:1/0", 0.05, "key")
        await made.close()
        return made.up

    assert asyncio.run(make()) is False
