"""Which documents have a term, and how often, as PostgreSQL's index alone can say it.

A GIN index does not say how often a lexeme is in a document, and to ask each document by `ts_rank` takes 12 us of its
reading and unpacking: 250 ms for 20,000. So a term that is in a document more than once is there a second time without
places, marked with how often: once for twice, another for three times, another for more. 20,000 postings take 20 ms so.
Of those few with more than three the count follows from `ts_rank` of the term alone, which is
sum(1/j^2, j = 1..count) / (pi^2 / 6) where all weights are 1 (src/backend/utils/adt/tsrank.c).
"""

# ruff: noqa: S608 - made of our own names

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, chain
from math import pi
from typing import Any

from memory_store.durable.connection import Connection
from memory_store.durable.text_index import Condition, Document, Posting

__all__ = ["EQUAL", "SIGN", "count_of", "query_of", "read_postings", "terms_text"]

EQUAL = "CAST('{1,1,1,1}' AS real[])"
"""What `ts_rank` takes for weights: all are 1."""

SIGN = "+"
"""Stands before a term that is marked with how often it is there: no term begins with it."""

# The last stands for so often or more.
_MARKS = (2, 3, 4)
# A tsvector keeps no more places of a term, and no place behind this one.
_MOST_PLACES, _LAST_PLACE = 255, 16_383
_RANKS = [total / (pi * pi / 6) for total in accumulate(1 / (j * j) for j in range(1, _MOST_PLACES + 1))]
# Neighbouring ranks differ by more than this; `ts_rank` is a float of 24 bits.
_TOLERANCE = 1e-6


def terms_text(document: Document) -> str:
    """Return a document's terms as the text of a tsvector, each with its places, and marked again if it has several."""
    corpus = document.corpus
    places: dict[str, list[str]] = {}
    for place, term in enumerate(document.terms, 1):
        places.setdefault(term, []).append(str(min(place, _LAST_PLACE)))
    plain = [f"'{corpus}{term}':{','.join(found)}" for term, found in places.items()]
    marked = [_marked(corpus, term, min(len(found), _MARKS[-1])) for term, found in places.items() if len(found) > 1]
    return " ".join(chain(plain, marked))


def query_of(corpus: str, term: str) -> str:
    """Return a term as a tsquery; one that ends with `*` is the beginning of terms."""
    return f"'{corpus}{term[:-1]}':*" if term.endswith("*") else f"'{corpus}{term}'"


def _marked(corpus: str, term: str, times: int) -> str:
    return f"'{corpus}{SIGN}{times}{term}'"


def count_of(rank: float) -> int:
    """Return how often a term is in a document by its rank there."""
    return 0 if rank <= 0 else bisect_left(_RANKS, rank - _TOLERANCE) + 1


def read_postings(
    connection: Connection,
    sought: Sequence[tuple[str, str]],
    condition: Condition | None,
    limit: int,
    figures: str = "",
    given: Sequence[Any] = (),
) -> tuple[list[list[Posting]], list[int]]:
    """Return the postings of terms, and figures of the same moment, by one statement: arrays for each term and mark.

    Args:
        connection: to the server.
        sought: corpora with terms, none of them a beginning of terms.
        condition: what the documents must meet; None for all of the corpus.
        limit: how many of each are read.
        figures: expressions of integers, for which the statement is asked as well.
        given: their parameters.
    """
    within, parameters = ("true", ()) if condition is None else (condition.sql, condition.parameters)
    having = "FROM documents AS d WHERE d.terms @@ asked.query"
    ranks = f"CASE WHEN asked.times < {_MARKS[-1]} THEN NULL ELSE ts_rank({EQUAL}, d.terms, asked.whole) END"
    beside = f"SELECT 0, 0, ARRAY[{figures}], CAST(NULL AS bigint[]), CAST(NULL AS real[])"
    plain = (
        "SELECT asked.place, 1, found.* FROM unnest(CAST(? AS text[])::tsquery[]) WITH ORDINALITY "
        "AS asked(query, place), LATERAL (SELECT array_agg(d.key), array_agg(d.length), CAST(NULL AS real[]) "
        f"FROM (SELECT d.key, d.length {having} AND {within} LIMIT {int(limit)}) AS d) AS found"
    )
    marked = (
        "SELECT asked.place, asked.times, found.* FROM unnest(CAST(? AS text[])::tsquery[], CAST(? AS bigint[]), "
        "CAST(? AS int[]), CAST(? AS text[])::tsquery[]) AS asked(query, place, times, whole), LATERAL "
        f"(SELECT array_agg(d.key), CAST(NULL AS bigint[]), array_agg({ranks}) "
        f"FROM (SELECT d.key, d.terms {having}) AS d) AS found"
    )
    queries = [query_of(*named) for named in sought]
    marks = [
        (_marked(corpus, term, times), place, times, queries[place - 1])
        for place, (corpus, term) in enumerate(sought, 1)
        for times in _MARKS
    ]
    parts = [*([beside] if figures else []), *([plain, marked] if sought else [])]
    asked = [queries, *parameters, *map(list, zip(*marks, strict=True))] if sought else []
    found: list[tuple[Sequence[int], Sequence[int]]] = [((), ())] * len(sought)
    counts: list[dict[int, int]] = [{} for _ in sought]
    numbers: list[int] = []
    for place, times, keys, lengths, given_ranks in connection.execute(" UNION ALL ".join(parts), [*given, *asked]):
        if place == 0:
            numbers = keys
        elif lengths is not None:
            found[place - 1] = keys, lengths
        elif keys is not None:
            more = [times] * len(keys) if times < _MARKS[-1] else map(count_of, given_ranks)
            counts[place - 1].update(zip(keys, more, strict=True))
    return [_merged(*plain, more) for plain, more in zip(found, counts, strict=True)], numbers


def _merged(keys: Sequence[int], lengths: Sequence[int], counts: dict[int, int]) -> list[Posting]:
    known = counts.get
    return [(key, known(key, 1), length) for key, length in zip(keys, lengths, strict=True)]
