"""The baselines' side: the same file format, tables, indexes and pragmas as the store's, driven by hand."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from memory_store import MemoryStore
from memory_store.durable import schema
from memory_store.durable.engine import parse_url
from memory_store.records import RECORDS

from .harness import Workspace
from .rows import NAMESPACE, episodes

# As the store's connections, but for checkpoints: SQLite's own here, at the WAL size at which the store makes its own.
PRAGMAS = """
PRAGMA busy_timeout = 30000;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
PRAGMA wal_autocheckpoint = 1000;
PRAGMA trusted_schema = OFF;
"""

_FILL_BATCH = 2000


def url_of(path: Path) -> str:
    """Return the store's URL of a database file."""
    return f"sqlite:///{path}"


async def empty_database(path: Path) -> Path:
    """Create a database with the store's own tables and indexes, no triggers, in WAL mode, and return its path."""
    await asyncio.to_thread(schema.upgrade, parse_url(url_of(path)), 30)
    drop_triggers(path)
    return path


def drop_triggers(path: Path) -> None:
    """Drop the triggers that log what plain SQL writes: a baseline has no log."""
    connection = connect(path)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f'DROP TRIGGER "{name}"')
    connection.close()


def insert_sql(kind: str) -> str:
    """Return the plain INSERT of a kind."""
    table = RECORDS[kind].table
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    return f'INSERT INTO "{table.name}" ({names}) VALUES ({", ".join("?" * len(table.columns))})'


def select_sql(kind: str, rest: str) -> str:
    """Return a SELECT of a kind's rows in the store's column order."""
    spec = RECORDS[kind]
    names = ", ".join(f'"{name}"' for name in spec.columns)
    return f'SELECT {names} FROM "{spec.table.name}" {rest}'


GET = select_sql("episode", "WHERE namespace = ? AND id = ?")


def connect(path: Path) -> sqlite3.Connection:
    """Return a sqlite3 connection with the pragmas; usable from a worker thread."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.executescript(PRAGMAS)
    return connection


@asynccontextmanager
async def aioconnect(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    """Return a kept aiosqlite connection with the pragmas."""
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        await connection.executescript(PRAGMAS)
        yield connection


@asynccontextmanager
async def open_quiet(path: Path, **settings: object) -> AsyncIterator[MemoryStore]:
    """Open the store and wait until nothing runs in its background."""
    async with MemoryStore(url_of(path), namespace=NAMESPACE, cache_path="", **settings) as store:
        await store.cache.wait()
        yield store


async def filled(workspace: Workspace, rows: int) -> Path:
    """Return a database with so many episodes, written by the store."""

    async def make(path: Path) -> None:
        async with MemoryStore(url_of(path), namespace=NAMESPACE, cache_path="", cache_max_bytes=0) as store:
            for start in range(0, rows, _FILL_BATCH):
                await store.episodes.put_many(episodes(min(_FILL_BATCH, rows - start), start))

    return await workspace.shared(f"filled-{rows}", make)


async def some_ids(path: Path, count: int) -> list[str]:
    """Return different ids of stored episodes, spread over the table."""

    def read() -> list[str]:
        connection = connect(path)
        ids = [id_ for (id_,) in connection.execute("SELECT id FROM episodes ORDER BY id")]
        connection.close()
        return ids

    ids = await asyncio.to_thread(read)
    assert 0 < count <= len(ids), f"{count} of {len(ids)}"
    # A prime stride visits all of a table before it repeats.
    return [ids[place * 7919 % len(ids)] for place in range(count)]
