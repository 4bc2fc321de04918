"""What a user would pick instead to search by vectors, each filled with the same ones through its own public API.

Every peer lives in a folder or in this process; those on a server are in `server_vector_peers`. Each is used as its
documentation has it, with an index where it can make one; how much it finds is measured beside how long it takes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import chromadb
import hnswlib
import lancedb
import numpy as np
import pyarrow as pa
import qdrant_edge as qdrant
import sqlite_vec
from lancedb.index import Bitmap, HnswSq
from usearch.index import Index

from tests.mixtures import Matrix

from .searched import DIMENSIONS, DOMAINS, LIMIT

Find = Callable[[Matrix], Awaitable[list[int]]]
FindWithin = Callable[[Matrix, str], Awaitable[list[int]]]

_BATCH = 2000


@dataclass(frozen=True, slots=True)
class VectorPeer:
    """What a peer does with the vectors it holds, which are numbered.

    Args:
        search: finds the ten nearest.
        within: finds the ten nearest of a domain; None where it cannot.
        add: adds a vector under a number.
        reopen: opens what is saved once more and finds the ten nearest; None where nothing is saved.
    """

    search: Find
    within: FindWithin | None
    add: Callable[[int, Matrix], Awaitable[Any]]
    reopen: Find | None = None


Opened = Callable[[Path, Matrix], AbstractAsyncContextManager[VectorPeer]]


def domain_of(number: int) -> str:
    """Return the domain of a vector: one in a hundred has it."""
    return DOMAINS[number % len(DOMAINS)]


@asynccontextmanager
async def _usearch(folder: Path, stored: Matrix) -> AsyncIterator[VectorPeer]:
    index = Index(ndim=DIMENSIONS, metric="cos")
    index.add(np.arange(len(stored)), stored)
    index.save(str(folder / "index"))

    async def search(query: Matrix) -> list[int]:
        return [int(number) for number in index.search(query, LIMIT).keys]

    async def add(number: int, vector: Matrix) -> None:
        index.add(number, vector)

    async def reopen(query: Matrix) -> list[int]:
        opened = Index(ndim=DIMENSIONS, metric="cos")
        opened.view(str(folder / "index"))
        return [int(number) for number in opened.search(query, LIMIT).keys]

    yield VectorPeer(search, None, add, reopen)


@asynccontextmanager
async def _hnswlib(folder: Path, stored: Matrix) -> AsyncIterator[VectorPeer]:
    room = len(stored) + 100_000
    index = hnswlib.Index(space="cosine", dim=DIMENSIONS)
    index.init_index(max_elements=room)
    index.add_items(stored, np.arange(len(stored)))
    index.set_ef(128)  # its default, 10, finds a quarter of them
    index.save_index(str(folder / "index"))

    async def search(query: Matrix) -> list[int]:
        return [int(number) for number in index.knn_query(query, k=LIMIT)[0][0]]

    async def within(query: Matrix, domain: str) -> list[int]:
        found, _ = index.knn_query(query, k=LIMIT, filter=lambda number: domain_of(number) == domain)
        return [int(number) for number in found[0]]

    async def add(number: int, vector: Matrix) -> None:
        index.add_items(vector, [number])

    async def reopen(query: Matrix) -> list[int]:
        opened = hnswlib.Index(space="cosine", dim=DIMENSIONS)
        opened.load_index(str(folder / "index"), max_elements=room)
        opened.set_ef(128)
        return [int(number) for number in opened.knn_query(query, k=LIMIT)[0][0]]

    yield VectorPeer(search, within, add, reopen)


@asynccontextmanager
async def _chroma(folder: Path, stored: Matrix) -> AsyncIterator[VectorPeer]:
    client = chromadb.PersistentClient(str(folder), chromadb.Settings(anonymized_telemetry=False))
    held = client.create_collection("bench", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None)
    for first in range(0, len(stored), _BATCH):
        numbers = range(first, min(first + _BATCH, len(stored)))
        held.add(
            ids=[str(number) for number in numbers],
            embeddings=stored[first : first + _BATCH],
            metadatas=[{"domain": domain_of(number)} for number in numbers],
        )

    async def search(query: Matrix) -> list[int]:
        found = held.query(query_embeddings=[query], n_results=LIMIT, include=["distances"])
        return [int(number) for number in found["ids"][0]]

    async def within(query: Matrix, domain: str) -> list[int]:
        found = held.query(query_embeddings=[query], n_results=LIMIT, include=["distances"], where={"domain": domain})
        return [int(number) for number in found["ids"][0]]

    async def add(number: int, vector: Matrix) -> None:
        held.add(ids=[str(number)], embeddings=[vector], metadatas=[{"domain": "added"}])

    try:
        yield VectorPeer(search, within, add)  # a folder is opened once in a process: its clients share what is open
    finally:
        client.close()


@asynccontextmanager
async def _qdrant(folder: Path, stored: Matrix) -> AsyncIterator[VectorPeer]:
    vectors = qdrant.EdgeVectorParams(DIMENSIONS, qdrant.Distance.Cosine)
    shard = qdrant.EdgeShard.create(str(folder), qdrant.EdgeConfig(vectors))
    for first in range(0, len(stored), _BATCH):
        numbers = range(first, min(first + _BATCH, len(stored)))
        points = [qdrant.Point(number, stored[number].tolist(), {"domain": domain_of(number)}) for number in numbers]
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    shard.update(qdrant.UpdateOperation.create_field_index("domain", qdrant.PayloadSchemaType.Keyword))
    shard.optimize()
    shard.flush()

    def asked(query: Matrix, domain: str | None = None) -> Any:
        wanted = None
        if domain is not None:
            wanted = qdrant.Filter(must=[qdrant.FieldCondition("domain", match=qdrant.MatchValue(domain))])
        return qdrant.SearchRequest(qdrant.Query.Nearest(query.tolist()), LIMIT, filter=wanted)

    async def search(query: Matrix) -> list[int]:
        return [point.id for point in shard.search(asked(query))]

    async def within(query: Matrix, domain: str) -> list[int]:
        return [point.id for point in shard.search(asked(query, domain))]

    async def add(number: int, vector: Matrix) -> None:
        point = qdrant.Point(number, vector.tolist(), {"domain": "added"})
        shard.update(qdrant.UpdateOperation.upsert_points([point]))

    async def reopen(query: Matrix) -> list[int]:
        nonlocal shard
        shard.close()
        shard = qdrant.EdgeShard.load(str(folder))
        return [point.id for point in shard.search(asked(query))]

    try:
        yield VectorPeer(search, within, add, reopen)
    finally:
        shard.close()


@asynccontextmanager
async def _lancedb(folder: Path, stored: Matrix) -> AsyncIterator[VectorPeer]:
    def rows(numbers: range, vectors: Matrix) -> pa.Table:
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSIONS)
        names = pa.array([domain_of(number) for number in numbers])
        return pa.table({"number": pa.array(numbers), "domain": names, "vector": values})

    connection = await lancedb.connect_async(str(folder))
    table = await connection.create_table("bench", rows(range(len(stored)), stored))
    await table.create_index("vector", config=HnswSq(distance_type="cosine"))
    await table.create_index("domain", config=Bitmap())
    await table.wait_for_index(["vector_idx", "domain_idx"], timeout=timedelta(minutes=10))

    async def found(query: Any) -> list[int]:
        result = await query.distance_type("cosine").limit(LIMIT).select(["number", "_distance"]).to_list()
        return [row["number"] for row in result]

    async def search(query: Matrix) -> list[int]:
        return await found(table.query().nearest_to(query))

    async def within(query: Matrix, domain: str) -> list[int]:
        return await found(table.query().nearest_to(query).where(f"domain = '{domain}'"))

    async def add(number: int, vector: Matrix) -> None:
        await table.add(rows(range(number, number + 1), vector[np.newaxis]))

    async def reopen(query: Matrix) -> list[int]:
        again = await lancedb.connect_async(str(folder))
        opened = await again.open_table("bench")
        return await found(opened.query().nearest_to(query))

    yield VectorPeer(search, within, add, reopen)


@asynccontextmanager
async def _sqlite_vec(folder: Path, stored: Matrix) -> AsyncIterator[VectorPeer]:
    def opened() -> apsw.Connection:
        connection = apsw.Connection(str(folder / "vec.db"))
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        return connection

    insert = "INSERT INTO bench (number, domain, vector) VALUES (?, ?, ?)"
    nearest = f"SELECT number FROM bench WHERE vector MATCH ? AND k = {LIMIT}"
    connection = opened()
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(
        "CREATE VIRTUAL TABLE bench USING vec0("
        f"number INTEGER PRIMARY KEY, domain TEXT, vector float[{DIMENSIONS}] distance_metric=cosine)"
    )
    with connection:
        connection.executemany(
            insert, ((number, domain_of(number), vector.tobytes()) for number, vector in enumerate(stored))
        )

    async def search(query: Matrix) -> list[int]:
        return [number for (number,) in connection.execute(nearest, (query.tobytes(),))]

    async def within(query: Matrix, domain: str) -> list[int]:
        return [number for (number,) in connection.execute(f"{nearest} AND domain = ?", (query.tobytes(), domain))]

    async def add(number: int, vector: Matrix) -> None:
        connection.execute(insert, (number, "added", vector.tobytes()))

    async def reopen(query: Matrix) -> list[int]:
        again = opened()
        try:
            return [number for (number,) in again.execute(nearest, (query.tobytes(),))]
        finally:
            again.close()

    try:
        yield VectorPeer(search, within, add, reopen)
    finally:
        connection.close()


VECTOR_PEERS: dict[str, Opened] = {
    "usearch": _usearch,
    "hnswlib": _hnswlib,
    "Chroma": _chroma,
    "Qdrant Edge": _qdrant,
    "LanceDB": _lancedb,
    "sqlite-vec": _sqlite_vec,
}
VECTOR_PACKAGES = ("usearch", "hnswlib", "chromadb", "qdrant-edge-py", "lancedb", "apsw", "sqlite-vec", "pgvector")
