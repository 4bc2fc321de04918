"""Databases that are copied, backed up, put back and looked at by less than their owner: search goes with them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memory_store import MemoryStore, MemoryStoreError, Step, upkeep
from memory_store.durable.partitions import partition
from memory_store.durable.row_security import secure
from memory_store.transfer import copy_store
from tests.fault.search_truth import found, index_problems, left_behind, nothing_left, server_index_problems
from tests.fault.servers_support import truth_of
from tests.fault.support import Child, Parent, episode, integrity_problems, log_problems
from tests.fault.support import database as plain
from tests.fault.test_fault_full_disk import _squeeze, limited  # noqa: F401 - a fixture
from tests.integration.upkeep_support import url_of
from tests.migration.postgresql import Database
from tests.servers.databases import PostgresDatabases
from tests.unit.samples import make_embedding


async def fill(store: MemoryStore) -> None:
    """Put records of two namespaces; the last of them are not indexed yet."""
    for name in (store.name, "other"):
        space = store.namespace(name)
        await space.episodes.put_many([episode(f"e{n}", context=f"lantern n{n}") for n in range(40)])
        await space.steps.append("e1", [Step(id=f"s{n}", action="harbour") for n in range(30)])
        await space.embeddings.put(make_embedding("e1", id="v", content="granite"))


async def is_filled(store: MemoryStore) -> None:
    """Check that all of it is found."""
    for name in (store.name, "other"):
        space: Any = store.namespace(name)
        assert len(await found(space, "lantern")) == 40
        assert await found(space, "n39") == {"e39"}
        assert len(await found(space, "harbour")) == 30
        assert await found(space, "granite") == {"v"}


@pytest.fixture
def empty_server(postgres_server: PostgresDatabases) -> Iterator[str]:
    """The URL of an empty database without our tables."""
    name = f"copy_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


async def test_a_copy_is_searched(file_url: str, empty_server: str, tmp_path: Path) -> None:
    """From a file to a server and back to another file."""
    async with MemoryStore(file_url) as store:
        await fill(store)
        await is_filled(store)
        await store.episodes.put(episode("late", context="willow"))
    await copy_store(file_url, empty_server)
    async with MemoryStore(empty_server) as store:
        await is_filled(store)
        assert await found(store, "willow") == {"late"}
        await store.episodes.delete("late")
        await store.episodes.put_many([episode(f"new{n}", context="meadow") for n in range(30)])
        await nothing_left(store)
    async with truth_of(empty_server) as truth:
        assert await server_index_problems(truth.connection) == []
    back = tmp_path / "back.db"
    await copy_store(empty_server, url_of(back))
    async with MemoryStore(url_of(back)) as store:
        await is_filled(store)
        assert await found(store, "willow") == set()
        assert len(await found(store, "meadow")) == 30
    assert index_problems(back) == []
    assert left_behind(back) == []


async def test_a_backup_is_searched_and_a_running_store_forgets_what_it_knew(file_url: str, tmp_path: Path) -> None:
    """The backup is taken while some of it is still to be indexed."""
    path, backup = tmp_path / "agent.db", tmp_path / "backup.db"
    async with MemoryStore(file_url, staleness_s=0) as store, MemoryStore(file_url, staleness_s=0) as other:
        await fill(store)
        await upkeep.backup(store, backup)
        await is_filled(store)
        await store.episodes.update("e5", context="willow")
        await store.episodes.put_many([episode(f"e{n}", context="meadow") for n in range(100, 140)])
        await store.episodes.delete("e1")
        for one in (store, other):
            assert len(await found(one, "meadow")) == 40
            assert await found(one, "willow") == {"e5"}
            assert await found(one, "harbour") == set()
            assert len(await one.recall("willow")) == 1
        await upkeep.restore(backup, url_of(path))
        for one in (other, store):
            assert await found(one, "meadow willow") == set()
            assert len(await one.recall("willow")) == 0
            await is_filled(one)
        await other.episodes.put(episode("e5", context="copper"))
        assert await found(store, "copper") == {"e5"}
    async with MemoryStore(url_of(backup)) as store:
        await is_filled(store)
    assert index_problems(path) == []
    assert index_problems(backup) == []


async def test_an_older_copy_put_in_the_place_of_the_file_is_searched(file_url: str, tmp_path: Path) -> None:
    """Without the store's own restore, so that positions come again."""
    path, copy = tmp_path / "agent.db", tmp_path / "copy.db"
    async with MemoryStore(file_url, staleness_s=0) as store:
        await store.episodes.put(episode("e1", context="lantern"))
        with plain(path) as now, plain(copy) as older:
            now.backup(older)
        await store.episodes.update("e1", context="willow")
        await store.episodes.put(episode("e2", context="lantern"))
        assert await found(store, "lantern") == {"e2"}
        assert await found(store, "willow") == {"e1"}
        with plain(path) as now, plain(copy) as older:
            older.backup(now)
        assert await found(store, "lantern") == {"e1"}
        assert await found(store, "willow") == set()


async def test_a_repaired_file_is_searched(file_url: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    async with MemoryStore(file_url) as store:
        await fill(store)
        await nothing_left(store)
    with plain(path) as connection:
        connection.execute("UPDATE head SET position = position + 5")
        connection.execute("DELETE FROM documents WHERE id = 'e3'")
    assert (await upkeep.repair(file_url)).done
    async with MemoryStore(file_url) as store:
        await is_filled(store)
    assert index_problems(path) == []


@pytest.mark.parametrize("partitioned", [False, True])
async def test_a_role_of_one_namespace_searches_it(database: Database, partitioned: bool) -> None:
    role = f"agent_{uuid.uuid4().hex[:12]}"
    async with MemoryStore(database.url, namespace="mine") as store:
        await fill(store)
        await is_filled(store)
    if partitioned:
        await database.run(partition, 4)
    async with database.connect() as owner:
        await owner.execute(f"CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET memory_store.namespace = 'mine'")
    try:
        await database.run(secure, role)
        url = database.url.replace("postgres@", f"{role}@").replace("postgres:", f"{role}:")
        async with MemoryStore(url, namespace="mine", staleness_s=0) as agent:
            assert len(await found(agent, "lantern")) == 40
            await agent.episodes.put(episode("one", context="willow"))
            assert await found(agent, "willow") == {"one"}
            await agent.episodes.put_many([episode(f"many{n}", context="meadow") for n in range(50)])
            assert len(await found(agent, "meadow")) == 50
            await agent.episodes.delete("many3")
            assert len(await found(agent, "meadow")) == 49
            assert len(await agent.recall("meadow", domain="web", task_type="testing", explain=True)) == 10
            nearest = await agent.search("x", mode="vector", vector=[0.5, -1.25], model=make_embedding().model_name)
            assert {hit.id for hit in nearest} == {"v"}
            assert await found(agent.namespace("other"), "lantern") == set()
            with pytest.raises(MemoryStoreError):
                await agent.namespace("other").episodes.put(episode("theirs"))
        async with MemoryStore(database.url, namespace="mine") as store:
            assert len(await found(store, "meadow")) == 49
            assert len(await found(store.namespace("other"), "lantern")) == 40
        async with database.connect() as owner:
            assert await server_index_problems(owner) == []
    finally:
        async with database.connect() as owner:
            await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def _fill_the_disk(parent: Parent, limit: str, folder: str) -> list[str]:
    """Load until the disk is full, go on searching what was acknowledged, and again when there is room."""
    async with MemoryStore(f"sqlite:///{folder}/agent.db", cache_path="", timeout_s=5) as store:
        await store.episodes.put(episode("first", context="lantern"))
        give_back = _squeeze(limit, Path(folder))
        done: list[str] = []
        for number in range(500):
            records = [episode(f"b{number}-{n}", context=f"lantern b{number} " + "filler " * 200) for n in range(20)]
            try:
                await store.episodes.put_many(records)
            except MemoryStoreError:
                break
            done.append(f"b{number}")
        results = await store.search("lantern", mode="text")  # what cannot be brought in is missing, and it says so
        assert "first" in {hit.id for hit in results} or not results.complete
        give_back()
        for mark in done:
            assert len(await found(store, mark)) == 20
        assert await found(store, f"b{len(done)}") == set()
        await store.episodes.put(episode("last", context="harbour"))
        assert await found(store, "harbour") == {"last"}
        return done


def test_a_full_disk_harms_no_index(limited: tuple[str, Path]) -> None:  # noqa: F811
    limit, folder = limited
    with Child(_fill_the_disk, limit, str(folder)) as child:
        done = child.receive()
    assert len(done) > 1
    path = folder / "agent.db"
    assert left_behind(path) == []
    assert index_problems(path) == []
    assert integrity_problems(path) == []
    assert log_problems(path) == []
