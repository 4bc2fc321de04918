"""Search on a PostgreSQL server over a local socket: text against its own ranking, vectors as on SQLite.

One server is filled by the first benchmark that asks for so many documents, and ends with the workspace. It has 1 GB of
shared buffers, a quarter of a small machine, as PostgreSQL's manual advises; with the 32 MB of the tests' servers it
mostly copies pages from the system's own cache, for both sides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import asyncpg
import numpy as np

from memory_store import MemoryStore
from memory_store.codec import CODECS
from memory_store.records import RECORDS
from tests.mixtures import Matrix
from tests.servers.postgres import PostgresServer

from . import vector_case
from .harness import Measured, Sizes, Slice, Workspace
from .rows import NAMESPACE
from .search import compare_half, compare_texts
from .searched import (
    DIMENSIONS,
    LIMIT,
    MODEL,
    any_word,
    put_documents,
    put_embeddings,
    vectors,
)
from .vector_case import VectorCase, with_detail

_decode = CODECS["episode"].decode
_COLUMNS = ", ".join(RECORDS["episode"].columns)
# The usual way: a column of terms kept by the server, a GIN index over it, and the server's own ranking.
_CREATE = """
CREATE TABLE bare (id text PRIMARY KEY, terms tsvector);
INSERT INTO bare SELECT id, to_tsvector('english', reflection) FROM episodes;
CREATE INDEX ON bare USING gin (terms);
"""
_MATCH = (
    "SELECT bare.id FROM bare, to_tsquery('english', $1) AS sought WHERE bare.terms @@ sought "
    f"ORDER BY ts_rank(bare.terms, sought) DESC LIMIT {LIMIT}"
)
_READ = f"SELECT {_COLUMNS} FROM episodes WHERE namespace = $1 AND id = ANY($2)"
_READ_VECTORS = (
    f"SELECT {', '.join(RECORDS['embedding'].columns)} FROM embeddings WHERE namespace = $1 AND id = ANY($2)"
)
_NEAREST = (
    f"SELECT id FROM vectors WHERE model_name = '{MODEL}' AND vector_dim = {DIMENSIONS} "
    f"ORDER BY CAST(vector AS halfvec({DIMENSIONS})) <#> CAST($1 AS halfvec({DIMENSIONS})) LIMIT {LIMIT}"
)
_MEETING = (
    "SELECT m.id FROM embeddings AS m JOIN episodes AS e ON e.namespace = m.namespace AND e.id = m.episode_id "
    "WHERE e.namespace = $1 AND e.domain = $2"
)

Run = Callable[[Workspace, Sizes], Awaitable[Measured]]


@asynccontextmanager
async def _opened(
    workspace: Workspace, rows: int, *, with_vectors: bool = False
) -> AsyncIterator[tuple[MemoryStore, Any]]:
    """Yield a store of so many documents on a server, and a connection of the driver's own."""

    async def make(path: Path) -> None:
        server = workspace.until_the_end(PostgresServer(settings={"shared_buffers": "1GB"}))
        async with MemoryStore(server.url(), namespace=NAMESPACE, cache_max_bytes=0) as store:
            await put_documents(store, rows)
        await _run(server.dsn(), _CREATE, "VACUUM ANALYZE")  # as a server does by itself soon
        path.write_text(f"{server.url()}\n{server.dsn()}")

    path = await workspace.shared(f"server-{rows}", make)
    url, dsn = path.read_text().split("\n")

    async def add_vectors(marker: Path) -> None:
        stored = vectors(rows).stored
        async with MemoryStore(url, namespace=NAMESPACE, cache_path=str(path.with_name("saved"))) as store:
            await put_embeddings(store, stored)
            await store.reindex()  # which builds the graph
        await _run(dsn, "VACUUM ANALYZE")
        marker.touch()

    if with_vectors:
        await workspace.shared(f"server-vectors-{rows}", add_vectors)
    saved = str(path.with_name("saved")) if with_vectors else ""
    driver = await asyncpg.connect(dsn, statement_cache_size=1024)
    try:
        async with MemoryStore(url, namespace=NAMESPACE, cache_path=saved, cache_max_bytes=0) as store:
            await store.cache.wait()
            yield store, driver
    finally:
        await driver.close()


async def _run(dsn: str, *scripts: str) -> None:
    driver = await asyncpg.connect(dsn)
    for script in scripts:
        await driver.execute(script)
    await driver.close()


def _finds(driver: Any) -> Callable[[str], Slice]:
    def of(query: str) -> Slice:
        sought = " | ".join(any_word(query))

        async def once(_: int) -> float:
            start = perf_counter()
            ids = [row["id"] for row in await driver.fetch(_MATCH, sought)]
            [_decode(list(row)) for row in await driver.fetch(_READ, NAMESPACE, ids)]
            return perf_counter() - start

        return once

    return of


def text_of(rows: int) -> Run:
    """Return the benchmark of rare, middling and several words in so many documents, or fewer where less is asked."""
    return partial(_text, rows)


async def _text(rows: int, workspace: Workspace, sizes: Sizes) -> Measured:
    rows = min(rows, sizes.rows)
    async with _opened(workspace, rows) as (store, driver):
        return await compare_texts(store, _finds(driver), rows, sizes, sizes.fewer(8))


async def half(workspace: Workspace, sizes: Sizes) -> Measured:
    async with _opened(workspace, sizes.rows) as (store, driver):
        return await compare_half(store, _finds(driver), sizes, sizes.fewer(8))


@asynccontextmanager
async def _case(workspace: Workspace, rows: int) -> AsyncIterator[tuple[VectorCase, Any]]:
    decode = CODECS["embedding"].decode
    async with _opened(workspace, rows, with_vectors=True) as (store, driver):

        async def read(ids: Sequence[str]) -> list[Any]:
            return [decode(list(row)) for row in await driver.fetch(_READ_VECTORS, NAMESPACE, ids)]

        async def meeting(domain: str) -> Iterable[str]:
            return [row["id"] for row in await driver.fetch(_MEETING, NAMESPACE, domain)]

        yield VectorCase(store, vectors(rows), read, meeting), driver


async def top_ten(workspace: Workspace, sizes: Sizes) -> Measured:
    """Against a bare query of pgvector over the same graph, as wide as the store's, and the ten records read."""
    async with _case(workspace, sizes.rows) as (case, driver):
        await driver.execute("SET hnsw.ef_search = 200")

        async def ours(_: int, query: Matrix) -> list[str]:
            return await case.search(query)

        async def bare(_: int, query: Matrix) -> None:
            found = await driver.fetch(_NEAREST, str((query / np.linalg.norm(query)).tolist()))
            await case.read([row["id"] for row in found])

        async def exact(_: int, query: Matrix) -> list[str]:
            return case.nearest(query)

        measured = await case.compare(ours, bare, sizes.fewer(10))
        return with_detail(measured, recall=await case.recall(exact, ours))


async def one_in_a_hundred(workspace: Workspace, sizes: Sizes) -> Measured:
    async with _case(workspace, sizes.rows) as (case, _):
        return await vector_case.one_in_a_hundred(case, sizes.fewer(10))
