"""The vectors on a server: a table beside the documents, where the extension pgvector is there; see migration 0004.

A row for each embedding, written and deleted with its document, in the same transaction or from the same backlog. So
there is no foreign key: it would be looked up with every row, and would keep the record tables from being partitioned.

The table is not among the models' (`METADATA`): SQLite has none, and a server has it or not. A writer asks once in an
epoch, since who makes the table begins a new one.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, MetaData, PrimaryKeyConstraint, Table
from sqlalchemy.types import UserDefinedType

from memory_store.durable.changes import HEADS_LOCK, UPGRADE_LOCK
from memory_store.durable.connection import Connection
from memory_store.durable.log import begin_epoch
from memory_store.records.columns import METADATA, ShortText

__all__ = ["LEAST_VECTORS", "MOST_DIMENSIONS", "VECTORS", "has_vectors", "make_vectors"]

LEAST_VECTORS = 10_000
"""A model with fewer has no graph: to compare so many takes the server 10 ms."""

MOST_DIMENSIONS = 16_000
"""A longer vector has no row: pgvector keeps none. In the process it is found."""


class _HalfVector(UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "halfvec"


VECTORS = Table(
    "vectors",
    MetaData(naming_convention=METADATA.naming_convention),
    Column("namespace", ShortText(200), nullable=False),
    Column("id", ShortText(), nullable=False),
    Column("episode_id", ShortText(), nullable=False),
    Column("model_name", ShortText(), nullable=False),
    Column("vector_dim", BigInteger, nullable=False),
    # Of length 1, so that the inner product is the cosine. One of zeros stays as it is: its product with any other is
    # the 0 that is promised for it, where pgvector's cosine would be NaN.
    Column("vector", _HalfVector(), nullable=False),
    PrimaryKeyConstraint("namespace", "id"),
    Index(None, "namespace", "model_name", "vector_dim"),
)


def has_vectors(connection: Connection) -> bool:
    """Return whether the database keeps vectors."""
    if not hasattr(connection, "dialect"):
        return False
    # Dropping the extension with CASCADE leaves the table, without this column.
    asked = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('vectors') AND attname = 'vector')"
    [(there,)] = connection.execute(asked).fetchall()
    return bool(there)


def make_vectors(connection: Connection) -> bool:
    """Make the table in a database at the newest revision, if it is missing and can be made; return whether it was.

    Every embedding is left in the backlog, and a new epoch begins, by which writers learn of it.

    Raises:
        DurableError: the database cannot be written; nothing was changed.
    """
    if has_vectors(connection):
        return False
    connection.execute("BEGIN IMMEDIATE")
    try:
        # In the order of every upgrade. No write of the library is under way while the heads are locked.
        connection.execute(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")
        connection.execute(f"SELECT pg_advisory_xact_lock({HEADS_LOCK})")
        heads = connection.execute("SELECT shard FROM head ORDER BY shard FOR UPDATE").fetchall()
        made = not has_vectors(connection)
        if made:
            [(made,)] = connection.execute("SELECT memory_store_make_vectors()").fetchall()
        if made:
            for (shard,) in heads:
                begin_epoch(connection.execute, "upgrade", shard=shard)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return bool(made)
