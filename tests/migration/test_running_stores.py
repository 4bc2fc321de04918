"""The schema is changed under stores that are open: their caches are dropped, writes stop with a clear error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from memory_store import MemoryStore, SchemaMismatchError
from memory_store.durable import schema
from memory_store.durable.engine import Target
from memory_store.durable.log import begin_epoch
from tests.fault.support import database, integrity_problems
from tests.migration.conftest import NEXT, OLD, query
from tests.unit.samples import make_episode, make_pattern, make_step, values_of

NEWER = "9999"
Extended = Callable[..., Path]


def change_schema(path: str, revision: str) -> None:
    """Do what a migration of another version of the library does, as `migrations/env.py` does it."""
    with database(Path(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        begin_epoch(connection.execute, "upgrade")
        connection.execute("COMMIT")


@pytest.fixture
async def store(path: str) -> AsyncIterator[MemoryStore]:
    """An open store with an episode, a step and a pattern in its cache; it looks only when asked to."""
    async with MemoryStore(f"sqlite:///{path}", staleness_s=3600, cache_path="") as store:
        await store.episodes.put_many([make_episode(id="e1"), make_episode(id="e2")])
        await store.steps.append("e1", make_step("e1", id="s"))
        await store.patterns.put(make_pattern(id="p"))
        await read_all(store)
        yield store


async def read_all(store: MemoryStore, **options: Any) -> list[Any]:
    """Return what the store answers."""
    found: list[Any] = [
        *await store.episodes.get_many(["e1", "e2", "nobody"], **options),
        *await store.steps.of("e1", **options),
        await store.patterns.get("p", **options),
        await store.steps.get("s"),
        *(await store.episodes.list()).items,
    ]
    return [await store.episodes.count(), *(record and values_of(record) for record in found)]


async def in_a_transaction(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        await tx.episodes.put(make_episode())


async def reading_transaction(store: MemoryStore) -> None:
    async with store.transaction() as tx:
        await tx.episodes.get("e1")


WRITES: dict[str, Callable[[MemoryStore], Awaitable[Any]]] = {
    "put": lambda s: s.episodes.put(make_episode()),
    "keyed put": lambda s: s.episodes.put(make_episode(), idempotency_key="k"),
    "put_many": lambda s: s.episodes.put_many([make_episode(), make_episode()]),
    "update": lambda s: s.episodes.update("e1", status="failed"),
    "delete": lambda s: s.episodes.delete("e1"),
    "append": lambda s: s.steps.append("e1", make_step("e1")),
    "transaction": in_a_transaction,
    "transaction that reads": reading_transaction,
    "resolve": lambda s: s.resolve("a.1.b.0"),
}


async def test_running_caches_are_dropped_at_the_next_look(store: MemoryStore, path: str) -> None:
    """Their rows are as they were before the migration, which may have changed every one of them."""
    with database(Path(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE head SET writing = 1")  # a migration logs nothing but its epoch
        connection.execute("UPDATE episodes SET domain = 'migrated'")
        connection.execute("UPDATE head SET writing = 0")
        begin_epoch(connection.execute, "upgrade")
        connection.execute("COMMIT")
    found = await store.episodes.get("e1")
    assert found is not None
    assert found.domain == "web", "within the bound it has not looked"
    [first, second] = await store.episodes.get_many(["e1", "e2"], freshness="linearizable")
    assert first is not None
    assert second is not None
    assert (first.domain, second.domain) == ("migrated", "migrated")
    assert (await store.episodes.put(make_episode())).revision == 1, "the schema is still this library's"


@pytest.mark.parametrize("looks", [True, False], ids=["after a look", "before any look"])
@pytest.mark.parametrize("name", WRITES)
async def test_a_library_that_is_too_old_writes_nothing(name: str, looks: bool, store: MemoryStore, path: str) -> None:
    change_schema(path, NEWER)
    before = query(path, "SELECT position, epoch, writing FROM head")
    rows = query(path, "SELECT * FROM episodes"), query(path, "SELECT * FROM steps")
    if looks:
        await store.episodes.get("e1", freshness="linearizable")
    for _ in range(3):
        with pytest.raises(SchemaMismatchError, match="no longer write") as caught:
            await WRITES[name](store)
        assert (caught.value.found, caught.value.expected) == (NEWER, OLD)
        assert NEWER in str(caught.value)
        assert not caught.value.retryable
    assert query(path, "SELECT position, epoch, writing FROM head") == before
    assert (query(path, "SELECT * FROM episodes"), query(path, "SELECT * FROM steps")) == rows


async def test_reads_go_on(store: MemoryStore, path: str) -> None:
    expected = await read_all(store)
    change_schema(path, NEWER)
    with pytest.raises(SchemaMismatchError):
        await WRITES["put"](store)
    assert await read_all(store) == expected
    assert await read_all(store, freshness="linearizable") == expected
    await store.cache.clear()
    assert await read_all(store) == expected
    assert await store.steps.of("e1") != []


async def test_all_writers_of_a_batch_are_told(store: MemoryStore, path: str) -> None:
    change_schema(path, NEWER)
    puts = (store.episodes.put(make_episode()) for _ in range(32))
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {SchemaMismatchError}


async def test_a_transaction_that_is_open_holds_the_change_up(store: MemoryStore, path: str) -> None:
    async with store.transaction() as tx:
        changing = asyncio.create_task(asyncio.to_thread(change_schema, path, NEWER))
        await tx.episodes.put(make_episode(id="in time"))
        await asyncio.sleep(0.05)
        assert not changing.done()
    await changing
    assert await store.episodes.get("in time", freshness="linearizable") is not None
    with pytest.raises(SchemaMismatchError):
        await store.episodes.put(make_episode())


async def test_taken_back_the_writes_go_on(store: MemoryStore, path: str) -> None:
    change_schema(path, NEWER)
    with pytest.raises(SchemaMismatchError):
        await store.episodes.put(make_episode(id="new"))
    change_schema(path, OLD)
    for name, write in WRITES.items():
        if name not in ("resolve", "delete"):
            await write(store)
    assert (await store.episodes.put(make_episode(id="new"))).revision == 1
    assert await store.episodes.get("new") is not None
    found = await store.episodes.get("e1")
    assert found is not None
    assert found.status == "failed"


async def test_a_store_that_was_too_old_closes_and_its_saved_cache_is_not_used(path: str) -> None:
    url = f"sqlite:///{path}"
    async with MemoryStore(url) as store:
        await store.episodes.put(make_episode(id="e1"))
        change_schema(path, NEWER)
        await store.episodes.get("e1", freshness="linearizable")
        with pytest.raises(SchemaMismatchError):
            await store.episodes.put(make_episode())
    with pytest.raises(SchemaMismatchError):
        await MemoryStore(url).open()
    with database(Path(path)) as connection:
        connection.execute("UPDATE head SET writing = 1")
        connection.execute("UPDATE episodes SET domain = 'migrated'")
        connection.execute("UPDATE head SET writing = 0")
    change_schema(path, OLD)
    async with MemoryStore(url) as store:
        await store.cache.wait()
        assert "upgraded" in (await store.cache.status()).reason
        found = await store.episodes.get("e1")
        assert found is not None
        assert found.domain == "migrated"


async def test_a_real_migration_and_its_way_back(store: MemoryStore, path: str, extended: Extended) -> None:
    """With a column more and without it again, by Alembic; this process stays the old library meanwhile."""
    from alembic import command

    extended()
    target = Target(path, False, {})
    await asyncio.to_thread(command.upgrade, schema._config(target), NEXT)
    with pytest.MonkeyPatch.context() as old:
        old.setattr(schema, "HEAD_REVISION", OLD)
        expected = await read_all(store)
        assert await read_all(store, freshness="linearizable") == expected
        with pytest.raises(SchemaMismatchError) as caught:
            await store.episodes.put(make_episode())
        assert caught.value.found == NEXT
        await asyncio.to_thread(command.downgrade, schema._config(target), OLD)
        assert await read_all(store, freshness="linearizable") == expected
        assert (await store.episodes.update("e1", status="failed")).revision == 2
    assert query(path, "PRAGMA foreign_key_check") == []
    assert integrity_problems(Path(path)) == []


@pytest.mark.parametrize("name", ["put", "put_many", "update", "transaction"])
async def test_taken_back_to_before_this_library(name: str, store: MemoryStore, path: str) -> None:
    """The columns that a write needs are gone then: the error names the schema, not the missing column."""
    from alembic import command

    target = Target(path, False, {})
    await asyncio.to_thread(command.downgrade, schema._config(target), "0001")
    with pytest.raises(SchemaMismatchError) as caught:
        await WRITES[name](store)
    assert (caught.value.found, caught.value.expected) == ("0001", OLD)
    assert await store.episodes.get("e1", freshness="linearizable") is not None
    await asyncio.to_thread(command.upgrade, schema._config(target), OLD)
    await WRITES[name](store)


async def test_feeds_tell_of_it(store: MemoryStore, path: str) -> None:
    """Whoever derives something from records learns that any of them may look different now."""
    feed = store.follow_all()
    change_schema(path, NEWER)
    await store.episodes.get("e1", freshness="linearizable")
    async with asyncio.timeout(20):
        change = await anext(feed)
    assert (change.kind, change.operation, change.key) == ("store", "upgrade", None)
