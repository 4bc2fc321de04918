"""What the durable tier asks of a database's full-text index: write documents, read postings, count terms.

It knows nothing of ranking, which is written once for every database (`search/fulltext.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from memory_store.durable.connection import Connection
from memory_store.durable.query import Query

__all__ = [
    "IS_BEHIND",
    "Condition",
    "Document",
    "Gone",
    "Posting",
    "TextIndex",
    "Vector",
    "meeting_query",
    "text_index",
]


class Vector(NamedTuple):
    """The vector of an embedding, as it is stored: whose it is, how many numbers, and those as float32."""

    model_name: str
    vector_dim: int
    numbers: bytes


class Document(NamedTuple):
    """What the index keeps of a record; of its vector, what a server keeps (see `durable/vectors.py`)."""

    namespace: str
    kind: str
    id: str
    parent: str | None
    place: str | None
    at: int
    revision: int
    length: int
    corpus: str
    terms: list[str]
    vector: Vector | None = None


class Gone(NamedTuple):
    """A record that is no more, or (`id` None) all of a kind that belonged to a parent."""

    namespace: str
    kind: str
    id: str | None
    parent: str | None

    def covers(self, document: Document) -> bool:
        """Return whether it is this document's record."""
        if (self.namespace, self.kind) != (document.namespace, document.kind):
            return False
        return self.id == document.id if self.id is not None else self.parent == document.parent


class Condition(NamedTuple):
    """What restricts a search to documents of a namespace and kind, and to records that meet expressions.

    `sql` says it of a document `d`, with `?` for parameters. `ids` is the query for the ids of the records that meet
    the expressions; None where there are none, and every record is meant. `keys` says the same by documents, where they
    can and none is behind: for the keys of the documents that do, or, of vectors, for the ids of the embeddings.
    """

    sql: str
    parameters: Sequence[Any]
    ids: Query | None
    keys: Query | None = None


Posting: TypeAlias = tuple[int, int, int]
"""A document that has a term: its key, how many times the term is there, how many terms it has.

A plain tuple: naming the parts takes as long as ranking them, and a search reads thousands."""


class State(NamedTuple):
    """How far the index is: of which commit of the shard, whether some of a namespace is still to be indexed, its end.

    `newest` is a key that no document exceeds; it grows as documents come.
    """

    position: int
    is_behind: bool
    newest: int


IS_BEHIND = "EXISTS (SELECT 1 FROM backlog WHERE namespace = ? AND shard = ?)"
"""Whether something of a namespace is not indexed yet, as an expression of SQL."""


class TextIndex(Protocol):
    """The documents of a database over one connection, in the caller's transaction.

    Keys are of documents of one namespace; where a condition is asked for, it must name it.
    """

    def write(self, documents: Sequence[Document], gone: Sequence[Gone]) -> None:
        """Drop what is gone, then put documents in the place of those of the same records."""
        ...

    def clear(self) -> None:
        """Forget what cannot be made right document by document, because it may be damaged; all are written again."""
        ...

    def damage(self) -> str | None:
        """Return why the index is not that of the documents; None where it is, as far as can be seen from here."""
        ...

    def statistics(self, corpus: str, namespace: str, kind: str) -> tuple[int, float]:
        """Return how many documents a corpus has, and how many terms one of them has on average."""
        ...

    def frequencies(self, corpus: str, terms: Sequence[str], namespace: str, documents: int) -> list[int]:
        """Return how many documents of a corpus have each term; beyond some number, about how many.

        Args:
            corpus: the name of it.
            terms: these.
            namespace: that the corpus is of.
            documents: how many it has, as far as is known.
        """
        ...

    def postings(self, corpus: str, term: str, condition: Condition, limit: int) -> list[Posting]:
        """Return documents that have a term and meet a condition, so many at most."""
        ...

    def matching(self, corpus: str, terms: Sequence[str], condition: Condition, limit: int) -> list[int]:
        """Return the keys of the newest documents that have any of the terms, so many at most."""
        ...

    def matching_expression(self, corpus: str, expression: Any, condition: Condition, limit: int) -> list[int]:
        """Return the keys of the newest documents that an expert query (see `text/queries.py`) describes."""
        ...

    def meeting(self, condition: Condition, limit: int) -> list[int]:
        """Return the keys of documents that meet a condition with expressions, so many at most."""
        ...

    def counts(
        self, namespace: str, keys: Sequence[int], corpus: str, terms: Sequence[str]
    ) -> list[tuple[int, int, list[int]]]:
        """Return of each of these documents its key, how many terms it has, and how often each of these terms."""
        ...

    def terms(self, namespace: str, kind: str, ids: Sequence[str]) -> list[tuple[str, int, list[str]]]:
        """Return of those of these records that have a document its id, its revision and its terms, in any order."""
        ...

    def state(self, shard: int, namespace: str, sought: Sequence[tuple[str, str]] = ()) -> State:
        """Return what is indexed of a namespace.

        Args:
            shard: that the namespace is of.
            namespace: of the documents.
            sought: corpora with terms that are likely to be asked for next: to ask a server takes longer than to read
                the postings of a rare term, so these are read along.
        """
        ...

    def ids(self, namespace: str, keys: Sequence[int]) -> dict[int, tuple[str, str]]:
        """Return the kind and the id of the records of those of these documents that are of the namespace."""
        ...


def meeting_query(condition: Condition, limit: int) -> Query:
    """Return the query for the keys of documents whose records meet a condition with expressions."""
    if condition.keys is not None:
        return Query(f"{condition.keys.text} LIMIT {int(limit)}", condition.keys.parameters)
    assert condition.ids is not None
    namespace, kind = condition.parameters[:2]
    ids, parameters = condition.ids
    sql = (
        "SELECT d.key FROM documents AS d WHERE d.namespace = ? AND d.kind = ? "  # noqa: S608 - our own words
        f"AND d.id IN (SELECT id FROM ({ids} LIMIT {int(limit)}) AS met)"
    )
    return Query(sql, [namespace, kind, *parameters])


def text_index(connection: Connection, *, with_vectors: bool = False) -> TextIndex:
    """Return the documents of the database behind a connection.

    Args:
        connection: to it.
        with_vectors: whether it keeps vectors as well.
    """
    if hasattr(connection, "dialect"):
        from memory_store.durable.dialects.postgresql_text import ServerTextIndex

        return ServerTextIndex(connection, with_vectors=with_vectors)
    from memory_store.durable.dialects.sqlite_text import FileTextIndex

    return FileTextIndex(connection)
