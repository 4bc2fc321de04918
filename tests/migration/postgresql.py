"""Databases at this library's schema, copied from one that was migrated once, and ways to look into them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from memory_store.durable.changes import shard_of
from tests.migration.conftest import REPOSITORY
from tests.servers.databases import PostgresDatabases

HEADS = 16


def alembic(url: str, *arguments: str, **given: object) -> subprocess.CompletedProcess[str]:
    """Run `alembic` in the checkout, as a user does; fails unless it succeeds."""
    options = [part for name, value in {"url": url, **given}.items() for part in ("-x", f"{name}={value}")]
    command = [sys.executable, "-m", "alembic", *options, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


@dataclass(frozen=True)
class Database:
    """A migrated database: its URL for SQLAlchemy, and for asyncpg."""

    url: str
    dsn: str

    @asynccontextmanager
    async def connect(self, role: str | None = None, **settings: str) -> AsyncIterator[asyncpg.Connection]:
        """Connect, as the owner of the tables or as another role, with settings of the session."""
        connection = await asyncpg.connect(self.dsn, server_settings=settings)
        try:
            if role is not None:
                await connection.execute(f'SET SESSION AUTHORIZATION "{role}"')
            yield connection
        finally:
            await connection.close()

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of the library that takes `execute`, in a transaction."""
        engine = create_async_engine(self.url)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(lambda sync: work(sync.exec_driver_sql, *arguments))
        finally:
            await engine.dispose()

    async def inspect(self, look: Callable[[Connection], Any]) -> Any:
        """Look at the database through SQLAlchemy."""
        engine = create_async_engine(self.url)
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(look)
        finally:
            await engine.dispose()

    async def alembic(self, *arguments: str) -> str:
        """Run `alembic` on it, and return what it printed."""
        return (await asyncio.to_thread(alembic, self.url, *arguments)).stdout


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresDatabases) -> Iterator[str]:
    """A database at the newest revision, to be copied."""
    name = f"template_{uuid.uuid4().hex}"
    alembic(postgres_server.create_database(name), "upgrade", "head")
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def database(postgres_server: PostgresDatabases, migrated_template: str) -> Iterator[Database]:
    """A database of the test's own at the newest revision, without records."""
    name = f"test_{uuid.uuid4().hex}"
    yield Database(postgres_server.create_database(name, migrated_template), postgres_server.dsn(name))
    postgres_server.drop_database(name)


@pytest.fixture
def server_url(database: Database) -> str:
    """The URL of such a database."""
    return database.url


def episode(namespace: str, id_: str, revision: int = 1) -> str:
    """An INSERT of an episode."""
    return (
        "INSERT INTO episodes (namespace, id, revision, created_at, updated_at, task_type, domain, context, status, "
        f"metadata) VALUES ('{namespace}', '{id_}', {revision}, 1, 1, 'testing', 'web', '{{}}', 'active', '{{}}')"
    )


def step(namespace: str, id_: str, episode_id: str, number: int = 1) -> str:
    """An INSERT of a step."""
    return (
        "INSERT INTO steps (namespace, id, revision, created_at, updated_at, episode_id, step_number, action) "
        f"VALUES ('{namespace}', '{id_}', 1, 1, 1, '{episode_id}', {number}, 'pytest')"
    )


OTHERS = {
    "patterns": (
        "INSERT INTO patterns VALUES ('{namespace}', '{id}', 1, 1, 1, 'optimization', '{{}}', 'web', 0.5, 0.5, 1, "
        "NULL, '{{}}')"
    ),
    "embeddings": "INSERT INTO embeddings VALUES ('{namespace}', '{id}', 1, 1, 1, '{parent}', 'text', '\\x00', 'm', 1)",
    "spatiotemporal_index": (
        "INSERT INTO spatiotemporal_index VALUES ('{namespace}', '{id}', 1, 1, 1, '{parent}', 'web', '2026', 0.5)"
    ),
}
"""INSERTs of the other kinds; the last two belong to an episode."""


async def every_kind(connection: asyncpg.Connection, namespace: str) -> None:
    """Insert an episode "e" of a namespace and one record of every other kind, all but it called "x"."""
    await connection.execute(episode(namespace, "e"))
    await connection.execute(step(namespace, "x", "e"))
    for insert in OTHERS.values():
        await connection.execute(insert.format(namespace=namespace, id="x", parent="e"))


async def log(connection: asyncpg.Connection, namespace: str, after: int = 1) -> list[tuple[Any, ...]]:
    """What the log says of a namespace's shard behind a position (1 is the migration's), without nonces and times."""
    rows = await connection.fetch(
        "SELECT position, idx, kind, key, parent, operation, revision FROM changes WHERE shard = $1 AND position > $2 "
        "ORDER BY position, idx",
        shard_of(namespace, HEADS),
        after,
    )
    return [tuple(row) for row in rows]
