"""Full text on SQLite, against a bare FTS5 table of the same documents; the answers kept; what indexing costs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from memory_store import MemoryStore
from memory_store.codec import CODECS

from .baselines import GET, connect, open_quiet
from .harness import Measured, Sizes, Slice, Workspace, as_rate, compare, on_one_core
from .rows import NAMESPACE
from .searched import LIMIT, any_word, documents, forget_answers, indexed, over_queries, with_documents
from .texts import queries, word_in_half

_decode = CODECS["episode"].decode
_CREATE = "CREATE VIRTUAL TABLE bare USING fts5(id UNINDEXED, text, tokenize='porter unicode61')"
_INSERT = "INSERT INTO bare (id, text) VALUES (?, ?)"
_MATCH = f"SELECT id FROM bare WHERE bare MATCH ? ORDER BY rank LIMIT {LIMIT}"
_INDEXED = 10_000

Run = Callable[[Workspace, Sizes], Awaitable[Measured]]


async def _bare(workspace: Workspace, rows: int) -> Path:
    """Return a database that holds nothing but FTS5's own table of so many documents."""

    async def make(path: Path) -> None:
        with closing(connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(_CREATE)
            connection.execute("BEGIN")
            connection.executemany(_INSERT, ((record.id, record.reflection) for record in documents(rows)))
            connection.execute("COMMIT")

    return await workspace.shared(f"bare-{rows}", make)


@asynccontextmanager
async def _both(workspace: Workspace, rows: int) -> AsyncIterator[tuple[MemoryStore, Callable[[str], Any]]]:
    """Yield a store of so many documents, and what finds and reads ten of them by FTS5 and plain SQL."""
    path, bare = await with_documents(workspace, rows), await _bare(workspace, rows)
    with closing(connect(bare)) as index, closing(connect(path)) as table:

        def find(query: str) -> list[Any]:
            sought = " OR ".join(f'"{word}"' for word in any_word(query))
            found = index.execute(_MATCH, (sought,)).fetchall()
            return [_decode(list(table.execute(GET, (NAMESPACE, id_)).fetchone())) for (id_,) in found]

        async with open_quiet(path) as store:
            yield store, find


def searches(store: MemoryStore, **asked: Any) -> Callable[[str], Slice]:
    """Return how a query is timed through the store, its records read as well."""

    def of(query: str) -> Slice:
        async def once(_: int) -> float:
            forget_answers(store)
            start = perf_counter()
            found = await store.search(query, limit=LIMIT, **asked)
            [hit.record for hit in found]
            return perf_counter() - start

        return once

    return of


def _finds(find: Callable[[str], Any]) -> Callable[[str], Slice]:
    def of(query: str) -> Slice:
        async def once(_: int) -> float:
            start = perf_counter()
            find(query)
            return perf_counter() - start

        return once

    return of


def text_of(rows: int) -> Run:
    """Return the benchmark of rare, middling and several words in so many documents, or fewer where less is asked."""
    return on_one_core(partial(_text, rows))


async def _text(rows: int, workspace: Workspace, sizes: Sizes) -> Measured:
    rows = min(rows, sizes.rows)
    async with _both(workspace, rows) as (store, find):
        return await compare_texts(store, _finds(find), rows, sizes, sizes.fewer(15))


async def compare_texts(
    store: MemoryStore, finds: Callable[[str], Slice], rows: int, sizes: Sizes, rounds: int
) -> Measured:
    """Compare searches by text, of every sort of query, with a baseline's."""
    return await over_queries(
        queries(rows, sizes.queries), searches(store, kinds="episode", mode="text"), finds, rounds
    )


async def half(workspace: Workspace, sizes: Sizes) -> Measured:
    async with _both(workspace, sizes.rows) as (store, find):
        return await compare_half(store, _finds(find), sizes, sizes.fewer(15))


async def compare_half(store: MemoryStore, finds: Callable[[str], Slice], sizes: Sizes, rounds: int) -> Measured:
    """Compare the search for a word in half of all documents with a baseline's."""
    word = word_in_half(sizes.rows)
    ours = searches(store, kinds="episode", mode="text")
    return await compare(ours(word), finds(word), rounds, unit="ms", scale=1e3)


async def again(workspace: Workspace, sizes: Sizes) -> Measured:
    """A search asked again; the baseline finds its ten hits in a dictionary and copies them, as a caller needs."""
    count = min(sizes.slice, 200)
    rows = min(sizes.rows, _INDEXED)
    [query, *_] = queries(rows, sizes.queries)["two_words"]
    async with open_quiet(await with_documents(workspace, rows)) as store:
        known = {query: await store.search(query, mode="text")}

        async def copied(of: str) -> Any:
            return known[of].again()

        async def ours(_: int) -> float:
            start = perf_counter()
            for _ in range(count):
                await store.search(query, mode="text")
            return (perf_counter() - start) / count

        async def baseline(_: int) -> float:
            start = perf_counter()
            for _ in range(count):
                await copied(query)
            return (perf_counter() - start) / count

        return await compare(ours, baseline, sizes.rounds, unit="µs")


async def index_rate(workspace: Workspace, sizes: Sizes) -> Measured:
    """All of the index made anew, against FTS5 inserting the same text in one transaction.

    Beside it the rate at which a bulk load is taken, and the one at which it is taken and can be found.
    """
    rows = min(sizes.rows, _INDEXED)
    texts = [(record.id, record.reflection) for record in documents(rows)]
    with closing(connect(workspace.new("index-rate-baseline"))) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(_CREATE)
        async with open_quiet(workspace.new("index-rate")) as store:
            records = list(documents(rows))
            start = perf_counter()
            await store.episodes.put_many(records)
            taken = perf_counter() - start
            await indexed(store)
            found = perf_counter() - start

            async def ours(_: int) -> float:
                start = perf_counter()
                assert await store.reindex() == rows
                return (perf_counter() - start) / rows

            async def baseline(_: int) -> float:
                start = perf_counter()
                await asyncio.to_thread(_insert_all, connection, texts)
                return (perf_counter() - start) / rows

            measured = as_rate(await compare(ours, baseline, sizes.fewer(5), unit="", scale=1), unit="records/s")
    rates = {"put_many_rate": rows / taken, "put_many_until_found_rate": rows / found}
    return Measured(
        measured.ratio, measured.ours, measured.baseline, measured.unit, {**measured.detail, "rows": rows, **rates}
    )


def _insert_all(connection: sqlite3.Connection, texts: list[tuple[str, Any]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM bare")
    connection.executemany(_INSERT, texts)
    connection.execute("COMMIT")
