"""The benchmarks, in the order they are run and reported in."""

from __future__ import annotations

from . import copying, search, search_server, search_vectors, server, vectors
from .coherence import commit_with, hit_bounded, hit_linearizable, linearizable_against_row
from .harness import Benchmark
from .pause import pause
from .processes import import_package, memory, open_store
from .reads import concurrent_misses, hit, list_page, miss
from .saving import save, warm
from .visibility import idle_feed, visible
from .writes import import_lines, put_alone, put_many, put_with

_FTS5 = "bare FTS5, the same words, the same ten rows read"
_TS_RANK = "ts_rank over a tsvector with GIN, the same ten rows read"
_FILTERED = "the filter as SQL, numpy over its rows, ten rows read"
_THREAD = "batches of the same rows through sqlite3 in a thread, no log"


def _writers(count: int, budget: float | None = None) -> Benchmark:
    title = "put, 1 writer" if count == 1 else f"put, {count} writers"
    return Benchmark(f"put_{count}", title, _THREAD, put_with(count), budget, "at least")


def _coherent(count: int) -> Benchmark:
    title = f"commit with coherence, {count} writer{'s' if count > 1 else ''}"
    against = "the same without claim, tail and triggers"
    return Benchmark(f"commit_{count}", title, against, commit_with(count), 0.9, "at least")


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("hit", "get, hit", "await of a coroutine: dict read + the same decode", hit, 2.0),
        Benchmark("miss", "get, miss", "one aiosqlite execute_fetchall of the row + decode", miss, 1.3),
        Benchmark(
            "concurrent_misses", "64 concurrent misses", "one execute_fetchall each", concurrent_misses, 2.5, "at least"
        ),
        Benchmark("put_alone", "put, durable, alone", "aiosqlite BEGIN, INSERT, COMMIT, no log", put_alone, 1.1),
        _writers(1),
        _writers(8),
        _writers(64, 0.5),
        _writers(512),
        Benchmark(
            "put_many",
            "put_many, 5 steps an episode",
            "sqlite3 executemany, one transaction, no log",
            put_many,
            0.5,
            "at least",
        ),
        Benchmark("list", "list 50 by domain, newest first", "the query + decode, aiosqlite", list_page, 1.5),
        Benchmark(
            "open",
            "open to first answer, 100 MB saved cache",
            "sqlite3 open + pragmas + one read",
            open_store,
            15.0,
            compared="difference",
        ),
        Benchmark("import_package", "import memory_store", "import sqlalchemy.ext.asyncio", import_package, 1.15),
        Benchmark(
            "import_lines", "import of JSON lines", "json.loads + sqlite3 executemany", import_lines, None, "at least"
        ),
        Benchmark("memory", "memory a cached entry", "the entry's bytes", memory, 1.35),
        Benchmark(
            "hit_bounded",
            "get, hit, bounded",
            "the same store without coherence",
            hit_bounded,
            0.5,
            compared="difference",
        ),
        Benchmark("hit_linearizable", "get, hit, linearizable", "the head read, bare", hit_linearizable, 2.0),
        Benchmark(
            "linearizable_row",
            "get, hit, linearizable",
            "the same get without a cache",
            linearizable_against_row,
            5.0,
            "at least",
        ),
        _coherent(1),
        _coherent(64),
        _coherent(512),
        Benchmark("visible", "another process sees a write, p99", "its staleness bound", visible, 1.0),
        Benchmark("idle_feed", "an open feed while nothing happens", "no feed", idle_feed, 0.5, compared="ours"),
        Benchmark("save", "saving the cache", "a plain write of the same bytes, synced", save, 1.5),
        Benchmark("warm", "open until the saved cache is loaded", "reading the file", warm, 500.0, compared="ours"),
        Benchmark("text_10k", "text in 10,000 documents", _FTS5, search.text_of(10_000), 1.3),
        Benchmark("text_100k", "text in 100,000 documents", _FTS5, search.text_of(100_000), 1.3),
        Benchmark("text_half", "a word in half of all documents", _FTS5, search.half, 20.0, compared="ours"),
        Benchmark(
            "search_again", "a search asked again", "dict read + copy of the hits", search.again, 25.0, compared="ours"
        ),
        Benchmark("index_rate", "reindex", "FTS5 inserting the same text", search.index_rate, None, "at least"),
        Benchmark(
            "vectors_graph",
            "the vector index: ten nearest through the graph",
            "usearch's own search of it",
            vectors.search_graph,
            1.3,
        ),
        Benchmark(
            "vectors_filter",
            "the vector index: ten nearest of one in a hundred",
            "numpy over the same ids",
            vectors.search_filtered,
            1.5,
        ),
        Benchmark(
            "vectors_10k", "the vector index: ten of 10,000 compared", "numpy", vectors.search_exact(10_000), None
        ),
        Benchmark(
            "vectors_100k", "the vector index: ten of 100,000 compared", "numpy", vectors.search_exact(100_000), None
        ),
        Benchmark(
            "vectors_put", "the vector index: put one", "a row and a dict entry", vectors.put, 1.0, compared="ours"
        ),
        Benchmark(
            "vectors_open",
            "the vector index: open, with a graph",
            "reading the keys + usearch view",
            vectors.open_saved,
            50.0,
            compared="ours",
        ),
        Benchmark(
            "search_vector",
            "ten nearest vectors, through the store",
            "usearch's own search",
            search_vectors.top_ten,
            None,
        ),
        Benchmark("search_filter", "ten nearest of one in a hundred", _FILTERED, search_vectors.one_in_a_hundred, 1.5),
        Benchmark(
            "put_vector",
            "put of an embedding, alone",
            "aiosqlite BEGIN, INSERT, COMMIT, no log",
            search_vectors.put,
            None,
        ),
        Benchmark(
            "search_reopened",
            "first search by vector of a store just opened",
            "the saved index opened and asked",
            search_vectors.reopened,
            None,
        ),
        Benchmark(
            "recall",
            "recall by text and vectors, domain and task type given",
            "a search of the same place",
            search_vectors.recall(by_vector_too=True),
            10.0,
            compared="ours",
        ),
        Benchmark(
            "recall_text",
            "recall by text, domain and task type given",
            "a search of the same place",
            search_vectors.recall(by_vector_too=False),
            10.0,
            compared="ours",
        ),
        Benchmark("server_miss", "server: get, miss", "asyncpg fetchrow + decode", server.miss, 1.3),
        Benchmark("server_put", "server: put, alone", "asyncpg transaction of one INSERT, no log", server.put, 1.5),
        Benchmark(
            "server_put_64",
            "server: put, 64 writers",
            "pool of 10, a transaction each, no log",
            server.writers,
            3.0,
            "at least",
        ),
        Benchmark(
            "server_put_many", "server: put_many, 5 steps an episode", "bare COPY", server.put_many, 0.5, "at least"
        ),
        Benchmark("server_list", "server: list 50 by domain", "the query + decode, asyncpg", server.list_page, 1.5),
        Benchmark(
            "server_heads", "server: puts in two namespaces", "in one of them", server.two_heads, 1.8, "at least"
        ),
        Benchmark("server_text_10k", "server: text in 10,000 documents", _TS_RANK, search_server.text_of(10_000), 1.3),
        Benchmark(
            "server_text_100k", "server: text in 100,000 documents", _TS_RANK, search_server.text_of(100_000), 1.3
        ),
        Benchmark(
            "server_text_half",
            "server: a word in half of all documents",
            _TS_RANK,
            search_server.half,
            20.0,
            compared="ours",
        ),
        Benchmark(
            "server_search_vector",
            "server: ten nearest vectors",
            "pgvector alone, as wide, + the records",
            search_server.top_ten,
            1.5,
        ),
        Benchmark(
            "server_search_filter",
            "server: ten nearest of one in a hundred",
            _FILTERED,
            search_server.one_in_a_hundred,
            1.5,
        ),
        Benchmark(
            "copy",
            "copy, SQLite to PostgreSQL",
            "asyncpg COPY of the same rows, one transaction, no log",
            copying.copy,
            0.4,
            "at least",
        ),
        Benchmark("pause", "event-loop pause, p99.9", "the same clock, store idle", pause, 10.0, compared="ours"),
    )
}
