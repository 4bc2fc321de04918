"""Rows that programs change with plain SQL while stores are open: search finds what is there then, and nothing else."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memory_store import Episode, MemoryStore, Pattern, Step
from memory_store.records import RECORDS
from memory_store.text.documents import SEARCHED, document_terms
from memory_store.text.terms import terms_of
from tests.fault.search_truth import found, is_whole
from tests.fault.servers_support import truth_of
from tests.fault.support import database
from tests.unit.samples import MAKE, make_episode

PLACES = pytest.mark.parametrize("place", ["file_url", "server_url"], ids=["file", "server"])
WORDS = ["lantern", "harbour", "meadow", "granite", "willow"]


@pytest.fixture
def url(place: str, request: pytest.FixtureRequest) -> str:
    """A database that plain SQL can reach."""
    return str(request.getfixturevalue(place))


@pytest.fixture
async def store(url: str) -> AsyncIterator[MemoryStore]:
    """A store with a record of each kind, and more of them."""
    async with MemoryStore(url, staleness_s=0) as store:
        await store.episodes.put_many([make_episode(id=f"e{n}", context=f"lantern n{n}") for n in range(30)])
        await store.steps.append("e1", [Step(id=f"s{n}", action=f"harbour n{n}") for n in range(5)])
        await store.patterns.put(Pattern(id="p", pattern_type="t", pattern_data=["meadow"]))
        await store.embeddings.put(MAKE["embedding"]("e1", id="v", content="granite"))
        yield store


async def run(url: str, *statements: str) -> None:
    """Run statements in one transaction, as another program does."""
    if url.startswith("sqlite"):
        with database(Path(url.removeprefix("sqlite:///"))) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN")
            for statement in statements:
                connection.execute(statement)
            connection.execute("COMMIT")
        return
    async with truth_of(url) as truth, truth.connection.transaction():
        for statement in statements:
            await truth.connection.execute(statement)


async def rows_of(url: str, kind: str) -> list[Sequence[Any]]:
    """Return a kind's rows, JSON as text, as the plain driver reads them."""
    spec = RECORDS[kind]
    if url.startswith("sqlite"):
        with database(Path(url.removeprefix("sqlite:///"))) as connection:
            sql = f"SELECT {', '.join(spec.columns)} FROM {spec.table.name} WHERE namespace = 'default'"
            return connection.execute(sql).fetchall()
    async with truth_of(url) as truth:
        sql = f"SELECT {', '.join(spec.columns)} FROM {spec.table.name} WHERE namespace = 'default'"
        return [tuple(row) for row in await truth.connection.fetch(sql)]


async def agrees(store: MemoryStore, url: str, words: Sequence[str] = WORDS) -> None:
    """Check that each word finds the records that hold it now, twice: the second answer may be remembered."""
    held: dict[str, set[str]] = {word: set() for word in words}
    for kind in SEARCHED:
        for row in await rows_of(url, kind):
            terms = document_terms(kind, row)
            for word in words:
                if terms_of(word)[0] in terms:
                    held[word].add(row[0])
    for _ in range(2):
        for word in words:
            assert await found(store, word) == held[word], word


@PLACES
async def test_rows_changed_moved_and_deleted(store: MemoryStore, url: str) -> None:
    other = store.namespace("other")
    await agrees(store, url)
    steps = [
        "UPDATE episodes SET context = '\"willow\"' WHERE id IN ('e2', 'e3')",
        "UPDATE steps SET action = 'meadow' WHERE id = 's2'",
        "UPDATE steps SET episode_id = 'e4' WHERE id = 's3'",
        "UPDATE episodes SET id = 'renamed' WHERE id = 'e5'",
        "UPDATE episodes SET namespace = 'other' WHERE id = 'e6'",
        "DELETE FROM episodes WHERE id = 'e7'",
        "DELETE FROM embeddings",
        "DELETE FROM episodes WHERE id = 'e1'",
        "UPDATE episodes SET created_at = created_at - 1000000 WHERE id = 'e8'",
        "UPDATE patterns SET pattern_data = '[\"willow\"]'",
    ]
    for statement in steps:
        await run(url, statement)
        await agrees(store, url)
    assert await found(other, "lantern") == {"e6"}
    assert "e6" not in await found(store, "lantern")
    assert await found(store, "harbour") == {"s3"}, "the only step that was not of e1"
    assert await found(store, "harbour", where=Episode.c.id == "e4") == {"s3"}
    await is_whole(url)


@PLACES
async def test_an_insert_and_a_delete_in_one_transaction(store: MemoryStore, url: str) -> None:
    columns = ", ".join(["namespace", *RECORDS["episode"].columns])
    chosen = columns.replace("namespace, id", "namespace, 'copy' || id")
    copied = f"INSERT INTO episodes ({columns}) SELECT {chosen} FROM episodes WHERE id LIKE 'e1%'"
    await run(url, copied, "DELETE FROM episodes WHERE id = 'copye10'", "UPDATE steps SET action = 'willow'")
    await agrees(store, url)
    assert "copye11" in await found(store, "lantern")
    await run(url, "DELETE FROM episodes")
    await agrees(store, url)
    assert await found(store, "lantern harbour meadow granite willow") == {"p"}
    await is_whole(url)


@pytest.mark.parametrize("place", ["server_url"])
@pytest.mark.parametrize("tables", ["episodes CASCADE", "steps", "patterns, embeddings"])
async def test_truncate(store: MemoryStore, url: str, tables: str) -> None:
    await store.namespace("other").episodes.put(make_episode(id="o", context="lantern"))
    await agrees(store, url)
    await run(url, f"TRUNCATE {tables}")
    await agrees(store, url)
    assert await found(store.namespace("other"), "lantern") == (set() if "episodes" in tables else {"o"})
    await store.episodes.put(make_episode(id="e1", context="willow"))
    await agrees(store, url)
    await is_whole(url)


@pytest.mark.parametrize("place", ["file_url"])
async def test_vacuum_and_replace(store: MemoryStore, url: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    await store.episodes.delete("e2")
    await agrees(store, url)
    for statement in ("VACUUM", "ANALYZE", "REINDEX", "PRAGMA optimize"):
        with database(path) as connection:
            connection.execute(statement).fetchall()
        await agrees(store, url)
        await store.episodes.put(make_episode(id="e3", context=f"willow {len(statement)}"))
        await agrees(store, url)
    columns = ", ".join(["namespace", *RECORDS["episode"].columns])
    chosen = columns.replace("context", "'\"meadow\"'")
    for pragma in ("PRAGMA recursive_triggers = OFF", "PRAGMA recursive_triggers = ON"):
        with database(path) as connection:
            connection.execute(pragma)
            connection.execute(f"REPLACE INTO episodes ({columns}) SELECT {chosen} FROM episodes WHERE id = 'e4'")
        await agrees(store, url)
        assert "e4" in await found(store, "meadow")
        await store.episodes.put(make_episode(id="e4", context="lantern"))
    await is_whole(url)


@PLACES
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
async def test_stores_and_plain_sql_take_turns(seed: int, store: MemoryStore, url: str) -> None:
    seeded = random.Random(seed)
    async with MemoryStore(url, staleness_s=0) as second:
        for number in range(30):
            id_, word = f"e{seeded.randrange(12)}", seeded.choice(WORDS)
            way = seeded.randrange(8)
            writer = seeded.choice([store, second])
            if way == 0:
                await writer.episodes.put(make_episode(id=id_, context=word))
            elif way == 1:
                await writer.episodes.delete(id_)
            elif way == 2:
                await writer.episodes.put_many([make_episode(id=f"e{n}", context=word) for n in range(20)])
            elif way == 3 and await writer.episodes.get(id_, freshness="linearizable"):
                await writer.steps.append(id_, [Step(id=f"{number}-{n}", action=word) for n in range(3)])
            elif way == 4:
                await run(url, f"UPDATE episodes SET context = '\"{word}\"' WHERE id = '{id_}'")
            elif way == 5:
                await run(url, f"DELETE FROM episodes WHERE id = '{id_}'", f"UPDATE steps SET action = '{word}'")
            elif way == 6:
                await run(url, f"DELETE FROM steps WHERE id LIKE '{seeded.randrange(30)}-%'")
            else:
                await writer.reindex()
            await agrees(seeded.choice([store, second]), url)
    await is_whole(url)
