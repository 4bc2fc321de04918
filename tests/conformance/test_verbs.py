"""Every verb for every kind, the same on every backend."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from memory_store import (
    Collection,
    ConflictError,
    Embeddings,
    InvalidRecordError,
    MemoryStore,
    Parts,
    Patterns,
    RecordNotFoundError,
)
from memory_store.records import RECORDS
from tests.unit.samples import CHANGE, MAKE, make_embedding, make_episode, make_step, values_of

KINDS = list(RECORDS)
PART_KINDS = [kind for kind, spec in RECORDS.items() if spec.parent]


@pytest.fixture
async def episode_id(store: MemoryStore) -> str:
    """An episode for parts to belong to."""
    return (await store.episodes.put(make_episode())).id


async def from_the_database(store: MemoryStore, kind: str, id_: str) -> Any:
    """The record as a store without anything cached reads it."""
    await store.cache.clear()
    return await store.collection(kind).get(id_)


def test_every_kind_has_a_collection_of_the_right_sort() -> None:
    store = MemoryStore("sqlite:///:memory:")
    for kind in KINDS:
        sort = {"pattern": Patterns, "embedding": Embeddings}.get(kind, Parts if kind in PART_KINDS else Collection)
        assert type(store.collection(kind)) is sort


@pytest.mark.parametrize("kind", KINDS)
async def test_put_returns_what_is_stored(kind: str, store: MemoryStore, episode_id: str) -> None:
    given = MAKE[kind](episode_id)
    stored = await store.collection(kind).put(given)
    assert type(stored) is RECORDS[kind].record
    expected = values_of(given) | {"revision": 1, "updated_at": stored.updated_at}
    if kind == "step":
        expected["step_number"] = 1
    assert values_of(stored) == expected
    assert await store.collection(kind).get(stored.id) == stored
    assert await from_the_database(store, kind, stored.id) == stored


@pytest.mark.parametrize("kind", KINDS)
async def test_put_replaces_as_a_whole_and_counts_up(kind: str, store: MemoryStore, episode_id: str) -> None:
    collection = store.collection(kind)
    first = await collection.put(MAKE[kind](episode_id, id="x", **CHANGE[kind]))
    second = await collection.put(MAKE[kind](episode_id, id="x", created_at=first.created_at))
    third = await collection.put(replace(second, revision=77))
    assert [first.revision, second.revision, third.revision] == [1, 2, 3]
    [name] = CHANGE[kind]
    assert getattr(second, name) == getattr(MAKE[kind](), name), "a field that is not given again is not kept"
    assert first.updated_at <= second.updated_at <= third.updated_at
    assert await collection.get("x") == third
    assert await from_the_database(store, kind, "x") == third


@pytest.mark.parametrize("kind", KINDS)
async def test_get_of_nothing(kind: str, store: MemoryStore) -> None:
    assert await store.collection(kind).get("nothing") is None
    assert await store.collection(kind).get("") is None
    assert await store.collection(kind).get("' OR 1=1 --") is None
    for wrong in (None, 5, b"x"):
        with pytest.raises(TypeError, match="id must be a str"):
            await store.collection(kind).get(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
async def test_get_many_keeps_the_order_of_the_ids(kind: str, store: MemoryStore, episode_id: str) -> None:
    collection = store.collection(kind)
    stored = await collection.put_many([MAKE[kind](episode_id, id=f"x{number:03}") for number in range(300)])
    await store.cache.clear()
    await collection.get("x100")  # one of them from the cache
    asked = [f"x{number:03}" for number in range(299, -1, -3)] + ["nothing", "x005", "x005", "x100"]
    by_id = {record.id: record for record in stored}
    assert await collection.get_many(asked) == [by_id.get(id_) for id_ in asked]
    assert await collection.get_many(iter(asked[:2])) == [by_id[id_] for id_ in asked[:2]]
    assert await collection.get_many([]) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_put_many_is_one_commit_and_all_or_nothing(kind: str, store: MemoryStore, episode_id: str) -> None:
    collection = store.collection(kind)
    before = store.stats().position
    stored = await collection.put_many(MAKE[kind](episode_id, id=f"x{number}") for number in range(5))
    assert store.stats().position == before + 1
    assert [record.id for record in stored] == [f"x{number}" for number in range(5)]
    assert await collection.get_many([record.id for record in stored]) == stored
    again = await collection.put_many([MAKE[kind](episode_id, id="x1"), MAKE[kind](episode_id, id="y")])
    assert [record.revision for record in again] == [2, 1]
    assert await collection.put_many([]) == []
    position = store.stats().position
    large = replace(MAKE[kind](episode_id), id="z" * 257)
    for refused in ([MAKE[kind](episode_id, id="a"), large], [MAKE[kind](episode_id, id="a")] * 2):
        with pytest.raises(InvalidRecordError):
            await collection.put_many(refused)
    assert await from_the_database(store, kind, "a") is None
    assert store.stats().position == position


@pytest.mark.parametrize("kind", KINDS)
async def test_a_record_of_another_kind_is_a_type_error(kind: str, store: MemoryStore, episode_id: str) -> None:
    other = KINDS[KINDS.index(kind) - 1]
    for wrong in (MAKE[other](episode_id), {"id": "x"}, None):
        with pytest.raises(TypeError, match=f"expected {RECORDS[kind].record.__name__}, got "):
            await store.collection(kind).put(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await store.collection(kind).put_many([wrong])  # type: ignore[list-item]


@pytest.mark.parametrize("kind", KINDS)
async def test_update(kind: str, store: MemoryStore, episode_id: str) -> None:
    collection = store.collection(kind)
    first = await collection.put(MAKE[kind](episode_id, id="x"))
    second = await collection.update("x", expected_revision=1, **CHANGE[kind])
    assert values_of(second) == values_of(first) | CHANGE[kind] | {"revision": 2, "updated_at": second.updated_at}
    assert await collection.get("x") == second
    with pytest.raises(ConflictError) as conflict:
        await collection.update("x", expected_revision=1, **CHANGE[kind])
    assert (conflict.value.expected, conflict.value.actual, conflict.value.kind) == (1, 2, kind)
    assert (conflict.value.namespace, conflict.value.key) == ("test-agent", "x")
    third = await collection.update("x", **CHANGE[kind])
    assert third.revision == 3
    with pytest.raises(RecordNotFoundError):
        await collection.update("nothing", **CHANGE[kind])
    with pytest.raises(InvalidRecordError):
        await collection.update("x", created_at="yesterday")
    assert await from_the_database(store, kind, "x") == third


@pytest.mark.parametrize("kind", KINDS)
async def test_what_an_update_cannot_change(kind: str, store: MemoryStore, episode_id: str) -> None:
    await store.collection(kind).put(MAKE[kind](episode_id, id="x"))
    for name in ("id", "revision", "updated_at", "namespace", "goal", RECORDS[kind].parent or "id"):
        with pytest.raises(TypeError):
            await store.collection(kind).update("x", **{name: "y"})


@pytest.mark.parametrize("kind", KINDS)
async def test_delete(kind: str, store: MemoryStore, episode_id: str) -> None:
    collection = store.collection(kind)
    await collection.put(MAKE[kind](episode_id, id="x"))
    with pytest.raises(ConflictError):
        await collection.delete("x", expected_revision=9)
    assert await collection.get("x") is not None
    assert await collection.delete("x", expected_revision=1) is True
    assert await collection.get("x") is None
    assert await from_the_database(store, kind, "x") is None
    assert await collection.delete("x") is False
    with pytest.raises(ConflictError):
        await collection.delete("x", expected_revision=1)
    again = await collection.put(MAKE[kind](episode_id, id="x"))
    assert again.revision == 1
    assert await collection.get("x") == again


async def test_deleting_an_episode_takes_its_parts_and_the_cache_follows(store: MemoryStore) -> None:
    for id_ in ("gone", "kept"):
        await store.episodes.put(make_episode(id=id_))
        for kind in PART_KINDS:
            await store.collection(kind).put_many([MAKE[kind](id_, id=f"{id_}{number}") for number in range(2)])
            await store.collection(kind).of(id_)  # type: ignore[attr-defined]
    assert await store.episodes.delete("gone")
    for clear in (False, True):
        if clear:
            await store.cache.clear()
        for kind in PART_KINDS:
            parts: Parts[Any] = store.collection(kind)  # type: ignore[assignment]
            assert await parts.of("gone") == []
            assert await parts.get_many(["gone0", "gone1", "kept1"]) == [None, None, (await parts.of("kept"))[1]]
            assert len(await parts.of("kept")) == 2
            assert await parts.count() == 2
    await store.episodes.put(make_episode(id="gone"))
    for kind in PART_KINDS:
        assert await store.collection(kind).of("gone") == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", PART_KINDS)
async def test_append_and_of(kind: str, store: MemoryStore, episode_id: str) -> None:
    parts: Parts[Any] = store.collection(kind)  # type: ignore[assignment]
    bare = {"step": ""}.get(kind, episode_id)
    [first] = await parts.append(episode_id, MAKE[kind](bare))
    second, third = await parts.append(episode_id, [MAKE[kind](episode_id), MAKE[kind](episode_id)])
    assert first.episode_id == episode_id
    assert await parts.of(episode_id) == [first, second, third]
    assert await parts.append(episode_id, []) == []
    await store.cache.clear()
    assert await parts.of(episode_id) == [first, second, third]
    assert await parts.of("nothing") == []
    changed = await parts.update(second.id, **CHANGE[kind])
    assert await parts.of(episode_id) == [first, changed, third]
    await parts.delete(first.id)
    assert await parts.of(episode_id) == [changed, third]
    with pytest.raises(InvalidRecordError, match=r"episode_id is .*, appended to"):
        await parts.append("elsewhere", MAKE[kind](episode_id))
    with pytest.raises(RecordNotFoundError, match="which does not exist in namespace 'test-agent'"):
        await parts.append("nothing", MAKE[kind]("nothing"))
    with pytest.raises(TypeError):
        await parts.append(episode_id, make_episode())


@pytest.mark.parametrize("kind", PART_KINDS)
async def test_a_part_that_moves_leaves_one_episode_and_enters_the_other(kind: str, store: MemoryStore) -> None:
    parts: Parts[Any] = store.collection(kind)  # type: ignore[assignment]
    await store.episodes.put_many([make_episode(id="a"), make_episode(id="b")])
    await parts.put_many([MAKE[kind]("a", id="x"), MAKE[kind]("b", id="y")])
    assert [len(await parts.of(id_)) for id_ in "ab"] == [1, 1]
    moved = await parts.put(MAKE[kind]("b", id="x"))
    assert await parts.of("a") == []
    assert moved in await parts.of("b")
    assert len(await parts.of("b")) == 2


async def test_what_is_done_to_a_returned_record_never_reaches_the_cache(store: MemoryStore) -> None:
    context = {"goal": "x", "list": [1]}
    stored = await store.episodes.put(make_episode(id="x", context=context))
    embedding = await store.embeddings.put(make_embedding("x", id="e"))
    for spoil in (context, stored.context, (await store.episodes.get("x")).context):  # type: ignore[union-attr]
        spoil["goal"] = "spoiled"
        spoil["list"].append("spoiled")
        read = await store.episodes.get("x")
        assert read is not None
        assert read.context == {"goal": "x", "list": [1]}
    (await store.embeddings.of("x")).clear()
    assert await store.embeddings.of("x") == [embedding]
    assert isinstance(embedding.embedding, bytes)


async def test_records_read_together_share_nothing(store: MemoryStore) -> None:
    await store.episodes.put(make_episode(id="x", context={"n": 1}))
    await store.cache.clear()
    first, second = await asyncio.gather(store.episodes.get("x"), store.episodes.get("x"))  # one read for both
    assert first is not None
    assert second is not None
    first.context["n"] = 2
    assert second.context == {"n": 1}


async def test_writers_that_put_one_new_record_at_once_all_succeed(store: MemoryStore) -> None:
    """They wait for one another, so that several are one batch, whose second put of a record is no insert."""
    for round_ in range(5):
        written = await asyncio.gather(
            *(store.episodes.put(make_episode(id=f"x{round_}", reward_score=float(n))) for n in range(6))
        )
        assert sorted(one.revision for one in written) == [1, 2, 3, 4, 5, 6]
        last = max(written, key=lambda one: one.revision)
        assert await store.episodes.get(f"x{round_}", freshness="linearizable") == last


async def test_counters_tell_what_happened(store: MemoryStore) -> None:
    start = store.stats()
    await store.episodes.put(make_episode(id="x"))
    await store.episodes.get("x")
    await store.episodes.get("nothing")
    await store.episodes.get("nothing")  # absence is cached too
    await store.steps.append("x", make_step(""))
    await store.steps.of("x")
    await store.episodes.delete("x")
    stats = store.stats()
    episodes, steps = stats.cache["episode"], stats.cache["step"]
    assert (episodes.hits, episodes.misses, episodes.fills) == (2, 1, 1)
    assert (steps.hits, steps.misses, steps.invalidations) == (1, 0, 1)
    assert (stats.position - start.position, stats.writes - start.writes) == (3, 3)
    assert stats.entries == 2
    assert 0 < stats.used_bytes <= stats.max_bytes
    assert start.cache["episode"].hits == 0, "stats are a copy"
    assert set(stats.cache) == {*RECORDS, "query_result"}
