"""Search by vector through the store, on SQLite: what the database adds to the index, and recall at a place and time.

The index by itself is measured by the benchmarks named `vectors_...`.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

from memory_store import Embedding, Episode
from memory_store.codec import CODECS
from memory_store.search.vectors import VectorIndex

from . import vector_case
from .baselines import aioconnect, connect, empty_database, insert_sql, select_sql
from .harness import Measured, Sizes, Workspace, compare, on_one_core
from .rows import NAMESPACE, stored_row
from .searched import (
    DIMENSIONS,
    DOMAINS,
    LIMIT,
    MODEL,
    TASKS,
    embedding,
    forget_answers,
    open_with_vectors,
    vectors,
    with_vectors,
)
from .texts import queries
from .vector_case import VectorCase, with_detail

_decode = CODECS["embedding"].decode
_MEETING = (
    "SELECT id FROM embeddings WHERE namespace = ? "
    "AND episode_id IN (SELECT id FROM episodes WHERE namespace = ? AND domain = ?)"
)
_FRESH = 1000


@asynccontextmanager
async def _opened(workspace: Workspace, rows: int, *, of_its_own: bool = False) -> AsyncIterator[VectorCase]:
    """Open the store of so many vectors, or a copy of it that may be written."""
    path = await with_vectors(workspace, rows)
    if of_its_own:
        path = shutil.copytree(path.parent, workspace.new("vectors").parent, dirs_exist_ok=True) / path.name
    with closing(connect(path)) as connection:

        async def read(ids: Sequence[str]) -> list[Any]:
            sql = select_sql("embedding", f"WHERE namespace = ? AND id IN ({', '.join('?' * len(ids))})")
            return [_decode(list(row)) for row in connection.execute(sql, (NAMESPACE, *ids))]

        async def meeting(domain: str) -> Iterable[str]:
            return [id_ for (id_,) in connection.execute(_MEETING, (NAMESPACE, NAMESPACE, domain))]

        async with open_with_vectors(path) as store:
            yield VectorCase(store, vectors(rows), read, meeting)


@on_one_core
async def top_ten(workspace: Workspace, sizes: Sizes) -> Measured:
    async with _opened(workspace, sizes.rows) as case:
        return await vector_case.top_ten(case, sizes.fewer(10))


@on_one_core
async def one_in_a_hundred(workspace: Workspace, sizes: Sizes) -> Measured:
    async with _opened(workspace, sizes.rows) as case:
        await case.index()
        return await vector_case.one_in_a_hundred(case, sizes.fewer(10))


@on_one_core
async def put(workspace: Workspace, sizes: Sizes) -> Measured:
    """One embedding put, which is written and logged; the next search takes it into the index."""
    count, insert = min(sizes.slice, 40), insert_sql("embedding")
    fresh = vectors(_FRESH).stored
    path = await empty_database(workspace.new("put-vector-baseline"))

    def records(number: int, count: int) -> list[Embedding]:
        return [
            replace(embedding(place % sizes.rows, fresh[place % _FRESH]), id=f"new-{place:07}")
            for place in range(number * count, (number + 1) * count)
        ]

    async with _opened(workspace, sizes.rows, of_its_own=True) as case, aioconnect(path) as connection:
        index = await case.index()
        await connection.execute("PRAGMA foreign_keys = OFF")  # it has no episodes

        async def ours(number: int) -> float:
            given = records(number, count)
            start = perf_counter()
            for record in given:
                await case.store.embeddings.put(record)
            return (perf_counter() - start) / count

        async def baseline(number: int) -> float:
            rows = [(NAMESPACE, *stored_row(record)) for record in records(number, count)]
            start = perf_counter()
            for row in rows:
                await connection.execute("BEGIN IMMEDIATE")
                await connection.execute(insert, row)
                await connection.commit()
            return (perf_counter() - start) / count

        measured = await compare(ours, baseline, sizes.fewer(15), unit="µs")
        return with_detail(measured, **await _taken_in(case, index, records(10_000, 20)))


async def _taken_in(case: VectorCase, index: VectorIndex, records: Sequence[Embedding]) -> dict[str, float]:
    """Return the times of a search that takes one new vector in, of one that has nothing to take in, and of that."""
    [query, *_] = case.queries
    after, again, alone = [], [], []
    await case.search(query)
    for record in records:
        await case.store.embeddings.put(record)
        for times in (after, again):
            start = perf_counter()
            await case.search(query)
            times.append(perf_counter() - start)
        start = perf_counter()
        index.put(record.id, record.episode_id, query)
        alone.append(perf_counter() - start)
    figures = {"search_after_put": after, "search": again, "index_put": alone}
    return {f"{name}_us": median(times) * 1e6 for name, times in figures.items()}


async def reopened(workspace: Workspace, sizes: Sizes) -> Measured:
    """The first search by vector of a store just opened, against opening the saved index and asking that."""
    path = await with_vectors(workspace, sizes.rows)
    query = vectors(sizes.rows).queries[0]
    saved = [*(path.with_name("saved") / "vectors").glob("*")]
    opening = [0.0]

    async def ours(_: int) -> float:
        async with open_with_vectors(path) as store:
            start = perf_counter()
            await store.search("", mode="vector", kinds="embedding", vector=query, model=MODEL)
            return perf_counter() - start

    async def baseline(_: int) -> float:
        start = perf_counter()
        for folder in saved:
            index, _state = VectorIndex.open(folder, DIMENSIONS)
            opening.append(perf_counter() - start)
            index.search(query, LIMIT)
        return perf_counter() - start

    measured = await compare(ours, baseline, sizes.fewer(10), unit="ms", scale=1e3)
    return with_detail(measured, index_open_ms=median(opening) * 1e3)


def recall(*, by_vector_too: bool) -> Callable[[Workspace, Sizes], Awaitable[Measured]]:
    """Return the benchmark of recall at a place, by text alone or by text and vectors.

    Against a search of the same place, which does not look at time, how recent an episode is, and diversity.
    """

    async def run(workspace: Workspace, sizes: Sizes) -> Measured:
        questions = [query for of_sort in queries(sizes.rows, sizes.queries).values() for query in of_sort]
        async with _opened(workspace, sizes.rows) as case:
            if by_vector_too:
                await case.index()

            def asked(number: int) -> dict[str, Any]:
                if not by_vector_too:
                    return {"mode": "text", "limit": LIMIT}
                vector = case.queries[number % len(case.queries)]
                return {"mode": "hybrid", "vector": vector, "model": MODEL, "limit": LIMIT}

            def place(number: int) -> tuple[str, str]:
                return DOMAINS[number % len(DOMAINS)], TASKS[number % len(TASKS)]

            async def ours(_: int) -> float:
                start = perf_counter()
                for number, question in enumerate(questions):
                    domain, task = place(number)
                    await case.store.recall(question, domain=domain, task_type=task, **asked(number))
                return (perf_counter() - start) / len(questions)

            async def baseline(_: int) -> float:
                forget_answers(case.store)
                start = perf_counter()
                for number, question in enumerate(questions):
                    domain, task = place(number)
                    where = [Episode.c.domain == domain, Episode.c.task_type == task]
                    await case.store.search(question, kinds="episode", where=where, **asked(number))
                return (perf_counter() - start) / len(questions)

            return await compare(ours, baseline, sizes.fewer(8), unit="ms", scale=1e3)

    return run
