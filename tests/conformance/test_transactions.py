"""Several writes, one commit: what is seen inside, what is left after a failure, when the cache follows."""

from __future__ import annotations

import asyncio

import pytest

from memory_store import (
    ConfigurationError,
    ConflictError,
    DurableTimeoutError,
    Episode,
    InvalidRecordError,
    MemoryStore,
    RecordNotFoundError,
)
from memory_store.records import RECORDS
from tests.unit.samples import MAKE, make_episode, make_pattern, make_step

KINDS = list(RECORDS)


async def test_several_kinds_are_one_commit(store: MemoryStore) -> None:
    before = store.stats().position
    async with store.transaction() as tx:
        await tx.episodes.put(make_episode(id="e"))
        made = {kind: await tx.collection(kind).put(MAKE[kind]("e", id="x")) for kind in KINDS}
    assert store.stats().position == before + 1
    for clear in (False, True):
        if clear:
            await store.cache.clear()
        for kind, record in made.items():
            assert await store.collection(kind).get("x") == record
        assert await store.steps.of("e") == [made["step"]]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_transaction_reads_its_own_writes_and_nobody_else_does(kind: str, store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e"))
    old = await store.collection(kind).put(MAKE[kind]("e", id="old"))
    await store.collection(kind).put(MAKE[kind]("e", id="gone"))
    count = await store.collection(kind).count()
    async with store.transaction() as tx:
        inside, outside = tx.collection(kind), store.collection(kind)
        new = await inside.put(MAKE[kind]("e", id="new"))
        changed = await inside.put(MAKE[kind]("e", id="old"))
        assert await inside.delete("gone") is True
        assert await inside.get_many(["new", "old", "gone"]) == [new, changed, None]
        assert await inside.get("new") == new
        assert await inside.count() == count
        assert {record.id for record in (await inside.list()).items} >= {"new", "old"}
        assert "gone" not in {record.id async for record in inside.stream()}
        seen = await outside.get_many(["new", "old", "gone"])
        assert (seen[0], seen[1]) == (None, old)
        assert seen[2] is not None
        assert await outside.count() == count
    assert await store.collection(kind).get_many(["new", "old", "gone"]) == [new, changed, None]


async def test_steps_of_an_episode_inside(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e"))
    await store.steps.append("e", make_step(""))
    async with store.transaction() as tx:
        assert [step.step_number for step in await tx.steps.append("e", [make_step(""), make_step("")])] == [2, 3]
        assert len(await tx.steps.of("e")) == 3
        assert len(await store.steps.of("e")) == 1
        [first, *_] = await tx.steps.of("e")
        await tx.steps.delete(first.id)
        await tx.steps.append("e", make_step(""))
    cached = await store.steps.of("e")
    assert [step.step_number for step in cached] == [2, 3, 4]
    await store.cache.clear()
    assert await store.steps.of("e") == cached


class BoomError(Exception):
    """What goes wrong in the caller's own code."""


async def test_an_exception_rolls_everything_back(store: MemoryStore) -> None:
    old = await store.episodes.put(make_episode(id="old"))
    before = store.stats()

    async def fail_at_the_end() -> None:
        async with store.transaction() as tx:
            await tx.episodes.put(make_episode(id="new"))
            await tx.episodes.update("old", domain="changed")
            await tx.steps.append("old", make_step(""))
            raise BoomError

    with pytest.raises(BoomError):
        await fail_at_the_end()
    assert store.stats().position == before.position
    for clear in (False, True):
        if clear:
            await store.cache.clear()
        assert await store.episodes.get_many(["old", "new"]) == [old, None]
        assert await store.steps.of("old") == []
    assert (await store.episodes.put(make_episode(id="after"))).revision == 1


async def test_an_operation_that_fails_leaves_the_rest_usable(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e"))
    async with store.transaction() as tx:
        await tx.steps.append("e", make_step("", step_number=1))
        with pytest.raises(ConflictError):
            await tx.steps.append("e", [make_step("", id="lost"), make_step("", step_number=1)])
        with pytest.raises(RecordNotFoundError):
            await tx.steps.append("nothing", make_step(""))
        with pytest.raises(RecordNotFoundError):
            await tx.episodes.update("nothing", domain="x")
        with pytest.raises(InvalidRecordError):
            await tx.episodes.update("e", status="unheard of")
        with pytest.raises(TypeError):
            await tx.episodes.put(make_pattern())  # type: ignore[arg-type]
        await tx.episodes.put(make_episode(id="kept"))
    assert [step.step_number for step in await store.steps.of("e")] == [1]
    assert await store.steps.get("lost") is None
    assert await store.episodes.get("kept") is not None


async def test_an_empty_transaction_commits_nothing(store: MemoryStore) -> None:
    before = store.stats().position
    async with store.transaction() as tx:
        assert await tx.episodes.get("x") is None
    assert store.stats().position == before


async def test_a_transaction_that_has_ended_cannot_be_used(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        pass
    for use in (tx.episodes.put(make_episode()), tx.episodes.get("x"), tx.episodes.count(), tx.episodes.list()):
        with pytest.raises(ConfigurationError, match="the transaction has ended"):
            await use


async def test_writing_past_the_open_transaction_is_refused_not_waited_for(store: MemoryStore) -> None:
    async with store.transaction():
        with pytest.raises(ConfigurationError, match="this task has a transaction open"):
            await store.episodes.put(make_episode())
        with pytest.raises(ConfigurationError, match="this task has a transaction open"):
            async with store.transaction():
                pass


async def test_other_tasks_wait_for_the_end(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        await tx.episodes.put(make_episode(id="x"))
        waiting = asyncio.create_task(store.episodes.update("x", domain="second"))
        await store.episodes.get("anything")  # reads go on, and give the waiting task its turn
        assert not waiting.done()
    assert (await waiting).revision == 2


async def test_transactions_of_many_tasks_take_turns(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="x", context={"n": 0}))

    async def add_one() -> None:
        async with store.transaction() as tx:
            found = await tx.episodes.get("x")
            assert found is not None
            await tx.episodes.update("x", context={"n": found.context["n"] + 1})

    await asyncio.gather(*(add_one() for _ in range(20)))
    found = await store.episodes.get("x")
    assert found is not None
    assert (found.context, found.revision) == ({"n": 20}, 21)


async def test_a_cancelled_task_rolls_back_and_lets_others_go_on(store: MemoryStore) -> None:
    inside = asyncio.Event()

    async def stop_in_the_middle() -> None:
        async with store.transaction() as tx:
            await tx.episodes.put(make_episode(id="x"))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stop_in_the_middle())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.episodes.get("x") is None
    assert (await store.episodes.put(make_episode(id="x"))).revision == 1


async def test_a_transaction_that_takes_too_long_is_rolled_back(url: str) -> None:
    async with MemoryStore(url, transaction_timeout_s=0.05) as store:

        async def take_too_long() -> None:
            async with store.transaction() as tx:
                await tx.episodes.put(make_episode(id="x"))
                await _wait_for_the_lane(store)
                await tx.episodes.put(make_episode(id="y"))

        with pytest.raises(DurableTimeoutError, match=r"was open for 0\.05 s and has been rolled back"):
            await take_too_long()
        assert await store.episodes.get_many(["x", "y"]) == [None, None]


async def _wait_for_the_lane(store: MemoryStore) -> None:
    """Return once another task could write, which is when the transaction has lost the writer."""
    await asyncio.create_task(store.episodes.put(make_episode(id="other")))


async def test_a_transaction_belongs_to_its_namespace(store: MemoryStore) -> None:
    other = store.namespace("other")
    async with other.transaction() as tx:
        await tx.episodes.put(make_episode(id="x"))
        assert await tx.episodes.count() == 1
    assert await store.episodes.get("x") is None
    assert await other.episodes.get("x") is not None


async def test_a_large_transaction_invalidates_instead_of_filling(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e0", domain="old"))
    async with store.transaction() as tx:
        await tx.episodes.put_many([make_episode(id=f"e{number}", domain="new") for number in range(1500)])
        inside = await tx.episodes.list(Episode.c.domain == "new", limit=1000)
        assert len(inside.items) == 1000
    found = await store.episodes.get("e0")
    assert found is not None
    assert (found.domain, found.revision) == ("new", 2)
    assert await store.episodes.count() == 1500
