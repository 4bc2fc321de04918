"""Building pgvector's graphs: for models of which a server has so many vectors that comparing them takes long."""

# ruff: noqa: S608 - made of our own names, and of what is quoted here

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from memory_store.config import Settings
from memory_store.durable.connection import Connection, ServerText
from memory_store.durable.dialects.postgresql import escaped
from memory_store.durable.dialects.postgresql_vectors import graph_name
from memory_store.durable.engine import ServerTarget
from memory_store.durable.vectors import LEAST_VECTORS, has_vectors
from memory_store.durable.visiting import visit

__all__ = ["build_graphs"]

OnGraph = Callable[[str, int], None]

# What pgvector's HNSW takes of half floats.
_MOST_DIMENSIONS = 4000
# Neighbours weighed when a vector is put in. With pgvector's own 64, the graph of 100,000 mixtures of real sentence
# vectors is built in 46 s instead of 66, and recall@10 is .992 instead of .997.
_WIDTH = 100
# Links and the rest of a node, beside its vector. A graph that does not fit is built several times as slowly.
_NODE_BYTES = 400
_MOST_MEMORY_BYTES = 1 << 30


async def build_graphs(target: ServerTarget, settings: Settings, on_graph: OnGraph) -> int:
    """Build the graphs that are missing, and return how many. Writes and searches go on meanwhile.

    Only the owner of the tables can; for other roles there is nothing to do. It takes a minute for 100,000 vectors.
    Cancelled, the server goes on with the one it is at.

    Args:
        target: the database.
        settings: of the store.
        on_graph: called with the model and the number of its vectors before each.

    Raises:
        DurableError: the server refused. Searches stay exact; safe to repeat.
    """
    return await visit(target, settings.timeout_s, partial(_build, may_set=not settings.pooler, on_graph=on_graph))


def _build(connection: Connection, *, may_set: bool, on_graph: OnGraph) -> int:
    if not has_vectors(connection) or not _is_owner(connection):
        return 0
    built = 0
    models = connection.execute(
        "SELECT model_name, vector_dim, count(*) FROM vectors WHERE vector_dim <= ? GROUP BY 1, 2 "
        f"HAVING count(*) > {LEAST_VECTORS} ORDER BY 1, 2",
        (_MOST_DIMENSIONS,),
    ).fetchall()
    for model, size, count in models:
        if _prepare(connection, graph_name(model, size)):
            on_graph(model, count)
            if may_set:  # which a pooler would keep for somebody else
                kilobytes = min(_MOST_MEMORY_BYTES, count * (2 * size + _NODE_BYTES)) >> 10
                connection.execute(f"SET maintenance_work_mem = '{max(kilobytes, 65_536)}kB'")
            connection.execute(_create(model, int(size)))
            built += 1
    return built


def _is_owner(connection: Connection) -> bool:
    asked = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = CAST('vectors' AS regclass)"
    return bool(connection.execute(asked).fetchone()[0])


def _prepare(connection: Connection, name: str) -> bool:
    """Drop what an interrupted build has left; return whether there is one to build, which nobody else is building."""
    [(valid,)] = connection.execute(
        "SELECT (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(?))", (name,)
    ).fetchall()
    if valid:
        return False
    [(building,)] = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE relid = to_regclass('vectors') "
        "AND datname = current_database())"
    ).fetchall()
    if building:
        return False
    connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    return True


def _create(model: str, size: int) -> ServerText:
    quoted = "'" + escaped(model).replace("'", "''") + "'"
    return ServerText(
        f"CREATE INDEX CONCURRENTLY {graph_name(model, size)} ON vectors USING hnsw "
        f"((CAST(vector AS halfvec({size}))) halfvec_ip_ops) WITH (ef_construction = {_WIDTH}) "
        f"WHERE model_name = {quoted} AND vector_dim = {size}"
    )
