"""`record.position`, `transaction.position` and `store.position`: the place of a write in the log, no more."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

from memory_store import ConflictError, Episode, MemoryStore, Transaction
from memory_store.records import RECORDS
from tests.fault.support import database
from tests.unit.samples import CHANGE, MAKE, make_episode, make_pattern, make_step, values_of


@pytest.mark.parametrize("kind", RECORDS)
async def test_every_write_returns_its_position(kind: str, store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e1"))
    collection: Any = store.collection(kind)
    start = store.position
    put = await collection.put(MAKE[kind]("e1", id="a"))
    assert put.position == store.position == start + 1
    replaced = await collection.put(put)
    assert (replaced.position, put.position) == (start + 2, start + 1), "the record that was given stays as it was"
    updated = await collection.update("a", **CHANGE[kind])
    assert updated.position == store.position == start + 3
    many = await collection.put_many([MAKE[kind]("e1", id=id_) for id_ in ("b", "c")])
    assert [record.position for record in many] == [start + 4] * 2
    if RECORDS[kind].parent is not None:
        appended = await collection.append("e1", [MAKE[kind]("e1", id=id_) for id_ in ("d", "f")])
        assert [record.position for record in appended] == [start + 5] * 2
        [alone] = await collection.append("e1", MAKE[kind]("e1"))
        assert alone.position == store.position == start + 6


async def test_a_bulk_write_returns_its_position(store: MemoryStore) -> None:
    stored = await store.episodes.put_many([make_episode() for _ in range(1500)])
    assert {record.position for record in stored} == {store.position}
    position = store.position
    assert await store.episodes.put_many([]) == []
    assert store.position == position


async def test_what_is_read_has_none(store: MemoryStore) -> None:
    put = await store.episodes.put(make_episode(id="e1"))
    await store.steps.append("e1", make_step(id="s"))
    assert put.position is not None
    for _ in range(2):
        found: list[Any] = [await store.episodes.get("e1"), *await store.episodes.get_many(["e1"])]
        found += [*(await store.episodes.list()).items, *[record async for record in store.episodes.stream()]]
        found += [*await store.steps.of("e1"), await store.steps.get("s"), *await store.steps.get_many(["s"])]
        assert len(found) == 7
        assert [record.position for record in found] == [None] * 7
        await store.cache.clear()  # once from the cache, once from the database


async def test_what_was_never_stored_has_none() -> None:
    assert make_episode().position is None


async def test_it_is_no_part_of_the_record(store: MemoryStore) -> None:
    """Two records that are equal stay equal, wherever they come from; a copy is no longer what a write returned."""
    put = await store.episodes.put(make_episode(id="e1"))
    found = await store.episodes.get("e1")
    assert found is not None
    assert put == found
    assert found == put
    assert repr(put) == repr(found)
    assert hash(put) == hash(found)
    assert "position" not in {field.name for field in dataclasses.fields(put)}
    assert "position" not in dataclasses.asdict(put)
    assert dataclasses.replace(put).position is None
    assert dataclasses.replace(put, domain="mobile").position is None
    for copied in (pickle.loads(pickle.dumps(put)), copy.copy(put), copy.deepcopy(put)):
        assert copied == put
        assert values_of(copied) == values_of(put)
        assert copied.position is None
    unchangeable: Any = put
    with pytest.raises((AttributeError, TypeError)):  # which of them depends on the Python version
        unchangeable.position = 7
    with pytest.raises(TypeError):
        Episode(task_type="t", domain="d", position=7)  # type: ignore[call-arg]


async def test_inside_a_transaction_there_is_none_yet(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e1"))
    start = store.position
    async with store.transaction() as tx:
        assert tx.position is None
        written: list[Any] = [
            await tx.episodes.put(make_episode(id="e2")),
            *await tx.episodes.put_many([make_episode(), make_episode()]),
            await tx.episodes.update("e2", domain="mobile"),
            *await tx.steps.append("e2", make_step("e2")),
            await tx.patterns.put(make_pattern()),
        ]
        read = [await tx.episodes.get("e1"), *await tx.steps.of("e2")]
        assert [record and record.position for record in [*written, *read]] == [None] * 8
        assert tx.position is None
        assert store.position == start
    assert tx.position == store.position == start + 1
    assert [record.position for record in written] == [None] * 6


async def test_inside_a_transaction_a_keyed_put_has_none_either(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        first = await tx.episodes.put(make_episode(id="e2"), idempotency_key="k")
        again = await tx.episodes.put(make_episode(id="e2"), idempotency_key="k")
        assert [first.position, again.position] == [None, None], "it may still be rolled back"
    assert tx.position == store.position


async def test_a_transaction_that_changes_nothing_has_none(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e1"))
    position = store.position
    async with store.transaction() as reading:
        await reading.episodes.get("e1")
        assert not await reading.episodes.delete("nobody")
    assert reading.position is None
    transactions: list[Transaction] = []

    async def fail() -> None:
        async with store.transaction() as failing:
            transactions.append(failing)
            await failing.episodes.put(make_episode(id="e2"))
            await failing.episodes.update("e1", expected_revision=9, domain="mobile")

    with pytest.raises(ConflictError):
        await fail()
    assert [failing.position for failing in transactions] == [None]
    assert store.position == position


async def test_a_transaction_of_another_namespace_has_its_position(store: MemoryStore) -> None:
    async with store.namespace("other").transaction() as tx:
        await tx.episodes.put(make_episode())
    assert tx.position == store.namespace("other").position


async def test_deletes_count_and_what_changes_nothing_does_not(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="e1"))
    position = store.position
    assert await store.episodes.delete("e1")
    assert store.position == position + 1
    assert not await store.episodes.delete("e1")
    with pytest.raises(ConflictError):
        await store.episodes.delete("e1", expected_revision=1)
    assert store.position == position + 1


async def test_the_position_is_that_of_the_log(file_store: MemoryStore, tmp_path: Path) -> None:
    """Of each of many concurrent writes, several of which share a commit."""
    episodes = await asyncio.gather(*(file_store.episodes.put(make_episode(id=f"e{i}")) for i in range(64)))
    steps = await asyncio.gather(*(file_store.steps.append(f"e{i % 4}", make_step(f"e{i % 4}")) for i in range(64)))
    updated = await asyncio.gather(*(file_store.episodes.update(f"e{i}", reward_score=0.5) for i in range(64)))
    with database(tmp_path / "agent.db") as connection:
        rows = connection.execute("SELECT kind, key, revision, position FROM changes").fetchall()
    logged = {row[:3]: row[3] for row in rows}
    written = [*episodes, *updated, *(step for [step] in steps)]
    assert [record.position for record in written] == [logged[r.kind, r.id, r.revision] for r in written]
    assert len({record.position for record in written}) < len(written), "some share a commit"


async def test_the_position_of_a_store_is_what_it_has_seen(file_url: str) -> None:
    """It only rises, and covers every position it was asked to reach."""
    async with MemoryStore(file_url) as theirs, MemoryStore(file_url, staleness_s=3600) as ours:
        await ours.episodes.get("e1")
        seen = ours.position
        put = await theirs.episodes.put(make_episode(id="e1"))
        assert put.position == theirs.position == seen + 1
        assert ours.position == seen
        await ours.episodes.get("e1", at_least=put.position)
        assert ours.position == put.position
        assert (await ours.episodes.put(make_episode())).position == put.position + 1
        await theirs.episodes.get("e1", freshness="linearizable")
        assert theirs.position == ours.position
    async with MemoryStore(file_url) as later:
        assert later.position == ours.position
