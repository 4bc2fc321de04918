"""PostgreSQL's full-text index: a tsvector a document, with a GIN index over them, read term by term.

PostgreSQL's own ranking knows nothing of how common a word is, and reads every document that has one. What is read here
are postings; how often a term is in a document follows from `ts_rank` of that term alone, which is
sum(1/j^2, j = 1..count) / (pi^2 / 6) where all weights are 1 (src/backend/utils/adt/tsrank.c).
"""

# ruff: noqa: S608 - made of our own names

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import pi
from typing import Any

from memory_store.durable.connection import Connection
from memory_store.durable.dialects.postgresql_vectors import drop_vectors, put_vectors
from memory_store.durable.text_index import Condition, Document, Gone, Posting, meeting_query
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
_EQUAL = "CAST('{1,1,1,1}' AS real[])"

# Beyond this a count is an estimate: a term has more postings than a search reads.
_MOST_COUNTED = 20_001
# Terms are counted up to this first, and up to the other bound where a sample says that they are not beyond it.
_FEW_COUNTED = 2_001
# Of more documents, the length of one is that of a sample.
_MOST_AVERAGED = 2_000
# Documents of a sample below which it says nothing.
_LEAST_SAMPLE = 100
# 50 documents from each twentieth of the namespace's keys, which are given in order: old ones and new ones, the same as
# long as nothing is written. Where most documents are of other kinds, 1,000 of all kinds are looked at for them. The
# upper limit of the keys is for the planner: before the first ANALYZE it reads the whole table without (3.5 s). Without
# the terms' places, and unpacked once (`strip`): else each term unpacks all of them, 12 ms for 1,000.
_PARTS, _OF_PART, _LOOKED_AT = 20, 50, 1_000
# A tsvector keeps no more places of a term, and no place behind this one.
_MOST_PLACES, _LAST_PLACE = 255, 16_383
_RANKS = [total / (pi * pi / 6) for total in accumulate(1 / (j * j) for j in range(1, _MOST_PLACES + 1))]
# Neighbouring ranks differ by more than this; `ts_rank` is a float of 24 bits.
_TOLERANCE = 1e-6


class ServerTextIndex:
    """See `TextIndex`."""

    def __init__(self, connection: Connection, *, with_vectors: bool) -> None:
        self._connection, self._with_vectors = connection, with_vectors

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
        """Count, but for terms with more than a bound: these by their share of a sample.

        Of 100,000 documents twelve words, ten of them common, take 280 ms; counted up to the bound 950; rare ones 3.
        """
        # First up to where terms are remembered as common: rare ones are asked for each time, and need no sample.
        few = min(_MOST_COUNTED, max(_FEW_COUNTED, documents // 50 + 2))
        counts = self._counted(corpus, terms, few)
        if few > documents or max(counts, default=0) < few:
            return counts
        many = [term for term, count in zip(terms, counts, strict=True) if count >= few]
        known = self._estimated(corpus, many, namespace, documents)
        seldom = [term for term in many if known[term] <= _MOST_COUNTED]
        if seldom and few < _MOST_COUNTED:
            known.update(zip(seldom, self._counted(corpus, seldom, _MOST_COUNTED), strict=True))
        return [max(count, known.get(term, 0)) for term, count in zip(terms, counts, strict=True)]

    def _estimated(self, corpus: str, terms: Sequence[str], namespace: str, documents: int) -> dict[str, int]:
        """Return about how many documents have each term, by a sample; 0 for all where that is too small to say it."""
        sql = (
            f"{_sample('strip(near.terms) AS terms')} SELECT asked.place, count(*), "
            "count(*) FILTER (WHERE sample.terms @@ asked.query) FROM sample, "
            "unnest(CAST(? AS text[])::tsquery[]) WITH ORDINALITY AS asked(query, place) GROUP BY asked.place"
        )
        parameters = [*_of_sample(corpus, namespace, documents), [_query(corpus, term) for term in terms]]
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
        rows = self._connection.execute(sql, ([_query(corpus, term) for term in terms],)).fetchall()
        counted = dict(rows)
        return [int(counted[place]) for place in range(1, len(terms) + 1)]

    def postings(self, corpus: str, term: str, condition: Condition, limit: int) -> list[Posting]:
        """Read documents by way of the index."""
        rows = self._connection.execute(
            f"SELECT d.key, ts_rank({_EQUAL}, d.terms, asked.query), d.length FROM documents AS d, "
            f"(SELECT CAST(CAST(? AS text) AS tsquery) AS query) AS asked "
            f"WHERE d.terms @@ asked.query AND {condition.sql} LIMIT {int(limit)}",
            (_query(corpus, term), *condition.parameters),
        )
        return [(key, _count(rank), length) for key, rank, length in rows]

    def matching(self, corpus: str, terms: Sequence[str], condition: Condition, limit: int) -> list[int]:
        """Newest first: by the key, which is given in order."""
        return self._match(" | ".join(_query(corpus, term) for term in terms), condition, limit)

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
        """Let the server look each term up in each document."""
        ranks = "".join(f", ts_rank({_EQUAL}, terms, CAST(CAST(? AS text) AS tsquery))" for _ in terms)
        sql = f"SELECT key, length{ranks} FROM documents WHERE namespace = ? AND key = ANY(CAST(? AS bigint[]))"
        rows = self._connection.execute(sql, (*(_query(corpus, term) for term in terms), namespace, list(keys)))
        return [(key, length, [_count(rank) for rank in found]) for key, length, *found in rows]

    def terms(self, namespace: str, kind: str, ids: Sequence[str]) -> list[tuple[str, int, list[str]]]:
        """Read the words of the tsvectors, without the name of the corpus that stands before each."""
        sql = (
            "SELECT id, revision, length(corpus), tsvector_to_array(terms) FROM documents "
            "WHERE namespace = ? AND kind = ? AND id = ANY(CAST(? AS text[]))"
        )
        rows = self._connection.execute(sql, (namespace, kind, list(ids))).fetchall()
        return [(id_, revision, [term[start:] for term in terms]) for id_, revision, start, terms in rows]

    def newest(self, namespace: str) -> int:
        """Look at the end of their index."""
        sql = "SELECT coalesce(max(key), 0) FROM documents WHERE namespace = ?"
        [(newest,)] = self._connection.execute(sql, (namespace,)).fetchall()
        return int(newest)

    def ids(self, namespace: str, kind: str, keys: Sequence[int]) -> dict[int, str]:
        """Look them up."""
        sql = "SELECT key, id FROM documents WHERE namespace = ? AND key = ANY(CAST(? AS bigint[])) AND kind = ?"
        return dict(self._connection.execute(sql, (namespace, list(keys), kind)).fetchall())


def arrays_of(documents: Sequence[Document]) -> list[list[Any]]:
    """Return the columns of documents without a parent, in the order of `postgresql_inserts`."""
    rows = [(*one[:3], *one[4:9], terms_text(one)) for one in documents]
    return [[row[index] for row in rows] for index in range(9)]


def terms_text(document: Document) -> str:
    """Return a document's terms as the text of a tsvector, each with its places."""
    corpus = document.corpus
    places: dict[str, list[str]] = {}
    for place, term in enumerate(document.terms, 1):
        places.setdefault(term, []).append(str(min(place, _LAST_PLACE)))
    return " ".join(f"'{corpus}{term}':{','.join(found)}" for term, found in places.items())


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


def _query(corpus: str, term: str) -> str:
    return f"'{corpus}{term[:-1]}':*" if term.endswith("*") else f"'{corpus}{term}'"


def _count(rank: float) -> int:
    return 0 if rank <= 0 else bisect_left(_RANKS, rank - _TOLERANCE) + 1


def _in_words(corpus: str, expression: Expression) -> str:
    """Return an expression as a tsquery, https://www.postgresql.org/docs/current/datatype-textsearch.html."""
    if expression.operator == "phrase":
        return f"({' <-> '.join(_query(corpus, term) for term in expression.terms)})"
    left, right = (_in_words(corpus, side) for side in expression.sides)
    return f"({left} {_OPERATORS[expression.operator]} {right})"


_OPERATORS: dict[Any, str] = {"and": "&", "or": "|", "not": "& !"}
