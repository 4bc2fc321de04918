"""A full-text index that somebody has damaged: making it anew mends it, and records are never harmed by it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from memory_store import IndexDamagedError, MemoryStore, Step
from tests.fault.search_truth import found, index_problems, left_behind
from tests.fault.support import database, episode, integrity_problems, log_problems
from tests.integration.cli_support import memory_store

DAMAGE = {
    "no documents": "DELETE FROM documents",
    "some documents gone": "DELETE FROM documents WHERE id LIKE 'e1%'",
    "an empty index": "INSERT INTO documents_text (documents_text) VALUES ('delete-all')",
    "other terms": "UPDATE documents SET terms = 'x y z' WHERE id LIKE 'e2%'",
    "other keys": "UPDATE documents SET key = key + 1000",
    "parts of the index gone": "DELETE FROM documents_text_data WHERE id > 10",
    "parts of the index spoilt": "UPDATE documents_text_data SET block = x'00112233' WHERE id > 10",
    "the index without its sums": "UPDATE documents_text_data SET block = x'00' WHERE id = 1",
    "the index without its structure": "DELETE FROM documents_text_data WHERE id = 10",
    "the index of another structure": "UPDATE documents_text_data SET block = zeroblob(3) WHERE id = 10",
}
# These are noticed by a search that reads them.
BLIND = [name for name in DAMAGE if name.startswith(("parts", "the index without its structure"))]
# These are noticed by every write that takes a document's old terms out. Lost sums are so only until as many documents
# have been put in again as are taken out.
REFUSING = [name for name in DAMAGE if name.startswith("the index") and "sums" not in name]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_making_the_index_anew_mends_it(damage: str, file_url: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    async with MemoryStore(file_url) as store:
        await store.episodes.put_many([episode(f"e{n}", context=f"lantern n{n}") for n in range(50)])
        await store.namespace("other").episodes.put(episode("o", context="lantern"))
        assert len(await found(store, "lantern")) == 50
        with database(path) as connection:
            connection.execute(damage)
        await store.episodes.put(episode("new", context="harbour"))
        assert await store.reindex() == 52
        assert len(await found(store, "lantern")) == 50
        assert await found(store, "harbour") == {"new"}
        assert await found(store.namespace("other"), "lantern") == {"o"}
        await store.episodes.update("e1", context="harbour")
        await store.episodes.delete("e2")
        assert await found(store, "harbour") == {"new", "e1"}
    assert left_behind(path) == []
    assert index_problems(path) == []
    assert integrity_problems(path) == []
    assert log_problems(path) == []


async def _write_all(store: MemoryStore) -> None:
    """Write in every way that there is: alone, many at once, once for a key, in a transaction."""
    await store.episodes.update("e1", context="harbour")
    await store.episodes.delete("e2")
    once, *_ = await asyncio.gather(
        store.episodes.put(episode("e3"), idempotency_key="k"),
        *(store.episodes.put(episode(f"new{n}", context="harbour")) for n in range(4)),
        store.steps.append("e4", Step(id="s1", action="harbour")),
    )
    assert once.id == "e3"
    assert (await store.episodes.put(episode("e5"), idempotency_key="k")).id == "e3"
    async with store.transaction() as tx:
        await tx.episodes.update("e6", context="harbour")
        await tx.episodes.delete("e7")
        await tx.steps.append("e6", Step(id="s2", action="harbour"))


@pytest.mark.parametrize("again", [False, True], ids=["while it is open", "when it is opened again"])
@pytest.mark.parametrize("name", REFUSING)
async def test_records_are_written_all_the_same(name: str, again: bool, file_url: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    async with MemoryStore(file_url) as store:
        await store.episodes.put_many([episode(f"e{n}", context=f"lantern n{n}") for n in range(50)])
        assert len(await found(store, "lantern")) == 50
        with database(path) as connection:
            connection.execute(DAMAGE[name])
        if not again:
            await _write_all(store)
    async with MemoryStore(file_url) as store:
        if again:
            await _write_all(store)
        assert {entry[2] for entry in left_behind(path)} == {"default"}
        with pytest.raises(IndexDamagedError, match="memory-store reindex"):
            await found(store, "harbour")
        assert await store.reindex() == 48 + 4 + 2
        assert await found(store, "harbour") == {"e1", "e6", "s1", "s2", *(f"new{n}" for n in range(4))}
        assert len(await found(store, "lantern")) == 45
    assert left_behind(path) == []
    assert index_problems(path) == []
    assert integrity_problems(path) == []
    assert log_problems(path) == []


@pytest.mark.parametrize("name", BLIND)
async def test_a_search_says_what_to_do(name: str, file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put_many([episode(f"e{n}", context=f"lantern n{n}") for n in range(50)])
        assert len(await found(store, "lantern")) == 50
        with database(tmp_path / "agent.db") as connection:
            connection.execute(DAMAGE[name])
    async with MemoryStore(file_url) as store:
        for syntax in ("plain", "expert"):
            with pytest.raises(IndexDamagedError, match="memory-store reindex"):
                await store.search("lantern", mode="text", syntax=syntax)
        assert (await store.episodes.get("e1")).context == "lantern n1"
    done = memory_store(tmp_path, "reindex", "--url", file_url)
    assert done.code == 0, done
    async with MemoryStore(file_url) as store:
        assert len(await found(store, "lantern")) == 50
    assert index_problems(tmp_path / "agent.db") == []


async def test_what_cannot_be_indexed_keeps_nothing_else_from_being_found(file_url: str, tmp_path: Path) -> None:
    """As on a full disk, or on a file that has become read-only."""
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("first", context="lantern"))
        with database(tmp_path / "agent.db") as connection:
            connection.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON documents WHEN NEW.id = 'e17' "
                "BEGIN SELECT RAISE(ABORT, 'no room'); END"
            )
        await store.episodes.put_many([episode(f"e{number}", context="lantern") for number in range(20)])
        found = await store.search("lantern", mode="text", limit=100)
        assert ([hit.id for hit in found], found.complete) == (["first"], False)
        with database(tmp_path / "agent.db") as connection:
            connection.execute("DROP TRIGGER refuse")
        found = await store.search("lantern", mode="text", limit=100)
        assert (len(found), found.complete) == (21, True)


async def test_work_on_the_index_fails_alone_in_its_batch(file_url: str, tmp_path: Path) -> None:
    async with MemoryStore(file_url) as store:
        await store.episodes.put(episode("e1", context="lantern"))
        with database(tmp_path / "agent.db") as connection:
            connection.execute(DAMAGE["the index without its structure"])
        await store.episodes.update("e1", context="harbour")
        assert store._shards is not None
        before = left_behind(tmp_path / "agent.db")
        first, indexed, last = await asyncio.gather(
            store.episodes.put(episode("e2", context="harbour")),  # begins at once: the others are the next batch
            store._shards[0].indexer.bring_in(None),
            store.episodes.update("e1", context="harbour lights"),
            return_exceptions=True,
        )
        assert (first.id, last.revision) == ("e2", 3)
        assert isinstance(indexed, IndexDamagedError)
        assert "memory-store reindex" in str(indexed)
        assert set(before) <= set(left_behind(tmp_path / "agent.db")), "what could not be brought in is still left"
        await store.reindex()
        assert await found(store, "harbour") == {"e1", "e2"}
        assert await found(store, "lights") == {"e1"}
    assert index_problems(tmp_path / "agent.db") == []
