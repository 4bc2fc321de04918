"""PostgreSQL's full-text index: a tsvector a document, with a GIN index over them, read term by term.

PostgreSQL's own ranking knows nothing of how common a word is, and reads every document that has one. What is read here
are postings, see `postgresql_postings.py`.
"""

# ruff: noqa: S608 - made of our own names

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_store.durable.connection import Connection
from memory_store.durable.dialects.postgresql_postings import (
    EQUAL,
    SIGN,
    count_of,
    query_of,
    read_postings,
    terms_text,
)
from memory_store.durable.dialects.postgresql_vectors import drop_vectors, put_vectors
from memory_store.durable.text_index import IS_BEHIND, Condition, Document, Gone, Posting, State, meeting_query
from memory_store.text.queries import Expression

__all__ = ["ServerTextIndex", "arrays_of"]

_COLUMNS = ("namespace", "kind", "id", "parent", "place", "at", "revision", "length", "corpus", "terms")
_WRITE = (
    f"INSERT INTO documents ({', '.join(_COLUMNS)}) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, CAST(CAST(? AS text) AS tsvector)) "
    "ON CONFLICT (namespace, kind, id) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[3:])
)
_DROP = "DELETE FROM documents WHERE namespace = ? AND kind = ? AND id = ? RETURNING id"
_DROP_OF_PARENT = "DELETE FROM documents WHERE namespace = ? AND kind = ? AND parent = ? RETURNING id"

# Beyond this a count is an estimate: a term has more postings than a search reads.
_MOST_COUNTED = 20_001
# Up to this the postings of a term are read to count them. Where there are more, they are counted up to the other bound
# if a sample says that they are not beyond it.
_FEW_COUNTED = 2_001
# Of more terms at once none is read, but all are counted: a text as a query has hundreds.
_MOST_ALONG = 32
# Of more documents, the length of one is that of a sample.
_MOST_AVERAGED = 2_000
# Documents of a sample below which it says nothing.
_LEAST_SAMPLE = 100
# 50 documents from each twentieth of the namespace's keys, which are given in order: old ones and new ones, the same as
# long as nothing is written. Where most documents are of other kinds, 1,000 of all kinds are looked at for them. The
# upper limit of the keys is for the planner: before the first ANALYZE it reads the whole table without (3.5 s). Without
# the terms' places, and unpacked once (`strip`): else each term unpacks all of them, 12 ms for 1,000.
_PARTS, _OF_PART, _LOOKED_AT = 20, 50, 1_000


class ServerTextIndex:
    """See `TextIndex`."""

    def __init__(self, connection: Connection, *, with_vectors: bool) -> None:
        self._connection, self._with_vectors = connection, with_vectors
        self._read: dict[tuple[str, str], list[Posting]] = {}

    def write(self, documents: Sequence[Document], gone: Sequence[Gone]) -> None:
        """Delete, then insert or replace."""
        for namespace, kind, id_, parent in gone:
            drop, key = (_DROP_OF_PARENT, parent) if id_ is None else (_DROP, id_)
            dropped = [id_ for (id_,) in self._connection.execute(drop, (namespace, kind, key))]
            if self._with_vectors and kind == "embedding":
                drop_vectors(self._connection, namespace, dropped)
        if documents:
            self._connection.executemany(_WRITE, [(*one[:9], terms_text(one)) for one in documents])
            if self._with_vectors:
                put_vectors(self._connection, documents)

    def clear(self) -> None:
        """Nothing: a document and its index are one row, which is replaced or deleted."""

    def damage(self) -> str | None:
        """Return None: the GIN index is for the server's own tools, as all its indexes."""
        return None

    def statistics(self, corpus: str, namespace: str, kind: str) -> tuple[int, float]:
        """Count all; of many, the length is that of a sample.

        Counting 100,000 takes 25 ms once the server has vacuumed the table, and 190 before; to read them all takes 260.
        """
        sql = "SELECT count(*) FROM documents WHERE namespace = ? AND kind = ?"
        [(count,)] = self._connection.execute(sql, (namespace, kind)).fetchall()
        if count > _MOST_AVERAGED:
            sql = f"{_sample('near.length')} SELECT avg(length)::float8 FROM sample"
            [(average,)] = self._connection.execute(sql, _of_sample(corpus, namespace, count)).fetchall()
            if average is not None:
                return int(count), float(average)
        sql = "SELECT avg(length)::float8 FROM documents WHERE namespace = ? AND kind = ?"
        [(average,)] = self._connection.execute(sql, (namespace, kind)).fetchall()
        return int(count), float(average or 0)

    def frequencies(self, corpus: str, terms: Sequence[str], namespace: str, documents: int) -> list[int]:
        """Read the postings of rare ones, and keep them; count the others, or take their share of a sample."""
        whole = [(corpus, term) for term in terms if not term.endswith("*")]
        unread = [named for named in whole if named not in self._read]
        if 0 < len(unread) <= _MOST_ALONG:
            self._read_along(unread)
        counts = {term: len(self._read.get((corpus, term), ())) for term in terms}
        many = [term for term in terms if counts[term] >= _FEW_COUNTED or (corpus, term) not in self._read]
        # First up to where terms are remembered as common: others are asked for each time, and need no sample.
        few = min(_MOST_COUNTED, max(_FEW_COUNTED, documents // 50 + 2))
        if many and (few > _FEW_COUNTED or any((corpus, term) not in self._read for term in many)):
            counts.update(zip(many, self._counted(corpus, many, few), strict=True))
        many = [term for term in many if counts[term] >= few]
        if many and few <= documents:
            known = self._estimated(corpus, many, namespace, documents)
            seldom = [term for term in many if known[term] <= _MOST_COUNTED]
            if seldom and few < _MOST_COUNTED:
                known.update(zip(seldom, self._counted(corpus, seldom, _MOST_COUNTED), strict=True))
            counts.update((term, max(counts[term], count)) for term, count in known.items())
        return [counts[term] for term in terms]

    def _estimated(self, corpus: str, terms: Sequence[str], namespace: str, documents: int) -> dict[str, int]:
        """Return about how many documents have each term, by a sample; 0 for all where that is too small to say it."""
        sql = (
            f"{_sample('strip(near.terms) AS terms')} SELECT asked.place, count(*), "
            "count(*) FILTER (WHERE sample.terms @@ asked.query) FROM sample, "
            "unnest(CAST(? AS text[])::tsquery[]) WITH ORDINALITY AS asked(query, place) GROUP BY asked.place"
        )
        parameters = [*_of_sample(corpus, namespace, documents), [query_of(corpus, term) for term in terms]]
        found = {place: (size, having) for place, size, having in self._connection.execute(sql, parameters)}
        sizes = [found.get(place, (0, 0)) for place in range(1, len(terms) + 1)]
        return {
            term: round(documents * having / size) if size >= _LEAST_SAMPLE else 0
            for term, (size, having) in zip(terms, sizes, strict=True)
        }

    def _counted(self, corpus: str, terms: Sequence[str], most: int) -> list[int]:
        """Count up to a bound, all terms in one statement."""
        sql = (
            "SELECT asked.place, (SELECT count(*) FROM (SELECT 1 FROM documents WHERE terms @@ asked.query "
            f"LIMIT {most}) AS found) "
            "FROM unnest(CAST(? AS text[])::tsquery[]) WITH ORDINALITY AS asked(query, place)"
        )
        rows = self._connection.execute(sql, ([query_of(corpus, term) for term in terms],)).fetchall()
        counted = dict(rows)
        return [int(counted[place]) for place in range(1, len(terms) + 1)]

    def postings(self, corpus: str, term: str, condition: Condition, limit: int) -> list[Posting]:
        """Read them by way of the index, unless they were read to count them."""
        read = self._read.get((corpus, term), [])
        if condition.ids is None and 0 < len(read) < _FEW_COUNTED:
            return read[:limit]
        [found], _ = read_postings(self._connection, [(corpus, term)], condition, limit)
        return found

    def matching(self, corpus: str, terms: Sequence[str], condition: Condition, limit: int) -> list[int]:
        """Newest first: by the key, which is given in order."""
        return self._match(" | ".join(query_of(corpus, term) for term in terms), condition, limit)

    def matching_expression(self, corpus: str, expression: Expression, condition: Condition, limit: int) -> list[int]:
        """Say it as a tsquery."""
        return self._match(_in_words(corpus, expression), condition, limit)

    def _match(self, query: str, condition: Condition, limit: int) -> list[int]:
        rows = self._connection.execute(
            "SELECT d.key FROM documents AS d WHERE d.terms @@ CAST(CAST(? AS text) AS tsquery) "
            f"AND {condition.sql} ORDER BY d.key DESC LIMIT {int(limit)}",
            (query, *condition.parameters),
        )
        return [key for (key,) in rows]

    def meeting(self, condition: Condition, limit: int) -> list[int]:
        """Ask the records, which have indexes for it, then look their documents up."""
        sql, parameters = meeting_query(condition, limit)
        return [key for (key,) in self._connection.execute(sql, parameters)]

    def counts(
        self, namespace: str, keys: Sequence[int], corpus: str, terms: Sequence[str]
    ) -> list[tuple[int, int, list[int]]]:
        """Let the server look each term up in each document, whose terms are read once (`setweight` makes a copy)."""
        ranks = "".join(f", ts_rank({EQUAL}, terms, CAST(CAST(? AS text) AS tsquery))" for _ in terms)
        sql = (
            f"SELECT key, length{ranks} FROM (SELECT key, length, setweight(terms, 'D') AS terms FROM documents "
            "WHERE namespace = ? AND key = ANY(CAST(? AS bigint[])) OFFSET 0) AS read"
        )
        rows = self._connection.execute(sql, (*(query_of(corpus, term) for term in terms), namespace, list(keys)))
        return [(key, length, [count_of(rank) for rank in found]) for key, length, *found in rows]

    def terms(self, namespace: str, kind: str, ids: Sequence[str]) -> list[tuple[str, int, list[str]]]:
        """Read the words of the tsvectors, without the name of the corpus that stands before each."""
        sql = (
            "SELECT id, revision, length(corpus), tsvector_to_array(terms) FROM documents "
            "WHERE namespace = ? AND kind = ? AND id = ANY(CAST(? AS text[]))"
        )
        rows = self._connection.execute(sql, (namespace, kind, list(ids))).fetchall()
        return [
            (id_, revision, [term[start:] for term in terms if not term.startswith(SIGN, start)])
            for id_, revision, start, terms in rows
        ]

    def state(self, shard: int, namespace: str, sought: Sequence[tuple[str, str]] = ()) -> State:
        """Look at the end of the documents' index, and read what is sought in the same statement."""
        figures = (
            f"(SELECT position FROM head WHERE shard = ?), CAST({IS_BEHIND} AS int), "
            "(SELECT coalesce(max(key), 0) FROM documents WHERE namespace = ?)"
        )
        given = (shard, namespace, shard, namespace)
        sought = [(corpus, term) for corpus, term in sought if not term.endswith("*")]
        if len(sought) > _MOST_ALONG:
            sought = []
        position, behind, newest = self._read_along(sought, figures, given)
        return State(position, bool(behind), newest)

    def _read_along(self, sought: Sequence[tuple[str, str]], figures: str = "", given: Sequence[Any] = ()) -> list[int]:
        """Keep the postings of terms, so many that rare ones have no more; return figures of the same moment."""
        found, numbers = read_postings(self._connection, sought, None, _FEW_COUNTED, figures, given)
        self._read.update(zip(sought, found, strict=True))
        return numbers

    def ids(self, namespace: str, keys: Sequence[int]) -> dict[int, tuple[str, str]]:
        """Look them up."""
        sql = "SELECT key, kind, id FROM documents WHERE namespace = ? AND key = ANY(CAST(? AS bigint[]))"
        return {key: (kind, id_) for key, kind, id_ in self._connection.execute(sql, (namespace, list(keys)))}


def arrays_of(documents: Sequence[Document]) -> list[list[Any]]:
    """Return the columns of documents without a parent, in the order of `postgresql_inserts`."""
    rows = [(*one[:3], *one[4:9], terms_text(one)) for one in documents]
    return [[row[index] for row in rows] for index in range(9)]


def _sample(columns: str) -> str:
    """Return the beginning of a statement that reads columns of a sample of documents."""
    return (
        "WITH span AS (SELECT low, (high - low + 1) / CAST(? AS float8) AS part, "
        "CAST(? AS float8) * (high - low + 1) AS width "
        "FROM (SELECT min(key) AS low, max(key) AS high FROM documents WHERE namespace = ?) AS keys), "
        f"sample AS MATERIALIZED (SELECT found.* FROM span, generate_series(0, {_PARTS - 1}) AS number, LATERAL "
        f"(SELECT {columns} FROM (SELECT d.corpus, d.length, d.terms FROM documents AS d WHERE d.namespace = ? "
        "AND d.key >= low + CAST(floor(number * part) AS bigint) "
        "AND d.key < low + CAST(floor(number * part + least(part, width)) AS bigint) "
        f"ORDER BY d.key LIMIT {_LOOKED_AT}) AS near WHERE near.corpus = ? LIMIT {_OF_PART}) AS found)"
    )


def _of_sample(corpus: str, namespace: str, documents: int) -> list[Any]:
    """Return the parameters of a sample: keys are taken from so much of their span as has twice the documents."""
    return [_PARTS, 2 * _OF_PART / documents, namespace, namespace, corpus]


def _in_words(corpus: str, expression: Expression) -> str:
    """Return an expression as a tsquery, https://www.postgresql.org/docs/current/datatype-textsearch.html."""
    if expression.operator == "phrase":
        return f"({' <-> '.join(query_of(corpus, term) for term in expression.terms)})"
    left, right = (_in_words(corpus, side) for side in expression.sides)
    return f"({left} {_OPERATORS[expression.operator]} {right})"


_OPERATORS: dict[Any, str] = {"and": "&", "or": "|", "not": "& !"}
