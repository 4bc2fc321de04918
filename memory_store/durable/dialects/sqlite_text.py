"""SQLite's full-text index: FTS5 over the terms of `documents`, read term by term.

FTS5 ranks by itself, but over all that the table holds, whatever namespace it is of, and a word in half of 100,000
documents takes it 80 ms. What is read here are its postings: those of 5,000 documents take 2.5 ms, and FTS5's own
ranking of as many 5.2 ms.
"""

# ruff: noqa: S608 - made of our own names

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from memory_store.durable.connection import Connection
from memory_store.durable.text_index import Condition, Document, Gone, Posting, meeting_query
from memory_store.text.queries import Expression

__all__ = ["FileTextIndex"]

_COLUMNS = "key, namespace, kind, id, parent, place, at, revision, length, corpus, terms"
_INSERT = f"INSERT INTO documents ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ONE = "SELECT key, corpus, terms FROM documents WHERE namespace = ? AND kind = ? AND id = ?"
_OF_PARENT = "SELECT key, corpus, terms FROM documents WHERE namespace = ? AND kind = ? AND parent = ?"
_AT_ONCE = 500


class FileTextIndex:
    """See `TextIndex`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, documents: Sequence[Document], gone: Sequence[Gone]) -> None:
        """Take the old terms out of the index by name, as FTS5 asks for where it does not keep the text itself."""
        run = self._connection.execute
        old = [row for document in documents for row in run(_ONE, document[:3])]
        for namespace, kind, id_, parent in gone:
            old += run(_OF_PARENT if id_ is None else _ONE, (namespace, kind, parent if id_ is None else id_))
        many = self._connection.executemany
        if old:
            dropped = {key: (key, _named(corpus, terms)) for key, corpus, terms in old}
            many("INSERT INTO documents_text (documents_text, rowid, terms) VALUES ('delete', ?, ?)", dropped.values())
            many("DELETE FROM documents WHERE key = ?", [(key,) for key in dropped])
        if documents:
            first = self.newest(documents[0].namespace) + 1
            rows = [(key, *one[:9], " ".join(one.terms)) for key, one in enumerate(documents, first)]
            many(_INSERT, rows)
            named = [(row[0], _named(*row[-2:])) for row in rows]
            many("INSERT INTO documents_text (rowid, terms) VALUES (?, ?)", named)

    def clear(self) -> None:
        """Forget all: a document's terms are taken out of the index by name, so both must have been right before."""
        self._connection.execute("INSERT INTO documents_text (documents_text) VALUES ('delete-all')")
        self._connection.execute("DELETE FROM documents")

    def statistics(self, namespace: str, kind: str) -> tuple[int, float]:
        """Count all, and take the average of the newest thousand."""
        run = self._connection.execute
        ours = "FROM documents WHERE namespace = ? AND kind = ?"
        [(count,)] = run(f"SELECT count(*) {ours}", (namespace, kind))
        newest = f"SELECT length {ours} ORDER BY key DESC LIMIT 1000"
        [(average,)] = run(f"SELECT avg(length) FROM ({newest})", (namespace, kind))
        return int(count), float(average or 0)

    def frequencies(self, corpus: str, terms: Sequence[str]) -> list[int]:
        """Look them up in the vocabulary: 2 ms for a term in 50,000 documents."""
        found = "SELECT doc FROM documents_vocabulary WHERE term = ?"
        return [next((int(n) for (n,) in self._connection.execute(found, (corpus + term,))), 0) for term in terms]

    def postings(self, corpus: str, term: str, condition: Condition, limit: int) -> list[Posting]:
        """Read each place where the term stands, with the document's row: CROSS JOIN keeps that order, by document."""
        rows = self._connection.execute(
            "SELECT d.key, d.length FROM documents_postings AS p CROSS JOIN documents AS d ON d.key = p.doc "
            f"WHERE p.term = ? AND {condition.sql}",
            (corpus + term, *condition.parameters),
        )
        counts: dict[int, int] = {}
        lengths: dict[int, int] = {}
        for key, length in rows:
            if key not in counts and len(counts) == limit:
                break
            counts[key] = counts.get(key, 0) + 1
            lengths[key] = length
        return [Posting(key, count, lengths[key]) for key, count in counts.items()]

    def matching(self, corpus: str, terms: Sequence[str], condition: Condition, limit: int) -> list[int]:
        """Newest first, which FTS5 can do without ranking them."""
        return self._match(" OR ".join(_quoted(corpus, term) for term in terms), condition, limit)

    def matching_expression(self, corpus: str, expression: Expression, condition: Condition, limit: int) -> list[int]:
        """Say it in FTS5's own words."""
        return self._match(_in_words(corpus, expression), condition, limit)

    def _match(self, query: str, condition: Condition, limit: int) -> list[int]:
        rows = self._connection.execute(
            "SELECT d.key FROM documents_text AS t CROSS JOIN documents AS d ON d.key = t.rowid "
            f"WHERE documents_text MATCH ? AND {condition.sql} ORDER BY t.rowid DESC LIMIT ?",
            (query, *condition.parameters, limit),
        )
        return [key for (key,) in rows]

    def meeting(self, condition: Condition, limit: int) -> list[int]:
        """Ask the records, which have indexes for it, then look their documents up."""
        sql, parameters = meeting_query(condition, limit)
        return [key for (key,) in self._connection.execute(sql, parameters)]

    def counts(
        self, namespace: str, keys: Sequence[int], corpus: str, terms: Sequence[str]
    ) -> list[tuple[int, int, list[int]]]:
        """Count in the documents' own terms."""
        found = self._rows("SELECT key, length, terms FROM documents WHERE key", keys)
        # Apart by two spaces, so that a term beside itself counts twice.
        return [(key, length, _counted(f" {text.replace(' ', '  ')} ", terms)) for key, length, text in found]

    def newest(self, namespace: str) -> int:
        """Return the newest key of all."""
        [(newest,)] = self._connection.execute("SELECT coalesce(max(key), 0) FROM documents")
        return int(newest)

    def ids(self, namespace: str, keys: Sequence[int]) -> dict[int, str]:
        """Look them up."""
        return dict(self._rows("SELECT key, id FROM documents WHERE key", keys))

    def _rows(self, select: str, keys: Sequence[int]) -> Iterator[Any]:
        for start in range(0, len(keys), _AT_ONCE):
            chunk = keys[start : start + _AT_ONCE]
            yield from self._connection.execute(f"{select} IN ({', '.join('?' * len(chunk))})", chunk)


def _named(corpus: str, terms: str) -> str:
    """Return terms as the index has them; the view `documents_terms` says the same."""
    return corpus + terms.replace(" ", f" {corpus}")


def _quoted(corpus: str, term: str) -> str:
    return f'"{corpus}{term}"'


def _counted(text: str, terms: Iterable[str]) -> list[int]:
    return [text.count(f" {term[:-1]}" if term.endswith("*") else f" {term} ") for term in terms]


def _in_words(corpus: str, expression: Expression) -> str:
    """Return an expression as FTS5 reads it, https://www.sqlite.org/fts5.html#full_text_query_syntax."""
    if expression.operator == "phrase":
        *first, last = expression.terms
        star = " *" if last.endswith("*") else ""
        return f'"{" ".join(corpus + term for term in (*first, last.removesuffix("*")))}"{star}'
    left, right = (
        f"({_in_words(corpus, side)})"
        if _BINDS[side.operator] < _BINDS[expression.operator] + is_right
        else _in_words(corpus, side)
        for is_right, side in enumerate(expression.sides)
    )
    return f"{left} {expression.operator.upper()} {right}"


# Parentheses are put where they are needed alone, since FTS5 reads no more than 100 at a time.
_BINDS: dict[Any, int] = {"or": 0, "and": 1, "not": 2, "phrase": 3}
