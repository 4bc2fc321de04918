"""Vectors on PostgreSQL by pgvector: put and dropped with their documents, compared one by one or found by a graph.

A graph is an HNSW index (https://github.com/pgvector/pgvector#hnsw) over the vectors of one model and size, of all
namespaces: an index for each namespace would be opened by every write. What lies in another namespace, or does not meet
a condition, is met in it on the way all the same.
"""

# ruff: noqa: S608 - made of our own names

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from memory_store.durable.connection import Connection, ServerText
from memory_store.durable.query import Query
from memory_store.durable.text_index import IS_BEHIND, Condition, Document, Vector
from memory_store.durable.vectors import MOST_DIMENSIONS

__all__ = [
    "GraphSearch",
    "Near",
    "Space",
    "compare_all",
    "compare_some",
    "count_vectors",
    "drop_vectors",
    "given_ids",
    "graph_name",
    "look",
    "put_vectors",
    "read_ids",
    "read_vectors",
    "search_graph",
]


class Near(NamedTuple):
    """A vector that was found: how far it is as half floats (minus the cosine), and its numbers as they are stored."""

    id: str
    episode_id: str
    distance: float
    numbers: bytes | None


class Space(NamedTuple):
    """Whose vectors are compared with each other."""

    namespace: str
    model_name: str
    vector_dim: int


class GraphSearch(NamedTuple):
    """How a graph is searched: how many of the namespace it gives, how many it weighs at a time and meets at most."""

    depth: int
    width: int
    most_met: int


# Cast to pgvector's `vector` first: a float that half floats cannot hold may be in there until it has length 1.
_UNIT = "CAST(l2_normalize(CAST(CAST(? AS real[]) AS vector)) AS halfvec)"
_PUT = (
    "INSERT INTO vectors (namespace, id, episode_id, model_name, vector_dim, vector) "
    f"VALUES (?, ?, ?, ?, ?, {_UNIT}) ON CONFLICT (namespace, id) DO UPDATE SET episode_id = excluded.episode_id, "
    "model_name = excluded.model_name, vector_dim = excluded.vector_dim, vector = excluded.vector"
)
_DROP = "DELETE FROM vectors WHERE namespace = ? AND id = ?"


def put_vectors(connection: Connection, documents: Sequence[Document]) -> None:
    """Put the vectors of embeddings, in place of those they had; plain SQL may have written what is none."""
    rows: list[tuple[Any, ...]] = []
    for document in documents:
        if document.vector is None:
            continue
        numbers = _numbers(document.vector)
        if numbers is None:
            drop_vectors(connection, document.namespace, [document.id])
        else:
            rows.append((document.namespace, document.id, document.parent, *document.vector[:2], numbers))
    if rows:
        connection.executemany(_PUT, rows)


def _numbers(vector: Vector) -> tuple[float, ...] | None:
    size = vector.vector_dim
    if not 1 <= size <= MOST_DIMENSIONS or len(vector.numbers) != 4 * size:
        return None
    numbers = struct.unpack(f"<{size}f", vector.numbers)
    return numbers if all(map(math.isfinite, numbers)) else None


def drop_vectors(connection: Connection, namespace: str, ids: Sequence[str]) -> None:
    """Drop the vectors of embeddings that are no more."""
    if ids:
        connection.executemany(_DROP, [(namespace, id_) for id_ in ids])


_OURS = "namespace = ? AND model_name = ? AND vector_dim = ?"
_ARRAY = "CAST(CAST(? AS real[]) AS halfvec)"
# As a subquery it is computed once, also in a plan that is kept: an array becomes a vector in 10 us.
_ASKED = f"(SELECT {_ARRAY})"


def compare_all(connection: Connection, space: Space, unit: Sequence[float], limit: int) -> list[Near]:
    """Return the nearest vectors of a space, so many at most, by their half floats.

    Args:
        connection: to the database.
        space: whose vectors.
        unit: of length 1, or zeros.
        limit: how many.
    """
    every = f"SELECT id, episode_id, vector <#> {_ASKED} AS distance FROM vectors WHERE {_OURS}"
    return _ranked(connection, space, every, [unit, *space], limit)


def compare_some(connection: Connection, space: Space, unit: Sequence[float], limit: int, ids: Query) -> list[Near]:
    """Return the nearest vectors of those whose ids a query finds; else as `compare_all`."""
    # OFFSET 0 keeps it from becoming a plain join, which might read the whole space for a handful of ids.
    some = (
        f"SELECT v.id, v.episode_id, v.vector <#> {_ASKED} AS distance FROM ({ids.text}) AS met "
        f"CROSS JOIN LATERAL (SELECT * FROM vectors WHERE {_OURS} AND id = met.id OFFSET 0) AS v"
    )
    return _ranked(connection, space, some, [unit, *ids.parameters, *space], limit)


def _ranked(connection: Connection, space: Space, found: str, parameters: Sequence[Any], limit: int) -> list[Near]:
    near = f"SELECT id, episode_id, distance FROM ({found}) AS near ORDER BY distance, id LIMIT {int(limit)}"
    sql = f"SELECT near.*, e.embedding FROM ({near}) AS near {_STORED}"
    return [Near(*row) for row in connection.execute(sql, [*parameters, space.namespace])]


_STORED = "LEFT JOIN embeddings AS e ON e.namespace = ? AND e.id = near.id"


def search_graph(
    connection: Connection, space: Space, unit: Sequence[float], limit: int, condition: Condition, search: GraphSearch
) -> list[Near] | None:
    """Return what a graph finds nearest, as `compare_all`, or None where only comparing would be right.

    That is where it finds too few, and where the last of them is no nearer than the farthest that was looked at: there
    may be more of the same, and their ids decide.
    """
    size = int(space.vector_dim)
    sql = (
        "WITH near AS MATERIALIZED (SELECT namespace, 'embedding' AS kind, id, episode_id, "
        f"CAST(vector AS halfvec({size})) <#> {_ARRAY} AS distance FROM vectors WHERE {_OURS} "
        f"ORDER BY distance LIMIT {int(search.depth)})"
        ", kept AS (SELECT d.id, d.episode_id, d.distance FROM near AS d "
        f"WHERE {condition.sql} ORDER BY d.distance, d.id LIMIT {int(limit)}) "
        "SELECT near.*, e.embedding, (SELECT max(distance) FROM near) FROM kept AS near "
        f"{_STORED} ORDER BY near.distance, near.id"
    )
    # A plan that is kept knows no model, so it knows no graph either. Sorting all would seem cheaper where the server
    # has not looked at the table for long. What is met is put in order here: `relaxed_order`.
    connection.execute(
        ServerText(
            "BEGIN READ ONLY; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_sort = off; "
            f"SET LOCAL hnsw.iterative_scan = relaxed_order; SET LOCAL hnsw.ef_search = {int(search.width)}; "
            f"SET LOCAL hnsw.max_scan_tuples = {int(search.most_met)}"
        )
    )
    try:
        rows = connection.execute(sql, [unit, *space, *condition.parameters, space.namespace]).fetchall()
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    if len(rows) < limit or rows[-1][2] >= rows[-1][4]:
        return None
    return [Near(*row[:4]) for row in rows]


def look(connection: Connection, shard: int, space: Space) -> tuple[bool, int]:
    """Return whether something of a namespace is still to be indexed, and how many vectors a graph has, 0 for none."""
    asked = (
        f"SELECT {IS_BEHIND}, (SELECT CAST(reltuples AS bigint) "
        "FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid WHERE relname = ? AND indisvalid "
        "AND relnamespace = CAST(current_schema() AS regnamespace))"
    )
    name = graph_name(space.model_name, space.vector_dim)
    [(behind, vectors)] = connection.execute(asked, (space.namespace, shard, name)).fetchall()
    return behind, max(vectors or 0, 0)


def count_vectors(connection: Connection, space: Space) -> int:
    """Return how many vectors a space has."""
    return int(connection.execute(f"SELECT count(*) FROM vectors WHERE {_OURS}", space).fetchone()[0])


def read_ids(connection: Connection, ids: Query, most: int) -> list[str]:
    """Return the ids that a query finds, so many at most."""
    return [id_ for (id_,) in connection.execute(f"{ids.text} LIMIT {int(most)}", ids.parameters)]


def given_ids(ids: Sequence[str]) -> Query:
    """Return a query that finds these ids."""
    return Query("SELECT unnest(CAST(? AS text[])) AS id", [list(ids)])


def read_vectors(connection: Connection, space: Space, ids: Sequence[str]) -> dict[str, list[float]]:
    """Return the vectors of some ids, at length 1; of those that have one."""
    rows = connection.execute(
        "SELECT v.id, CAST(v.vector AS real[]) FROM unnest(CAST(? AS text[])) AS asked(id) CROSS JOIN LATERAL "
        f"(SELECT * FROM vectors WHERE {_OURS} AND id = asked.id OFFSET 0) AS v",
        (list(ids), *space),
    )
    return dict(rows.fetchall())


def graph_name(model_name: str, vector_dim: int) -> str:
    """Return the name of the index over a model's vectors of one size."""
    digest = hashlib.blake2b(f"{model_name}\0{vector_dim}".encode(), digest_size=8)
    return f"vectors_graph_{digest.hexdigest()}"
