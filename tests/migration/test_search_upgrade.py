"""A database from before the full-text index: opening it brings in what is there, and so does going back and forth."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg

from memory_store import Episode, MemoryStore
from memory_store.durable.partitions import partition
from memory_store.durable.schema import HEAD_REVISION
from tests.fault.search_truth import found, index_problems, left_behind, nothing_left, server_index_problems
from tests.fault.support import integrity_problems, log_problems
from tests.migration.conftest import revision_of
from tests.migration.postgresql import Database, every_kind
from tests.servers.databases import PostgresDatabases
from tests.unit.samples import make_episode, make_step

EPISODES = 3000
"""More than a search brings in at once."""


def insert_old(path: str) -> None:
    """Put records into a file of the older revision with plain SQL."""
    columns = "namespace, id, revision, created_at, updated_at, task_type, domain, context, status, metadata"
    steps = "namespace, id, revision, created_at, updated_at, episode_id, step_number, action"
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            f"INSERT INTO episodes ({columns}) VALUES (?, ?, 1, ?, 0, 'testing', 'web', ?, 'active', '{{}}')",
            [
                (name, f"e{n}", n, f'"lantern n{n}"')
                for name, count in (("default", EPISODES), ("other", 10))
                for n in range(count)
            ],
        )
        connection.execute(f"INSERT INTO steps ({steps}) VALUES ('default', 's', 1, 0, 0, 'e1', 1, 'harbour')")
        connection.commit()


async def test_opening_an_older_file_makes_all_of_it_found(path: str, alembic: Callable[..., Any]) -> None:
    alembic("upgrade", "0002")
    insert_old(path)
    async with MemoryStore(f"sqlite:///{path}") as store:
        recalled = await store.recall("lantern", domain="web", task_type="testing", levels=["domain", "task_type"])
        assert len(recalled) == 10
        await store.episodes.put(make_episode(id="new", context="lantern"))
        first = await store.search("lantern", mode="text")
        assert len(first) == 10
        await nothing_left(store)
        assert await found(store, "n2999") == {"e2999"}
        assert await found(store, "harbour") == {"s"}
        assert await found(store, "new lantern", where=Episode.c.id == "new") == {"new"}
        assert len(await found(store.namespace("other"), "lantern")) == 10
    assert revision_of(path) == HEAD_REVISION
    assert index_problems(Path(path)) == []
    assert left_behind(Path(path)) == []


async def test_a_file_that_goes_back_and_forth_is_whole(path: str, alembic: Callable[..., Any]) -> None:
    async with MemoryStore(f"sqlite:///{path}") as store:
        await store.episodes.put_many([make_episode(id=f"e{n}", context="lantern") for n in range(100)])
        await store.steps.append("e1", make_step("", id="s", action="harbour"))
        await nothing_left(store)
    alembic("downgrade", "0002")
    with closing(sqlite3.connect(path)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        connection.execute("UPDATE episodes SET context = '\"willow\"' WHERE id = 'e7'")
        connection.execute("DELETE FROM episodes WHERE id = 'e8'")
        connection.commit()
    assert not [name for name in names if "documents" in name or "backlog" in name]
    assert log_problems(Path(path)) == []
    alembic("upgrade", "head")
    async with MemoryStore(f"sqlite:///{path}") as store:
        assert len(await found(store, "lantern")) == 98
        assert await found(store, "willow") == {"e7"}
        assert await found(store, "harbour") == {"s"}
    assert index_problems(Path(path)) == []
    assert integrity_problems(Path(path)) == []


async def test_an_older_server_is_found_and_goes_back_and_forth(
    postgres_server: PostgresDatabases, postgres_url: str
) -> None:
    database = Database(postgres_url, postgres_server.dsn(postgres_url.rsplit("/", 1)[-1].split("?")[0]))
    await database.alembic("upgrade", "0002")
    async with database.connect() as connection:
        await insert_on_server(connection, "default", 500)
        await insert_on_server(connection, "other", 10)
        await every_kind(connection, "third")
    for _ in range(2):
        async with MemoryStore(postgres_url) as store:
            assert len(await found(store, "lantern")) == 500
            assert await found(store, "n499") == {"e499"}
            assert len(await found(store.namespace("other"), "lantern")) == 10
            assert await found(store.namespace("third"), "pytest optimization text") == {"x"}
        async with database.connect() as connection:
            assert await connection.fetch("SELECT * FROM backlog") == []
            assert await server_index_problems(connection) == []
        await database.alembic("downgrade", "0002")
    await database.alembic("upgrade", "head")


async def test_a_partitioned_server_is_searched(database: Database) -> None:
    await database.run(partition, 4)
    async with MemoryStore(database.url) as store:
        for name in ("a", "b", "c"):
            space = store.namespace(name)
            await space.episodes.put_many([make_episode(id=f"e{n}", context=f"lantern {name}x") for n in range(60)])
            await space.episodes.put(make_episode(id="one", context="lantern"))
            assert len(await found(space, "lantern")) == 61
            assert len(await found(space, "ax")) == (60 if name == "a" else 0)
            await space.episodes.delete("e1")
            assert len(await found(space, "lantern", where=Episode.c.domain == "web")) == 60
            assert len(await space.recall("lantern", domain="web", task_type="debugging")) == 10
        assert await store.reindex() == 180
    async with database.connect() as connection:
        assert await server_index_problems(connection) == []


async def insert_on_server(connection: asyncpg.Connection[Any], namespace: str, count: int) -> None:
    """Put episodes with plain SQL."""
    await connection.executemany(
        "INSERT INTO episodes (namespace, id, revision, created_at, updated_at, task_type, domain, context, status, "
        "metadata) VALUES ($1, $2, 1, 1, 1, 'testing', 'web', $3::text::json, 'active', '{}')",
        [(namespace, f"e{n}", f'"lantern n{n}"') for n in range(count)],
    )
