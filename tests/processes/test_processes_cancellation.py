"""Cancellation at every await of every public method, while another process keeps writing the same records."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from memory_store import Episode, MemoryStore, RecordNotFoundError, Step
from tests.fault.cancelling import MOMENTS, cancel_everywhere
from tests.fault.support import database, episode
from tests.processes.neighbour import KEYS, Neighbour, neighbour_of
from tests.processes.truth import integrity_problems, log_disagreements, read_log
from tests.processes.watching import left_open, stale_entries, threads_since

NAMESPACE = "both"
Method = Callable[[MemoryStore, str], Coroutine[Any, Any, None]]


@pytest.fixture
async def store(file_url: str, tmp_path: Path) -> AsyncIterator[MemoryStore]:
    """A store; nothing of it may be left behind."""
    threads = set(threading.enumerate())
    async with MemoryStore(file_url, namespace=NAMESPACE, staleness_s=0.002, timeout_s=10) as opened:
        await opened.episodes.put_many([episode(key) for key in KEYS])
        yield opened
    assert left_open(tmp_path / "agent.db") == []
    assert threads_since(threads) == []


@pytest.fixture
async def neighbour(store: MemoryStore, file_url: str) -> AsyncIterator[Neighbour]:
    """The other process."""
    async with neighbour_of(file_url, NAMESPACE) as started:
        yield started


async def get(store: MemoryStore, key: str) -> None:
    await store.episodes.get(key)


async def get_linearizable(store: MemoryStore, key: str) -> None:
    await store.episodes.get(key, freshness="linearizable")


async def get_many(store: MemoryStore, key: str) -> None:
    await store.episodes.get_many([*KEYS, "absent"], freshness="linearizable")


async def get_together(store: MemoryStore, key: str) -> None:
    """Two share one read; the other one must get it all the same."""
    other = asyncio.ensure_future(store.episodes.get(key))
    try:
        await store.episodes.get(key)
    finally:
        await asyncio.shield(asyncio.wait([other]))
        other.result()


async def put(store: MemoryStore, key: str) -> None:
    await store.episodes.put(episode(key, context={"own": True}))


async def put_once(store: MemoryStore, key: str) -> None:
    await store.episodes.put(episode(f"once-{key}"), idempotency_key=f"once {key}")


async def put_many(store: MemoryStore, key: str) -> None:
    await store.episodes.put_many([episode(one, context={"own": True}) for one in KEYS[:5]])


async def put_very_many(store: MemoryStore, key: str) -> None:
    """More than a cache takes at once, and more than is encoded at once."""
    await store.episodes.put_many([episode(f"many-{i}") for i in range(1010)] + [episode(key)])


async def update(store: MemoryStore, key: str) -> None:
    with suppress(RecordNotFoundError):
        await store.episodes.update(key, context={"own": True})


async def delete(store: MemoryStore, key: str) -> None:
    await store.episodes.delete(key)


async def append(store: MemoryStore, key: str) -> None:
    with suppress(RecordNotFoundError):
        await store.steps.append(key, [Step(action="own"), Step(action="own")])


async def of(store: MemoryStore, key: str) -> None:
    await store.steps.of(key, freshness="linearizable")


async def steps_get(store: MemoryStore, key: str) -> None:
    assert await store.steps.get("absent") is None


async def count(store: MemoryStore, key: str) -> None:
    await store.episodes.count(Episode.c.id == key, freshness="linearizable")


async def list_page(store: MemoryStore, key: str) -> None:
    await store.episodes.list(Episode.c.id == key)


async def stream(store: MemoryStore, key: str) -> None:
    assert [record.id async for record in store.episodes.stream(Episode.c.domain == "web")]


async def transaction(store: MemoryStore, key: str) -> None:
    async with store.transaction() as tx:
        known = await tx.episodes.get(key)
        await tx.episodes.put(episode(key, context={"own": True}))
        await tx.steps.append(key, Step(action="in a transaction"))
        assert await tx.steps.of(key)
        assert await tx.episodes.count(Episode.c.id == key) == 1
        await tx.episodes.delete("key-pair")
        if known is not None:
            await tx.episodes.update(key, status="completed")


async def undone_transaction(store: MemoryStore, key: str) -> None:
    with suppress(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.episodes.put(episode(key, context={"undone": True}))
            raise ZeroDivisionError


async def save(store: MemoryStore, key: str) -> None:
    await store.cache.save()


async def rebuild(store: MemoryStore, key: str) -> None:
    await store.cache.rebuild()


async def clear(store: MemoryStore, key: str) -> None:
    await store.cache.clear()


METHODS: list[Method] = [
    get,
    get_linearizable,
    get_many,
    get_together,
    put,
    put_once,
    put_many,
    put_very_many,
    update,
    delete,
    append,
    of,
    steps_get,
    count,
    list_page,
    stream,
    transaction,
    undone_transaction,
    save,
    rebuild,
    clear,
]
READS = [get, get_linearizable, get_many, get_together, of, steps_get, count, list_page, stream]


async def nothing_is_wrong(store: MemoryStore, path: Path, neighbour: Neighbour) -> int:
    """Check what must hold after each cancellation; return how many entries of the cache were compared."""
    await neighbour.writes()  # it would wait in vain for a transaction or lock left open
    own = await store.episodes.put(episode("own", context={"still": "works"}))
    assert (await store.episodes.get("own")) == own
    await neighbour.writes()
    compared, wrong = await stale_entries(store, path)
    assert wrong == []
    return compared


async def cancelled_before_it_begins(method: Method, store: MemoryStore) -> None:
    """Cancel it before its first step: nothing of it may run."""
    task = asyncio.ensure_future(method(store, KEYS[0]))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
async def test_cancelled_at_every_await(
    method: Method, store: MemoryStore, neighbour: Neighbour, tmp_path: Path
) -> None:
    path, keys, compared = tmp_path / "agent.db", itertools.cycle(KEYS), 0

    async def check(number: int) -> None:
        nonlocal compared
        compared += await nothing_is_wrong(store, path, neighbour)

    await cancelled_before_it_begins(method, store)
    await check(0)

    async def run(number: int) -> None:
        if method in READS:  # a hit waits for nothing
            store._shelf.clear()
        await method(store, next(keys))

    for moment in MOMENTS:
        assert await cancel_everywhere(run, check, moment), "it never waited: nothing was tested"
    assert compared > 0
    await store.cache.wait()
    assert (await stale_entries(store, path))[1] == []
    await neighbour.writes()
    assert log_disagreements(read_log(path)) == []
    assert integrity_problems(path) == []


async def test_a_cancelled_keyed_put_is_made_once_when_retried(
    store: MemoryStore, neighbour: Neighbour, tmp_path: Path
) -> None:
    """The caller does not know whether it was written; asking again with the key settles it."""
    for moment in MOMENTS:

        async def run(number: int, moment: str = moment) -> None:
            await put_once(store, f"{moment} {number}")

        async def retry(number: int, moment: str = moment) -> None:
            again = await store.episodes.put(
                episode(f"once-{moment} {number}"), idempotency_key=f"once {moment} {number}"
            )
            assert again.revision == 1
            with database(tmp_path / "agent.db") as driver:
                logged = driver.execute("SELECT position FROM changes WHERE key = ?", (again.id,)).fetchall()
            assert logged == [(again.position,)]

        assert await cancel_everywhere(run, retry, moment)


async def open_one(made: list[MemoryStore], url: str) -> None:
    """Open a store, which then stands in the list twice."""
    made.append(MemoryStore(url, namespace=NAMESPACE, timeout_s=10))
    made.append(await made[0].open())


async def close_one(made: list[MemoryStore], url: str) -> None:
    """Close a store while it writes."""
    await open_one(made, url)
    writing = asyncio.ensure_future(made[0].episodes.put(episode(KEYS[0])))
    await asyncio.sleep(0)
    store = made.pop()
    try:
        await store.close()
    finally:
        await asyncio.shield(asyncio.wait([writing]))
        writing.result()


@pytest.mark.parametrize("run", [open_one, close_one])
async def test_open_and_close_cancelled_at_every_await(
    run: Callable[[list[MemoryStore], str], Coroutine[Any, Any, None]], file_url: str, tmp_path: Path
) -> None:
    """A saved cache is there, a part of which the neighbour has changed meanwhile."""
    path, threads, compared = tmp_path / "agent.db", set(threading.enumerate()), 0
    made: list[MemoryStore] = []
    async with MemoryStore(file_url, namespace=NAMESPACE) as first:
        await first.episodes.put_many([episode(key) for key in KEYS])
    async with neighbour_of(file_url, NAMESPACE) as neighbour:

        async def check(number: int) -> None:
            nonlocal compared
            store, *opened = made
            made.clear()
            if not opened:  # cancelled, or closed; the next line must not be what closes it
                assert left_open(path) == []
            await store.close()
            await neighbour.writes()
            assert threads_since(threads) == []
            assert left_open(path) == []
            async with MemoryStore(file_url, namespace=NAMESPACE, timeout_s=10) as again:
                await again.cache.wait()
                await neighbour.writes()
                found, wrong = await stale_entries(again, path)
                assert wrong == []
                compared += found

        task = asyncio.ensure_future(run(made, file_url))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert made == []
        for moment in MOMENTS:
            assert await cancel_everywhere(lambda number: run(made, file_url), check, moment)
        assert compared > 0
    assert log_disagreements(read_log(path)) == []
    assert integrity_problems(path) == []
