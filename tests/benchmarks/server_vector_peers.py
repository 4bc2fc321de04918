"""Peers that search by vectors on a PostgreSQL server: pgvector as plain SQL, and LangGraph's store over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
from langgraph.store.base import PutOp
from langgraph.store.postgres.aio import AsyncPostgresStore
from pgvector.asyncpg import register_vector

from tests.mixtures import Matrix
from tests.servers.postgres import PostgresServer

from .searched import DIMENSIONS, LIMIT
from .vector_peers import VectorPeer, domain_of

_BATCH = 500
_SPACE = ("bench",)


@asynccontextmanager
async def _pgvector(server: PostgresServer, stored: Matrix) -> AsyncIterator[VectorPeer]:
    dsn = server.dsn(_made(server, "pgvector"))
    nearest = f"ORDER BY vector <=> $1 LIMIT {LIMIT}"

    async def connected() -> Any:
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        await register_vector(connection)
        return connection

    connection = await connected()
    try:
        await connection.execute(
            f"CREATE TABLE bench (number bigint PRIMARY KEY, domain text, vector vector({DIMENSIONS}))"
        )
        rows = [(number, domain_of(number), vector) for number, vector in enumerate(stored)]
        await connection.copy_records_to_table("bench", records=rows)
        await connection.execute("SET maintenance_work_mem = '512MB'")
        await connection.execute("CREATE INDEX ON bench USING hnsw (vector vector_cosine_ops)")
        await connection.execute("CREATE INDEX ON bench (domain)")
        await connection.execute("ANALYZE bench")

        async def search(query: Matrix) -> list[int]:
            return [row["number"] for row in await connection.fetch(f"SELECT number FROM bench {nearest}", query)]

        async def within(query: Matrix, domain: str) -> list[int]:
            sql = f"SELECT number FROM bench WHERE domain = $2 {nearest}"
            return [row["number"] for row in await connection.fetch(sql, query, domain)]

        async def add(number: int, vector: Matrix) -> None:
            await connection.execute("INSERT INTO bench VALUES ($1, $2, $3)", number, "added", vector)

        async def reopen(query: Matrix) -> list[int]:
            again = await connected()
            try:
                return [row["number"] for row in await again.fetch(f"SELECT number FROM bench {nearest}", query)]
            finally:
                await again.close()

        yield VectorPeer(search, within, add, reopen)
    finally:
        await connection.close()


@asynccontextmanager
async def _langgraph(server: PostgresServer, stored: Matrix) -> AsyncIterator[VectorPeer]:
    """Its store takes texts and embeds them; here a text is the name of a vector."""
    dsn = server.dsn(_made(server, "langgraph_vectors"))
    named: dict[str, Matrix] = {}

    async def embed(texts: list[str]) -> list[list[float]]:
        return [named[text].tolist() for text in texts]

    index: Any = {"dims": DIMENSIONS, "embed": embed, "fields": ["text"], "distance_type": "cosine"}

    def value(number: int, vector: Matrix, domain: str) -> dict[str, str]:
        named[str(number)] = vector
        return {"text": str(number), "domain": domain}

    async with AsyncPostgresStore.from_conn_string(dsn, index=index) as store:
        await store.setup()
        for first in range(0, len(stored), _BATCH):
            puts = [
                PutOp(_SPACE, str(number), value(number, vector, domain_of(number)))
                for number, vector in enumerate(stored[first : first + _BATCH], first)
            ]
            await store.abatch(puts)

        async def found(query: Matrix, of: Any, **asked: Any) -> list[int]:
            named["query"] = query
            return [int(item.key) for item in await of.asearch(_SPACE, query="query", limit=LIMIT, **asked)]

        async def search(query: Matrix) -> list[int]:
            return await found(query, store)

        async def within(query: Matrix, domain: str) -> list[int]:
            return await found(query, store, filter={"domain": domain})

        async def add(number: int, vector: Matrix) -> None:
            await store.aput(_SPACE, str(number), value(number, vector, "added"))

        async def reopen(query: Matrix) -> list[int]:
            async with AsyncPostgresStore.from_conn_string(dsn, index=index) as again:
                return await found(query, again)

        yield VectorPeer(search, within, add, reopen)


def _made(server: PostgresServer, name: str) -> str:
    server.create_database(name)
    return name


SERVER_VECTOR_PEERS: dict[str, Callable[[PostgresServer, Matrix], AbstractAsyncContextManager[VectorPeer]]] = {
    "pgvector": _pgvector,
    "LangGraph AsyncPostgresStore": _langgraph,
}
