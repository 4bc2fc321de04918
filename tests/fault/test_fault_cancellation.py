"""Cancellation at every await of every public method: the store goes on, nothing stays open, the cache is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from memory_store import Embedding, Episode, MemoryStore, Pattern, SpatiotemporalEntry, Step
from memory_store.records import RECORDS
from tests.fault.cancelling import MOMENTS, CancelledAt, awaited, cancel_everywhere
from tests.fault.support import database, episode, fields, integrity_problems, log_problems, plain_rows

pytestmark = pytest.mark.usefixtures("no_thread_left")

COLD = 1200


@pytest.fixture
async def warm(file_url: str) -> AsyncIterator[MemoryStore]:
    """A store with episodes that are in the database and not in the cache: more at once than the cache takes."""
    async with MemoryStore(file_url, namespace="test-agent", timeout_s=10) as store:
        await store.cache.wait()
        await store.episodes.put_many([episode(f"cold-{i}") for i in range(COLD)])
        assert store.stats().entries == 0
        yield store


async def put_new(store: MemoryStore, key: str) -> None:
    await store.episodes.put(episode(key))


async def put_again(store: MemoryStore, key: str) -> None:
    await store.episodes.put(episode(key, status="failed"))


async def put_among_others(store: MemoryStore, key: str) -> None:
    others = [asyncio.ensure_future(store.episodes.put(episode(f"{key}-other-{i}"))) for i in range(20)]
    try:
        await store.episodes.put(episode(key, status="completed"))
    finally:
        done, _ = await asyncio.shield(asyncio.wait(others))
        assert all(task.exception() is None for task in done)


async def put_many(store: MemoryStore, key: str) -> None:
    await store.episodes.put_many([episode(key), *(episode(f"{key}-more-{i}") for i in range(300))])


async def put_many_past_the_cache(store: MemoryStore, key: str) -> None:
    await store.episodes.put_many([episode(key), *(episode(f"{key}-more-{i}") for i in range(1100))])


async def get_present(store: MemoryStore, key: str) -> None:
    found = await store.episodes.get(f"cold-{key.rsplit('-')[-1]}")
    assert found is not None


async def get_absent(store: MemoryStore, key: str) -> None:
    assert await store.episodes.get(f"absent-{key}") is None


async def get_together(store: MemoryStore, key: str) -> None:
    """Two callers share one read; cancelling one must not take the answer from the other."""
    other = asyncio.ensure_future(store.episodes.get(key))
    try:
        await store.episodes.get(key)
    finally:
        await asyncio.shield(asyncio.wait([other]))
        other.result()


async def get_many(store: MemoryStore, key: str) -> None:
    number = int(key.rsplit("-")[-1]) * 7
    found = await store.episodes.get_many([f"cold-{number + i}" for i in range(7)])
    assert None not in found


async def update(store: MemoryStore, key: str) -> None:
    await store.episodes.update(key, status="completed", context={"changed": True})


async def delete(store: MemoryStore, key: str) -> None:
    await store.episodes.delete(key)


async def read_lists(store: MemoryStore, key: str) -> None:
    page = await store.episodes.list(Episode.c.domain == "web", order_by=Episode.c.created_at.desc(), limit=10)
    assert len((await store.episodes.list(limit=10, cursor=None)).items) == len(page.items) == 10


async def stream(store: MemoryStore, key: str) -> None:
    assert len([item async for item in store.episodes.stream(Episode.c.id.like("cold-%"))]) == COLD


async def count(store: MemoryStore, key: str) -> None:
    assert await store.episodes.count(Episode.c.id == key) == 1


async def append(store: MemoryStore, key: str) -> None:
    await store.steps.append(key, [Step(action="a"), Step(action="b")])


async def of(store: MemoryStore, key: str) -> None:
    assert await store.steps.of(f"cold-{key.rsplit('-')[-1]}") == []


async def read_parts(store: MemoryStore, key: str) -> None:
    assert await store.steps.get(f"{key}-step") is not None
    assert None not in await store.steps.get_many([f"{key}-step"])


async def other_kinds(store: MemoryStore, key: str) -> None:
    await store.patterns.put(Pattern(id=key, pattern_type="tool_sequence", pattern_data=["a"]))
    vector = Embedding(episode_id=key, content="c", embedding=[1.0, 2.0], model_name="own", vector_dim=2)
    await store.embeddings.append(key, vector)
    await store.spatiotemporal.append(key, SpatiotemporalEntry(episode_id=key, spatial_key="s", temporal_key="t"))


async def transaction(store: MemoryStore, key: str) -> None:
    async with store.transaction() as tx:
        await tx.episodes.put(episode(f"{key}-new"))
        await tx.episodes.update(key, status="completed")
        await tx.steps.append(key, Step(action="in a transaction"))
        assert await tx.episodes.get(key) is not None
        assert len(await tx.steps.of(key)) == 2
        assert await tx.episodes.count(Episode.c.id == key) == 1
        assert (await tx.episodes.list(limit=1)).items
        assert await tx.steps.get_many([f"{key}-step"])
        await tx.patterns.put_many([Pattern(pattern_type="t", pattern_data=[key, i]) for i in range(3)])
        await tx.episodes.delete(f"{key}-new")


async def failing_transaction(store: MemoryStore, key: str) -> None:
    with suppress(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.episodes.update(key, status="failed")
            raise ZeroDivisionError


async def transaction_behind_another(store: MemoryStore, key: str) -> None:
    async def hold() -> None:
        async with store.transaction() as tx:
            for i in range(5):
                await tx.episodes.put(episode(f"{key}-held-{i}"))

    holding = asyncio.ensure_future(hold())
    await asyncio.sleep(0)
    try:
        async with store.transaction() as tx:
            await tx.episodes.update(key, status="completed")
    finally:
        await asyncio.shield(asyncio.wait([holding]))
        holding.result()


async def rebuild(store: MemoryStore, key: str) -> None:
    await store.cache.rebuild()


async def rebuild_over_a_rebuild(store: MemoryStore, key: str) -> None:
    running = asyncio.ensure_future(store.cache.rebuild())
    await asyncio.sleep(0)
    try:
        await store.cache.rebuild()
    finally:
        running.cancel()
        await asyncio.shield(asyncio.wait([running]))


async def save(store: MemoryStore, key: str) -> None:
    await store.cache.save()


async def clear(store: MemoryStore, key: str) -> None:
    await store.cache.clear()


async def clear_during_a_rebuild(store: MemoryStore, key: str) -> None:
    running = asyncio.ensure_future(store.cache.rebuild())
    await asyncio.sleep(0)
    try:
        await store.cache.clear()
    finally:
        running.cancel()
        await asyncio.shield(asyncio.wait([running]))


async def status(store: MemoryStore, key: str) -> None:
    await store.cache.status()


METHODS: list[Callable[[MemoryStore, str], Awaitable[None]]] = [
    put_new,
    put_again,
    put_among_others,
    put_many,
    put_many_past_the_cache,
    get_present,
    get_absent,
    get_together,
    get_many,
    update,
    delete,
    read_lists,
    stream,
    count,
    append,
    of,
    read_parts,
    other_kinds,
    transaction,
    failing_transaction,
    transaction_behind_another,
    rebuild,
    rebuild_over_a_rebuild,
    save,
    clear,
    clear_during_a_rebuild,
    status,
]


async def agrees_with_the_file(store: MemoryStore, path: Path, key: str) -> None:
    """Compare what the store says, cached or not, of a key and its relatives with what the plain driver reads."""
    with database(path) as connection:
        likes = (store.name, f"%{key}%")
        for kind in ("episode", "pattern"):
            collection, spec = store.collection(kind), RECORDS[kind]
            rows = {row["id"]: row for row in plain_rows(connection, spec, "namespace = ? AND id LIKE ?", *likes)}
            for id_ in {key, f"{key}-new", *list(rows)[:30]}:
                assert fields(await collection.get(id_)) == rows.get(id_)
        for parts in (store.steps, store.embeddings, store.spatiotemporal):
            spec = parts._spec
            rows_of_key = plain_rows(connection, spec, "namespace = ? AND episode_id = ?", store.name, key)
            assert [fields(part) for part in await parts.of(key)] == rows_of_key


async def still_works(store: MemoryStore, path: Path, key: str) -> None:
    """Check that the store writes and reads, that no transaction is open, and that its cache is right about the key."""
    async with asyncio.timeout(10):
        written = await store.episodes.put(episode(f"after-{key}"))
        assert await store.episodes.get(written.id) == written
        # The write above came after whatever was cancelled, on the same lane: all of it has ended now.
        with database(path) as other_program:
            other_program.execute("PRAGMA busy_timeout = 2000")
            other_program.execute("BEGIN IMMEDIATE")
            other_program.execute("ROLLBACK")
        await agrees_with_the_file(store, path, key)
        await store.cache.wait()
        await agrees_with_the_file(store, path, key)


@pytest.mark.parametrize("moment", [MOMENTS[0], pytest.param(MOMENTS[1], marks=pytest.mark.slow), *MOMENTS[2:]])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
async def test_cancelled_at_every_await(
    method: Callable[[MemoryStore, str], Awaitable[None]], moment: str, warm: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "agent.db"
    for number in range(60):
        if method is not put_new:
            await warm.episodes.put(episode(f"key-{number}"))
            await warm.steps.append(f"key-{number}", Step(id=f"key-{number}-step", action="first"))

    async def run(number: int) -> None:
        await method(warm, f"key-{number}")

    suspensions = await cancel_everywhere(run, lambda number: still_works(warm, path, f"key-{number}"), moment)
    assert suspensions or method is status, "it never waited: nothing was tested"
    await warm.close()
    assert integrity_problems(path) == []
    assert log_problems(path) == []


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("exists", [True, False])
async def test_open_cancelled_at_every_await(exists: bool, moment: str, tmp_path: Path) -> None:
    for number in range(1, 50):
        path = tmp_path / f"{number}.db"
        if exists:
            async with MemoryStore(f"sqlite:///{path}") as store:
                await store.episodes.put(episode("known"))
        store = MemoryStore(f"sqlite:///{path}", timeout_s=10)
        run = CancelledAt(store.open(), number, moment)
        task = asyncio.ensure_future(awaited(run))
        await asyncio.wait([task], timeout=30)
        assert task.cancelled() == run.reached
        await store.close()
        async with MemoryStore(f"sqlite:///{path}", timeout_s=10) as again:
            assert await again.episodes.count() == exists
        if not run.reached:
            assert number > 1
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("moment", MOMENTS)
async def test_close_cancelled_at_every_await(moment: str, file_url: str) -> None:
    for number in range(1, 50):
        store = await MemoryStore(file_url, timeout_s=10).open()
        writing = asyncio.ensure_future(store.episodes.put(episode(f"before-{number}")))
        await asyncio.sleep(0)
        run = CancelledAt(store.close(), number, moment)
        task = asyncio.ensure_future(awaited(run))
        await asyncio.wait([task], timeout=30)
        assert task.cancelled() == run.reached
        await store.close()
        assert (await writing).revision == 1
        if not run.reached:
            assert number > 1
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("exists", [True, False])
async def test_open_cancelled_twice_leaves_nothing_behind(exists: bool, file_url: str) -> None:
    """The second cancellation comes while the first one is being answered, as when a user presses Ctrl-C again."""
    if exists:
        await (await MemoryStore(file_url).open()).close()
    store = MemoryStore(file_url, timeout_s=10)
    task = asyncio.ensure_future(awaited(CancelledAt(store.open(), 1, "a tick later", times=2)))
    await asyncio.wait([task], timeout=30)
    assert task.cancelled()
    await store.close()
    async with MemoryStore(file_url, timeout_s=10) as again:
        assert await again.episodes.count() == 0


async def test_waiting_for_the_cache_ends_quietly_when_the_store_is_closed(warm: MemoryStore) -> None:
    """Closing stops the rebuild; who waits for it was not cancelled and must not be told so."""
    rebuilding = asyncio.ensure_future(warm.cache.rebuild())
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(warm.cache.wait())
    await asyncio.sleep(0)
    await warm.close()
    await asyncio.wait([rebuilding, waiting], timeout=10)
    assert not waiting.cancelled()
    assert not rebuilding.cancelled()
    for task in (rebuilding, waiting):
        task.exception()


async def test_a_cancelled_write_that_waited_is_not_written(warm: MemoryStore, tmp_path: Path) -> None:
    """What was taken out of the queue stays out; what had begun is there and in the cache. Nothing in between."""
    writes = [asyncio.ensure_future(warm.episodes.put(episode(f"w{i}"))) for i in range(50)]
    await asyncio.sleep(0)
    for write in writes[::2]:
        write.cancel()
    await asyncio.wait(writes)
    await still_works(warm, tmp_path / "agent.db", "w")
    found = await warm.episodes.get_many([f"w{i}" for i in range(50)])
    assert None not in found[1::2]
    assert found[2::2].count(None) == 24


async def test_rebuilds_asked_for_together_do_not_run_together(warm: MemoryStore) -> None:
    """Each new one stops the one before: a forgotten one would go on after the store's connections are closed."""
    asking = [asyncio.ensure_future(warm.cache.rebuild()) for _ in range(4)]
    most = 0
    while not all(task.done() for task in asking):
        await asyncio.sleep(0)
        most = max(most, sum(task.get_name() == "memory_store cache filler" for task in asyncio.all_tasks()))
    assert most == 1
    for task in asking:
        task.result()
