"""What the durable tier asks of a database's full-text index: write documents, read postings, count terms.

It knows nothing of ranking, which is written once for every database (`search/fulltext.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from memory_store.durable.connection import Connection

__all__ = ["Condition", "Document", "Gone", "Posting", "TextIndex", "text_index"]


class Document(NamedTuple):
    """What the index keeps of a record."""

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
    """What restricts a search: SQL about a document `d`, with `?` for parameters."""

    sql: str
    parameters: Sequence[Any]


class Posting(NamedTuple):
    """A document that has a term: its key, how often the term is there, how many terms it has."""

    key: int
    count: int
    length: int


class TextIndex(Protocol):
    """The documents of a database over one connection, in the caller's transaction.

    Keys are of documents of one namespace; where a condition is asked for, it must name it.
    """

    def write(self, documents: Sequence[Document], gone: Sequence[Gone]) -> None:
        """Drop what is gone, then put documents in the place of those of the same records."""
        ...

    def statistics(self, namespace: str, kind: str) -> tuple[int, float]:
        """Return how many documents a corpus has, and how many terms one of them has on average."""
        ...

    def frequencies(self, corpus: str, terms: Sequence[str]) -> list[int]:
        """Return how many documents of a corpus have each term; beyond some number, about how many."""
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
        """Return the keys of documents that meet a condition, so many at most."""
        ...

    def counts(
        self, namespace: str, keys: Sequence[int], corpus: str, terms: Sequence[str]
    ) -> list[tuple[int, int, list[int]]]:
        """Return of each of these documents its key, how many terms it has, and how often each of these terms."""
        ...

    def ids(self, namespace: str, keys: Sequence[int]) -> dict[int, str]:
        """Return the ids of the records of these documents."""
        ...


def text_index(connection: Connection) -> TextIndex:
    """Return the documents of the database behind a connection."""
    if hasattr(connection, "dialect"):
        from memory_store.durable.dialects.postgresql_text import ServerTextIndex

        return ServerTextIndex(connection)
    from memory_store.durable.dialects.sqlite_text import FileTextIndex

    return FileTextIndex(connection)
