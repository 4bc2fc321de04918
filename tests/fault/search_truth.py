"""What a database's full-text index holds, read with the plain driver, and whether it is what the records say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import JSON

from memory_store import MemoryStore
from memory_store.durable.dialects.postgresql_text import terms_text
from memory_store.durable.documents import make_document
from memory_store.durable.text_index import Document
from memory_store.records import RECORDS
from memory_store.text.documents import SEARCHED
from tests.fault.servers_support import truth_of
from tests.fault.support import database

__all__ = ["found", "index_problems", "is_whole", "left_behind", "nothing_left", "server_index_problems"]

_COLUMNS = "namespace, kind, id, parent, place, at, revision, length, corpus, terms"


def index_problems(path: Path) -> list[str]:
    """Return in what the documents of a file differ from its records, and what FTS5 finds wrong with their index.

    What is left in the backlog may differ; call it when nothing is left.
    """
    with database(path) as connection:
        connection.execute("INSERT INTO documents_text (documents_text, rank) VALUES ('integrity-check', 1)")
        held = [Document(*row[:-1], row[-1].split()) for row in connection.execute(f"SELECT {_COLUMNS} FROM documents")]
        expected = [
            make_document(kind, namespace, row)
            for kind in SEARCHED
            for namespace, *row in connection.execute(
                f"SELECT namespace, {', '.join(RECORDS[kind].columns)} FROM {RECORDS[kind].table.name}"
            )
        ]
        [(places,)] = connection.execute("SELECT count(*) FROM documents_postings").fetchall()
    problems = _differences(
        {one[:3]: one[3:] for one in held},
        {one[:3]: one._replace(vector=None)[3:] for one in expected},
    )
    wanted = sum(1 + max(1, one.length) for one in expected)  # the name of the corpus is a term as well
    if places != wanted:
        problems.append(f"the index has {places} places of terms, expected {wanted}")
    return problems


async def server_index_problems(connection: Any) -> list[str]:
    """Return in what the documents on a server differ from its records, over a connection of asyncpg."""
    expected = {}
    for kind in SEARCHED:
        table = RECORDS[kind].table
        columns = [f"{c.name}::text" if isinstance(c.type, JSON) else c.name for c in table.columns]
        order = [table.columns.keys().index(name) for name in ("namespace", *RECORDS[kind].columns)]
        for row in await connection.fetch(f"SELECT {', '.join(columns)} FROM {table.name}"):
            namespace, *values = [row[place] for place in order]
            one = make_document(kind, namespace, values)
            terms = await connection.fetchval("SELECT $1::text::tsvector::text", terms_text(one))
            expected[one[:3]] = (*one[3:9], terms)
    rows = await connection.fetch(f"SELECT {_COLUMNS}::text FROM documents")
    return _differences({tuple(row)[:3]: tuple(row)[3:] for row in rows}, expected)


def _differences(held: dict[Any, Any], expected: dict[Any, Any]) -> list[str]:
    return [
        f"{key}: the document is {held.get(key)!r:.200}, expected {expected.get(key)!r:.200}"
        for key in sorted(held.keys() | expected.keys())
        if held.get(key) != expected.get(key)
    ]


def left_behind(path: Path) -> list[tuple[Any, ...]]:
    """Return what stands in the backlog of a file."""
    with database(path) as connection:
        return connection.execute("SELECT * FROM backlog").fetchall()


async def is_whole(url: str) -> None:
    """Check that the index is what the records say, and that nothing is left for it."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        assert left_behind(path) == []
        assert index_problems(path) == []
        return
    async with truth_of(url) as truth:
        assert await truth.connection.fetch("SELECT * FROM backlog") == []
        assert await server_index_problems(truth.connection) == []


async def nothing_left(store: MemoryStore) -> None:
    """Search until all of a namespace is indexed."""
    for _ in range(1000):
        if (await store.search("anything at all", mode="text")).complete:
            return
    raise AssertionError("the index is never complete")


async def found(store: MemoryStore, query: str, **options: Any) -> set[str]:
    """The ids that a complete search by text finds."""
    await nothing_left(store)
    results = await store.search(query, mode="text", limit=1000, **options)
    assert results.complete
    return {hit.id for hit in results}
