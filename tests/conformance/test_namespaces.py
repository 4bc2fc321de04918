"""A namespace never sees another's records, through any verb or the cache."""

from __future__ import annotations

import pytest

from memory_store import ConflictError, Episode, MemoryStore, RecordNotFoundError
from memory_store.records import RECORDS
from tests.unit.samples import CHANGE, MAKE, make_episode

KINDS = list(RECORDS)
# Names that would be one if they were a path, a pattern, a prefix or a case-insensitive key.
NAMES = ["a", "A", "a/", "a/b", "a//b", "../a", ".", "a:b", "a_b", "a-b", "0", "1/", "0/a"]


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_seen_or_touched_from_outside(kind: str, store: MemoryStore) -> None:
    other = store.namespace("other")
    for namespace in (store, other):
        await namespace.episodes.put(make_episode(id="e"))
    theirs = await other.collection(kind).put(MAKE[kind]("e", id="x"))
    ours = store.collection(kind)
    table = RECORDS[kind].table
    for clear in (False, True):
        if clear:
            await store.cache.clear()
        assert await ours.get("x") is None
        assert await ours.get_many(["x"]) == [None]
        assert await ours.count(table.c.id == "x") == 0
        assert (await ours.list(table.c.id == "x")).items == []
        assert [record async for record in ours.stream(table.c.id == "x")] == []
        if RECORDS[kind].parent:
            assert await ours.of("e") == []  # type: ignore[attr-defined]
        with pytest.raises(RecordNotFoundError):
            await ours.update("x", **CHANGE[kind])
        assert await ours.delete("x") is False
        with pytest.raises(ConflictError):
            await ours.delete("x", expected_revision=1)
        assert await other.collection(kind).get("x") == theirs
    mine = await ours.put(MAKE[kind]("e", id="x", **CHANGE[kind]))
    assert mine.revision == 1
    assert await other.collection(kind).get("x") == theirs
    assert await ours.delete("x")
    assert await other.collection(kind).get("x") == theirs


async def test_a_part_cannot_belong_to_a_foreign_episode(store: MemoryStore) -> None:
    await store.namespace("other").episodes.put(make_episode(id="e"))
    for kind in KINDS:
        if RECORDS[kind].parent:
            with pytest.raises(RecordNotFoundError, match="does not exist in namespace 'test-agent'"):
                await store.collection(kind).put(MAKE[kind]("e"))


async def test_deleting_an_episode_leaves_the_parts_of_its_namesake(store: MemoryStore) -> None:
    other = store.namespace("other")
    for namespace in (store, other):
        await namespace.episodes.put(make_episode(id="e"))
        await namespace.steps.append("e", MAKE["step"](""))
    assert await store.episodes.delete("e")
    assert await store.steps.of("e") == []
    assert len(await other.steps.of("e")) == 1


async def test_names_are_told_apart_exactly(store: MemoryStore) -> None:
    made = {}
    for name in NAMES:
        made[name] = await store.namespace(name).episodes.put(make_episode(id="b/x", context={"in": name}))
    for clear in (False, True):
        if clear:
            await store.cache.clear()
        for name in NAMES:
            assert await store.namespace(name).episodes.get("b/x") == made[name]
            assert [e.context for e in (await store.namespace(name).episodes.list()).items] == [{"in": name}]
            assert await store.namespace(name).episodes.count(Episode.c.id == "b/x") == 1
    assert store.namespace("a") is store.namespace("a")
    assert store.namespace("a").name == "a"


async def test_a_stores_own_namespace_is_one_like_any_other(store: MemoryStore) -> None:
    stored = await store.episodes.put(make_episode(id="x"))
    assert await store.namespace("test-agent").episodes.get("x") == stored
    assert store.name == "test-agent"
