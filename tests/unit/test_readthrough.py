"""Misses on a real store whose reader is blocked, or held between seeing and telling."""

from __future__ import annotations

import asyncio

import pytest

from memory_store import DurableUnavailableError, MemoryStore
from memory_store.durable.lane import Lane
from tests.unit.conftest import Blocker, HeldRead
from tests.unit.samples import make_episode, make_step


def reading_lane(store: MemoryStore) -> Lane:
    """The lane of the point reads."""
    return store._access.shard.reader._lane


async def settle() -> None:
    """Give every task that can go on a turn."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_many_askers_share_one_read(file_store: MemoryStore) -> None:
    stored = await file_store.episodes.put(make_episode(id="x"))
    await file_store.cache.clear()
    before = file_store.stats().cache["episode"]
    statements: list[str] = []
    await reading_lane(file_store).run(lambda connection: connection.set_trace_callback(statements.append))
    async with Blocker(reading_lane(file_store)).block():
        asking = [asyncio.create_task(file_store.episodes.get("x")) for _ in range(100)]
        await settle()
    assert await asyncio.gather(*asking) == [stored] * 100
    await reading_lane(file_store).run(lambda connection: connection.set_trace_callback(None))
    after = file_store.stats().cache["episode"]
    assert (after.misses - before.misses, after.fills - before.fills) == (100, 1)
    assert sum("JOIN episodes" in statement for statement in statements) == 1


async def test_a_cancelled_asker_leaves_the_read_to_the_others(file_store: MemoryStore) -> None:
    stored = await file_store.episodes.put(make_episode(id="x"))
    await file_store.cache.clear()
    async with Blocker(reading_lane(file_store)).block():
        asking = [asyncio.create_task(file_store.episodes.get("x")) for _ in range(3)]
        await settle()
        asking[0].cancel()
        await settle()
        assert asking[0].cancelled()
    assert await asyncio.gather(*asking[1:]) == [stored] * 2
    assert file_store.stats().cache["episode"].fills == 1, "what was read is kept, whoever asked"


async def test_a_read_that_everybody_left_still_ends_well(file_store: MemoryStore) -> None:
    await file_store.episodes.put(make_episode(id="x"))
    await file_store.cache.clear()
    async with Blocker(reading_lane(file_store)).block():
        asking = asyncio.create_task(file_store.episodes.get("x"))
        await settle()
        asking.cancel()
    assert await file_store.episodes.get("x") is not None


@pytest.mark.parametrize("delete", [False, True])
async def test_a_slow_reader_never_puts_an_old_value_back(delete: bool, file_store: MemoryStore) -> None:
    old = await file_store.episodes.put(make_episode(id="x", domain="old"))
    await file_store.cache.clear()
    async with HeldRead(reading_lane(file_store)) as held:
        asking = asyncio.create_task(file_store.episodes.get("x"))
        await held.reached.wait()  # it has seen the old row
        if delete:
            await file_store.episodes.delete("x")
            new = None
        else:
            new = await file_store.episodes.put(make_episode(id="x", domain="new"))
        assert await file_store.episodes.get("x") == new
        held.release()
        assert await asking in (old, new), "asked before the write was acknowledged: both are right"
    assert await file_store.episodes.get("x") == new
    await file_store.cache.clear()
    assert await file_store.episodes.get("x") == new


async def test_who_joins_an_older_read_reads_again(file_store: MemoryStore) -> None:
    old = await file_store.episodes.put(make_episode(id="x", domain="old"))
    await file_store.cache.clear()
    async with HeldRead(reading_lane(file_store)) as held:
        first = asyncio.create_task(file_store.episodes.get("x"))
        await held.reached.wait()
        new = await file_store.episodes.put(make_episode(id="x", domain="new"))
        await file_store.cache.clear()  # as an eviction would: who asks now finds only the old read under way
        second = asyncio.create_task(file_store.episodes.get("x"))
        await settle()
        assert not second.done()
        held.release()
        assert await first == old
        assert await second == new, "the write had been acknowledged before it was asked"
    assert await file_store.episodes.get("x") == new


async def test_steps_appended_during_a_slow_read_are_there(file_store: MemoryStore) -> None:
    await file_store.episodes.put(make_episode(id="e"))
    [first] = await file_store.steps.append("e", make_step(""))
    await file_store.cache.clear()
    async with HeldRead(reading_lane(file_store)) as held:
        asking = asyncio.create_task(file_store.steps.of("e"))
        await held.reached.wait()
        [second] = await file_store.steps.append("e", make_step(""))
        held.release()
        assert await asking in ([first], [first, second])
    assert await file_store.steps.of("e") == [first, second]


async def test_a_rebuild_never_brings_an_old_value_back(file_url: str) -> None:
    """It reads namespaces that this process has never used, while another process changes them."""
    async with MemoryStore(file_url, cache_path="") as store, MemoryStore(file_url, cache_path="") as theirs:
        await theirs.namespace("elsewhere").episodes.put(make_episode(id="x", domain="old"))
        await theirs.namespace("elsewhere").steps.append("x", make_step(""))
        await store.cache.wait()
        async with HeldRead(store._access.durable.scan) as held:
            rebuilding = asyncio.create_task(store.cache.rebuild())
            await held.reached.wait()  # it has seen the old rows
            new = await theirs.namespace("elsewhere").episodes.update("x", domain="new")
            [*_, second] = await theirs.namespace("elsewhere").steps.append("x", make_step(""))
            # The log has been applied by now.
            assert await store.episodes.get("nothing", at_least=second.position) is None
            held.release()
            await rebuilding
        assert await store.namespace("elsewhere").episodes.get("x") == new
        assert len(await store.namespace("elsewhere").steps.of("x")) == 2


async def test_a_failed_read_reaches_every_asker_and_the_next_one_reads_anew(file_store: MemoryStore) -> None:
    stored = await file_store.episodes.put(make_episode(id="x"))
    await file_store.cache.clear()
    lane = reading_lane(file_store)
    await lane.run(lambda connection: connection.execute("CREATE TEMP TABLE episodes (hidden)"))  # hides the real one
    asking = [asyncio.create_task(file_store.episodes.get("x")) for _ in range(3)]
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    assert {type(outcome).__module__ for outcome in outcomes} == {DurableUnavailableError.__module__}
    await lane.run(lambda connection: connection.execute("DROP TABLE temp.episodes"))
    assert await file_store.episodes.get("x") == stored
