"""How large a database on a server is, and who uses it."""

from __future__ import annotations

from typing import NamedTuple

from memory_store.durable import schema
from memory_store.durable.connection import Connection

__all__ = ["ServerUse", "read_sizes", "read_use", "table_names"]


class ServerUse(NamedTuple):
    """What a database on a server takes.

    Args:
        bytes: the store's tables and indexes, partitions included.
        connections: programs' connections to the database, this one included.
        busy: those of the others that run a statement or are in a transaction, as far as the role may see them.
    """

    bytes: int
    connections: int
    busy: int


def table_names() -> str:
    """Return the names of the store's tables, as a list in SQL."""
    return ", ".join(f"'{table.name}'" for table in schema.SERVER_TABLES)


def read_sizes(connection: Connection) -> dict[str, int]:
    """Return the bytes of each of the store's tables with its indexes, partitions included."""
    asked = (
        "SELECT c.relname::text, coalesce(sum(pg_total_relation_size(relid)), 0)::bigint FROM pg_class c, "  # noqa: S608
        f"LATERAL pg_partition_tree(c.oid) WHERE c.relnamespace = current_schema()::regnamespace "
        f"AND c.relkind IN ('r', 'p') AND c.relname IN ({table_names()}) GROUP BY 1"
    )
    # An ordinary table is no tree.
    plain = (
        "SELECT relname::text, pg_total_relation_size(oid) FROM pg_class "  # noqa: S608 - our own names
        f"WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname IN ({table_names()})"
    )
    return {**dict(connection.execute(asked).fetchall()), **dict(connection.execute(plain).fetchall())}


_USERS = (
    "SELECT count(*), count(*) FILTER (WHERE state <> 'idle' AND pid <> pg_backend_pid()) FROM pg_stat_activity "
    "WHERE datname = current_database() AND backend_type = 'client backend'"
)


def read_use(connection: Connection) -> ServerUse:
    """Return what the database takes now."""
    [(connections, busy)] = connection.execute(_USERS).fetchall()
    return ServerUse(sum(read_sizes(connection).values()), connections, busy)
