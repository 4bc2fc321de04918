"""The full-text index: a document for each record with text, written in the record's own transaction.

A document holds the record's terms (see `text/terms.py`) and what ranking needs to know of it. Each namespace and kind
is a corpus of its own: the name of the corpus stands before every term in the index, so that a search never meets the
terms of another one, and what is common or rare is so within the corpus. (Names are hashes of 50 bits. Should two be
the same, a document found is still looked up by namespace and kind.)

A commit of many records leaves its position in the backlog instead, in the same transaction, and is indexed right
behind: a search first brings in what is left there. So do the triggers for what plain SQL changes. Position 0 stands
for all records of a namespace.
"""

from __future__ import annotations

import base64
import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgpack
from sqlalchemy import BigInteger, Column, Identity, Index, Integer, PrimaryKeyConstraint, Table, Text, text

from memory_store.durable.changes import Change, shard_of
from memory_store.durable.connection import Connection
from memory_store.durable.dialects import is_index_damage
from memory_store.durable.statements import dialect_of
from memory_store.durable.text_index import Document, Gone, Vector, text_index
from memory_store.durable.vectors import VECTORS, has_vectors
from memory_store.records import RECORDS
from memory_store.records.columns import METADATA, ShortText, Terms
from memory_store.text.documents import SEARCHED, document_terms

if TYPE_CHECKING:
    from memory_store.durable.operations import IndexWork

__all__ = [
    "BACKLOG",
    "DOCUMENTS",
    "INDEX_AT_ONCE",
    "ON_SERVER",
    "PLACE_SEPARATOR",
    "WHOLE_NAMESPACE",
    "corpus_of",
    "count_searched",
    "forget_documents",
    "leave_all_behind",
    "leave_behind",
    "make_document",
    "record_behind",
    "record_documents",
    "record_guarded",
    "write_behind",
]

INDEX_AT_ONCE = 16
"""Searched records that a commit may change and still index itself.

A document takes 90 us, of which 30 are its terms; a record that is written together with many others takes 30 to 80."""

WHOLE_NAMESPACE = 0
"""Stands in the backlog for the position of every record of a namespace."""

ON_SERVER = {"only": "postgresql"}
"""Marks an index that a file does not have."""

DOCUMENTS = Table(
    "documents",
    METADATA,
    # What the index and the postings know a document by. In a file it is the table's INTEGER PRIMARY KEY: rows without
    # such a key get other numbers by SQLite's VACUUM.
    Column("key", BigInteger().with_variant(Integer, "sqlite"), Identity(), nullable=False),
    Column("namespace", ShortText(200), nullable=False),
    Column("kind", ShortText(64), nullable=False),
    Column("id", ShortText(), nullable=False),
    Column("parent", ShortText()),
    # Where and when an episode belongs, for coarse-to-fine recall.
    Column("place", ShortText()),
    Column("at", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("corpus", ShortText(16), nullable=False),
    Column("terms", Terms().with_variant(Text(), "sqlite"), nullable=False),
    PrimaryKeyConstraint("namespace", "kind", "id"),
    Index("ix_documents_namespace_parent", "namespace", "parent", info={"where": "parent IS NOT NULL"}),
    Index("ix_documents_namespace_place_at", "namespace", "place", "at", info={"where": "place IS NOT NULL"}),
    Index("ix_documents_namespace_key", "namespace", "key", info=ON_SERVER),
    Index("ix_documents_terms", "terms", info={**ON_SERVER, "using": "gin", "with": "gin_pending_list_limit = 256"}),
)
"""What an index is besides its columns stands in `info`: to say it in a dialect's own words imports the dialect."""

BACKLOG = Table(
    "backlog",
    METADATA,
    Column("shard", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("namespace", ShortText(200), nullable=False),
    # How far it is: the changes up to `idx`, or, of a whole namespace, the records of `kind` up to `key`.
    Column("idx", Integer, nullable=False, server_default=text("-1")),
    Column("kind", ShortText(64), nullable=False, server_default=text("''")),
    Column("key", ShortText(), nullable=False, server_default=text("''")),
    PrimaryKeyConstraint("namespace", "shard", "position"),
)


PLACE_SEPARATOR = "\x1f"
"""Between the domain and the task type of a place: the unit separator, which sorts before all that is printed."""


@lru_cache(maxsize=1024)
def corpus_of(namespace: str, kind: str) -> str:
    """Return the name of a corpus: 50 bits of BLAKE2b (RFC 7693) in base 32 (RFC 4648), ten lower-case characters."""
    digest = hashlib.blake2b(f"{kind}\0{namespace}".encode(), digest_size=7).digest()
    return base64.b32encode(digest)[:10].decode().lower()


def make_document(kind: str, namespace: str, row: Sequence[Any]) -> Document:
    """Return the document of a stored row."""
    spec = RECORDS[kind]
    terms = document_terms(kind, row)
    parent = None if spec.parent_index is None else row[spec.parent_index]
    place = _place(row) if kind == "episode" else None
    corpus = corpus_of(namespace, kind)
    vector = _vector(row) if kind == "embedding" else None
    return Document(namespace, kind, row[0], parent, place, row[2], row[1], len(terms), corpus, terms, vector)


def _place(row: Sequence[Any]) -> str:
    episode = RECORDS["episode"]
    return f"{row[episode.index('domain')]}{PLACE_SEPARATOR}{row[episode.index('task_type')]}"


def _vector(row: Sequence[Any]) -> Vector:
    spec = RECORDS["embedding"]
    return Vector(row[spec.index("model_name")], row[spec.index("vector_dim")], row[spec.index("embedding")])


def record_documents(
    connection: Connection, changes: Sequence[Change], shard: int, position: int, *, with_vectors: bool = False
) -> bool:
    """Bring the index up to the changes of a commit, in its transaction, or note that this is still to be done.

    Args:
        connection: in the transaction.
        changes: of the commit.
        shard: whose log they are in.
        position: of the commit.
        with_vectors: whether the database keeps vectors.

    Returns:
        Whether it was brought up to them.
    """
    searched = [change for change in changes if change.kind in SEARCHED]
    if not searched:
        return True
    if len(searched) > INDEX_AT_ONCE or any(change.body == b"" for change in searched):
        return record_behind(connection, searched, shard, position)
    documents: dict[tuple[str, str, str | None], Document] = {}
    gone: list[Gone] = []
    for change in searched:
        if change.body:
            row = msgpack.unpackb(change.body)
            documents[change.kind, change.namespace, row[0]] = make_document(change.kind, change.namespace, row)
        elif change.operation == "delete":
            gone.append(Gone(change.namespace, change.kind, change.key, change.parent))
            for key in [key for key, document in documents.items() if gone[-1].covers(document)]:
                del documents[key]
    text_index(connection, with_vectors=with_vectors).write(list(documents.values()), gone)
    return True


def record_behind(
    connection: Connection, changes: Sequence[Change], shard: int, position: int, *, with_vectors: bool = False
) -> bool:
    """Note that the changes of a commit are still to be indexed, vectors or not. Returns whether there are none."""
    namespaces = {change.namespace for change in changes if change.kind in SEARCHED}
    leave_behind(connection, shard, position, namespaces)
    return not namespaces


def record_guarded(
    connection: Connection, changes: Sequence[Change], shard: int, position: int, *, with_vectors: bool = False
) -> bool:
    """As `record_documents`; where a file's index turns out to be damaged, note that this is still to be done."""
    if dialect_of(connection).name != "sqlite":
        return record_documents(connection, changes, shard, position, with_vectors=with_vectors)
    connection.execute("SAVEPOINT unindexed")
    try:
        complete = record_documents(connection, changes, shard, position)
        # For a savepoint FTS5 writes what it has collected, and reads what it needs for that: not only at the commit.
        connection.execute("SAVEPOINT indexed")
    except sqlite3.DatabaseError as error:
        if not is_index_damage(error):
            raise
        connection.execute("ROLLBACK TO unindexed")
        complete = record_behind(connection, changes, shard, position)
    connection.execute("RELEASE unindexed")
    return complete


def write_behind(connection: Connection, work: IndexWork, *, with_vectors: bool = False) -> None:
    """Bring in what the index was behind with."""
    if work.is_anew:
        text_index(connection).clear()
    if work.documents or work.gone:
        documents = {document[:3]: document for document in work.documents}
        text_index(connection, with_vectors=with_vectors).write(list(documents.values()), work.gone)


def leave_behind(connection: Connection, shard: int, position: int, namespaces: Iterable[str]) -> None:
    """Note that records of these namespaces, changed at a position, are not indexed yet."""
    rows = [(shard, position, namespace) for namespace in sorted(namespaces)]
    connection.executemany(
        "INSERT INTO backlog (shard, position, namespace) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", rows
    )


def leave_all_behind(connection: Connection, shards: int) -> None:
    """Note that nothing is indexed yet of any namespace, in the caller's transaction."""
    tables = [*(RECORDS[kind].table.name for kind in SEARCHED), DOCUMENTS.name]
    found = " UNION ".join(f"SELECT namespace FROM {table}" for table in tables)  # noqa: S608 - our own names
    for (namespace,) in connection.execute(found).fetchall():
        leave_behind(connection, shard_of(namespace, shards), WHOLE_NAMESPACE, [namespace])


def forget_documents(connection: Connection, shards: int) -> None:
    """Empty the index, whatever state it is in, and note that all is to be indexed again."""
    text_index(connection).clear()
    connection.execute("DELETE FROM documents")
    if has_vectors(connection):
        connection.execute(f"DELETE FROM {VECTORS.name}")  # noqa: S608 - our own name
    leave_all_behind(connection, shards)


def count_searched(connection: Connection) -> int:
    """Return how many records have text to search."""
    counted = " + ".join(f"(SELECT count(*) FROM {RECORDS[kind].table.name})" for kind in SEARCHED)  # noqa: S608
    return int(connection.execute(f"SELECT {counted}").fetchone()[0])
