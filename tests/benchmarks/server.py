"""On a PostgreSQL server over a local socket: what the store adds to the driver's own time.

Each benchmark starts a server of its own, which syncs every commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import asyncpg

from memory_store import MemoryStore
from memory_store.codec import CODECS
from memory_store.durable.changes import shard_of
from memory_store.records import RECORDS
from tests.servers.postgres import PostgresServer

from .harness import Measured, Sizes, Workspace, as_rate, compare
from .ours import list_domains, put_at_once, put_each
from .rows import DOMAINS, NAMESPACE, episodes, steps, stored_row

_decode = CODECS["episode"].decode
_BATCH = 2000
_POOL = 10
_WRITERS = 64
_BULK = 20_000


def _columns(kind: str) -> list[str]:
    return ["namespace", *RECORDS[kind].columns]


def _select(rest: str) -> str:
    return f"SELECT {', '.join(RECORDS['episode'].columns)} FROM episodes {rest}"


def _insert() -> str:
    names = _columns("episode")
    return f"INSERT INTO bare ({', '.join(names)}) VALUES ({', '.join(f'${n}' for n in range(1, len(names) + 1))})"


def _rows(records: list[Any]) -> list[tuple[Any, ...]]:
    return [(NAMESPACE, *stored_row(record)) for record in records]


@asynccontextmanager
async def _opened(rows: int, **settings: Any) -> AsyncIterator[tuple[PostgresServer, MemoryStore, Any]]:
    """Start a server with so many episodes; yield it, an open store, and a connection of the driver's own.

    `bare` is a table like `episodes` with its indexes, and without triggers and log.
    """
    with PostgresServer() as server:
        async with MemoryStore(server.url(), namespace=NAMESPACE, **settings) as store:
            await store.cache.wait()
            for start in range(0, rows, _BATCH):
                await store.episodes.put_many(episodes(min(_BATCH, rows - start), start))
            driver = await asyncpg.connect(server.dsn(), statement_cache_size=1024)
            await driver.execute("CREATE TABLE bare (LIKE episodes INCLUDING ALL)")
            if rows:  # as a server does by itself soon; one that has seen an empty table takes any index for as good
                await driver.execute("ANALYZE")
            try:
                yield server, store, driver
            finally:
                await driver.close()


async def miss(workspace: Workspace, sizes: Sizes) -> Measured:
    sql = _select("WHERE namespace = $1 AND id = $2")
    async with _opened(min(sizes.rows, 20_000), cache_max_bytes=0) as (_, store, driver):
        found = await driver.fetch(_select("WHERE namespace = $1 ORDER BY id LIMIT $2"), NAMESPACE, sizes.slice // 2)
        ids = [row["id"] for row in found]

        async def ours(_: int) -> float:
            start = perf_counter()
            for id_ in ids:
                await store.episodes.get(id_)
            return (perf_counter() - start) / len(ids)

        async def baseline(_: int) -> float:
            start = perf_counter()
            for id_ in ids:
                _decode(list(await driver.fetchrow(sql, NAMESPACE, id_)))
            return (perf_counter() - start) / len(ids)

        return await compare(ours, baseline, sizes.rounds, unit="µs")


async def put(workspace: Workspace, sizes: Sizes) -> Measured:
    count, sql = min(sizes.slice, 50), _insert()
    async with _opened(0) as (_, store, driver):

        async def ours(number: int) -> float:
            return await put_each(store, count, number)

        async def baseline(number: int) -> float:
            rows = _rows(list(episodes(count, number * count)))
            start = perf_counter()
            for row in rows:
                async with driver.transaction():
                    await driver.execute(sql, *row)
            return (perf_counter() - start) / count

        return await compare(ours, baseline, sizes.rounds * 2, unit="µs")


async def writers(workspace: Workspace, sizes: Sizes) -> Measured:
    count, sql = max(_WRITERS, min(sizes.slice * 2, 1280) // _WRITERS * _WRITERS), _insert()
    async with (
        _opened(0) as (server, store, _),
        asyncpg.create_pool(server.dsn(), min_size=_POOL, max_size=_POOL) as pool,
    ):

        async def insert(rows: list[tuple[Any, ...]]) -> None:
            for row in rows:
                async with pool.acquire() as connection, connection.transaction():
                    await connection.execute(sql, *row)

        async def ours(number: int) -> float:
            return await put_at_once(store, count, number, _WRITERS)

        async def baseline(number: int) -> float:
            rows = _rows(list(episodes(count, number * count)))
            start = perf_counter()
            await asyncio.gather(*(insert(rows[place::_WRITERS]) for place in range(_WRITERS)))
            return (perf_counter() - start) / count

        measured = await compare(ours, baseline, sizes.fewer(15), unit="", scale=1)
        return as_rate(measured, unit="puts/s")


async def put_many(workspace: Workspace, sizes: Sizes) -> Measured:
    """Blocks of episodes with five steps each, against COPY of the same rows, which neither checks nor logs."""
    count = min(sizes.rows, _BULK)
    async with _opened(0, cache_max_bytes=0) as (_, store, driver):
        await driver.execute("CREATE TABLE bare_steps (LIKE steps INCLUDING ALL)")
        await driver.execute("ALTER TABLE bare_steps ADD FOREIGN KEY (namespace, episode_id) REFERENCES bare")

        async def ours(number: int) -> float:
            owners = list(episodes(count, number * count))
            parts = [step for place, owner in enumerate(owners) for step in steps(owner, 5, place)]
            start = perf_counter()
            await store.episodes.put_many(owners)
            await store.steps.put_many(parts)
            return (perf_counter() - start) / (count * 6)

        async def baseline(number: int) -> float:
            owners = list(episodes(count, number * count))
            rows = _rows(owners)
            parts = _rows([step for place, owner in enumerate(owners) for step in steps(owner, 5, place)])
            start = perf_counter()
            async with driver.transaction():
                await driver.copy_records_to_table("bare", records=rows, columns=_columns("episode"))
                await driver.copy_records_to_table("bare_steps", records=parts, columns=_columns("step"))
            return (perf_counter() - start) / (count * 6)

        return as_rate(await compare(ours, baseline, sizes.fewer(5), unit="", scale=1), unit="rows/s")


async def list_page(workspace: Workspace, sizes: Sizes) -> Measured:
    sql = _select("WHERE namespace = $1 AND domain = $2 ORDER BY created_at DESC, id DESC LIMIT $3")
    async with _opened(sizes.rows) as (_, store, driver):

        async def ours(_: int) -> float:
            return await list_domains(store)

        async def baseline(_: int) -> float:
            start = perf_counter()
            for domain in DOMAINS:
                [_decode(list(row)) for row in await driver.fetch(sql, NAMESPACE, domain, 50)]
            return (perf_counter() - start) / len(DOMAINS)

        return await compare(ours, baseline, sizes.rounds, unit="µs")


async def two_heads(workspace: Workspace, sizes: Sizes) -> Measured:
    """Two namespaces of different heads, each with one writer, against one of them with one writer."""
    count = min(sizes.slice, 100)
    async with _opened(0) as (_, store, _):
        assert store._shards is not None
        heads = len(store._shards)
        other = next(
            name for name in map(str, range(1000)) if shard_of(name, heads) != store._shards.of(NAMESPACE).number
        )

        async def write(name: str, number: int) -> None:
            for record in episodes(count, number * count):
                await store.namespace(name).episodes.put(record)

        async def ours(number: int) -> float:
            start = perf_counter()
            await asyncio.gather(write(NAMESPACE, number), write(other, number))
            return (perf_counter() - start) / count / 2

        async def baseline(number: int) -> float:
            start = perf_counter()
            await write(NAMESPACE, number)
            return (perf_counter() - start) / count

        return as_rate(await compare(ours, baseline, sizes.rounds, unit="", scale=1), unit="puts/s")
