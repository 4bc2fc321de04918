"""Ranking of documents by their terms: BM25, read from the rarest term on, with bounded work.

BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009) with k1 = 1.2 and b = 0.9; a term that more
than half of all documents have counts for nothing, and a term said twice in a query counts once. Measured, see
`text/terms.py`: b = 0.75, the customary value, finds less among long texts (BEAM .514 / .362), and as much among short.

Terms are read from the rarest on. It ends when the rest could not lift another document into the result (MaxScore:
Turtle and Flood, "Query Evaluation", 1995), or when 20,000 postings have been read; what the rest adds to the best
documents is then looked up in these alone. Where what was read is less than was asked for, and in a query of nothing
but common words, the newest thousand documents that have one of the others are ranked too. So no query takes longer
because documents are many.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from memory_store.durable.text_index import Condition, TextIndex
from memory_store.text.queries import Expression

__all__ = ["Corpus", "Match", "rank_documents"]

_K1, _B = 1.2, 0.9
_MOST_POSTINGS = 20_000
_NEWEST = 1_000
# Documents whose scores are completed with the terms that were not read, at least.
_COMPLETED = 200
# A condition that so few documents meet is answered by looking at each of these: up to the second number where the
# terms have as many postings, since to ask the condition of one takes as long.
_FEW, _MET = 500, 2_500
# Unless reading the postings takes less: so many in all, each asked the condition, or so many a document that meets it,
# picked by key. To look at a document takes 5 to 20 us, to read a posting 0.8, to ask it the condition 10.
_FEW_POSTINGS, _POSTINGS_A_LOOK = 100, 5
# A term is common that more than this share of the documents have; so many of them are remembered at most.
_COMMON_SHARE, _MOST_COMMON = 0.02, 10_000
# What a term counts that more than half of all documents have: enough to put those that have it first.
_LEAST = 1e-6


class Corpus(NamedTuple):
    """The documents of a kind in a namespace: their name in the index, how many, how long on average.

    `common` remembers how many documents have each term that was found to be common: counting these takes longest, and
    they stay common as long as the corpus is about as large.
    """

    name: str
    namespace: str
    documents: int
    average: float
    common: dict[str, int]


class Match(NamedTuple):
    """A document that was found: its key and its score."""

    key: int
    score: float


def rank_documents(
    index: TextIndex, corpus: Corpus, query: Sequence[str] | Expression, within: Condition, limit: int
) -> list[Match]:
    """Return the best documents, best first; those of equal score by key, oldest first.

    A copy comes behind what it is a copy of, as in FTS5: what is written later moves nothing that a page has shown. On
    CoSQA, where two of three queries find copies, nDCG@10 is .621 so, and .599 the other way round.

    Args:
        index: of the database, in a transaction that shows one state.
        corpus: what is searched.
        query: the terms sought, or an expert query.
        within: what documents must meet, the corpus included.
        limit: how many are wanted.
    """
    ranking = _Ranking(index, corpus, within, limit)
    if isinstance(query, Expression):
        sought = list(dict.fromkeys(query.sought()))
        keys = index.matching_expression(corpus.name, query, within, _MOST_POSTINGS)
        return ranking.of(ranking.likeliest(keys, sought), sought)
    terms = list(dict.fromkeys(query))
    if not terms:
        return []
    if within.ids is not None and (few := ranking.narrow(terms)) is not None:
        return ranking.of_few(few, terms)
    return ranking.by_terms(terms)


class _Ranking:
    def __init__(self, index: TextIndex, corpus: Corpus, within: Condition, limit: int) -> None:
        self._index, self._corpus, self._within, self._limit = index, corpus, within, limit
        self._share = _B / max(corpus.average, 1.0)
        self._met: frozenset[int] | None = None

    def narrow(self, terms: Sequence[str]) -> list[int] | None:
        """Find out what meets the condition, unless it is less to ask that of each posting.

        Returns:
            The documents to look at, one by one; None where postings are to be read.
        """
        weights = self._weights(terms)
        postings = sum(self._frequencies[term] for term in terms)
        is_plain = min(weights.values()) > _LEAST  # else `by_terms` leaves the most common terms out
        if is_plain and postings <= _FEW_POSTINGS:
            return None
        most = max(_FEW, min(postings, _MET))
        met = self._index.meeting(self._within, most + 1)
        if len(met) > most:
            return None
        if not is_plain or postings > _POSTINGS_A_LOOK * len(met):
            return met
        self._met = frozenset(met)
        return None

    def likeliest(self, keys: Sequence[int], terms: Sequence[str]) -> Sequence[int]:
        """Return those of these documents, newest first, that are worth looking at, one by one: a thousand at most.

        By what the rarer terms count, as far as their postings can be read; where none can, the newest.
        """
        if len(keys) <= _NEWEST:
            return keys
        weights, read = self._weights(terms), 0
        there = [term for term in terms if self._frequencies[term]]
        scores, self._met = dict.fromkeys(keys, 0.0), frozenset(keys)
        for term in sorted(there, key=lambda term: -weights[term]):
            read += self._frequencies[term]
            if read > _MOST_POSTINGS:
                break
            self._add(scores, term, weights[term])
        if not any(scores.values()):
            return keys[:_NEWEST]
        return heapq.nlargest(_NEWEST, keys, key=lambda key: (scores[key], -key))

    def of(self, keys: Sequence[int], terms: Sequence[str]) -> list[Match]:
        """Rank these documents; those that have none of the terms are left out."""
        scores = dict.fromkeys(keys, 0.0)
        self._complete(scores, terms, self._weights(terms))
        return self._best({key: score for key, score in scores.items() if score > 0})

    def of_few(self, keys: Sequence[int], terms: Sequence[str]) -> list[Match]:
        """Rank these documents as `by_terms` would: where some have a rarer term, without those that have none."""
        scores = dict.fromkeys(keys, 0.0)
        having = self._complete(scores, terms, self._weights(terms))
        return self._best({key: score for key, score in scores.items() if score > 0 and (key in having or not having)})

    def by_terms(self, terms: Sequence[str]) -> list[Match]:
        """Rank whatever has one of the terms."""
        weights = self._weights(terms)
        there = [term for term in terms if self._frequencies[term]]
        rare = sorted((term for term in there if weights[term] > _LEAST), key=lambda term: -weights[term])
        scores: dict[int, float] = {}
        read = 0
        unread: list[str] = []
        for place, term in enumerate(rare):
            if read + self._frequencies[term] > _MOST_POSTINGS or self._is_settled(scores, rare[place:], weights):
                unread = rare[place:]
                break
            read += self._add(scores, term, weights[term])
        if len(scores) < self._limit and (unread or not scores):
            others = unread if scores else there
            newest = self._index.matching(self._corpus.name, others, self._within, _NEWEST) if others else []
            return self.of([*scores, *newest], terms)
        if unread:
            count = self._within_reach(scores, unread, weights)
            # The oldest of equal ones, as in the result.
            scores = dict(heapq.nlargest(count, scores.items(), key=lambda item: (item[1], -item[0])))
            self._complete(scores, unread, weights)
        return self._best(scores)

    def _weights(self, terms: Sequence[str]) -> dict[str, float]:
        """Return what each term counts: its inverse document frequency."""
        common, total = self._corpus.common, max(self._corpus.documents, 1)
        asked = [term for term in terms if term not in common]
        found = self._index.frequencies(self._corpus.name, asked, self._corpus.namespace, total) if asked else []
        counted = dict(zip(asked, found, strict=True))
        if len(common) < _MOST_COMMON:
            common.update((term, count) for term, count in counted.items() if count > total * _COMMON_SHARE)
        self._frequencies = {term: common[term] if term in common else counted[term] for term in terms}
        return {
            term: max(_LEAST, math.log((max(total - count, 0) + 0.5) / (count + 0.5)))
            for term, count in self._frequencies.items()
        }

    def _is_settled(self, scores: dict[int, float], rest: Sequence[str], weights: dict[str, float]) -> bool:
        """Return whether a document that has none of the terms read so far can no more come among the best."""
        if len(scores) < self._limit or self._frequencies[rest[0]] < self._limit:
            return False
        return heapq.nlargest(self._limit, scores.values())[-1] >= self._most(rest, weights)

    def _most(self, terms: Sequence[str], weights: dict[str, float]) -> float:
        """Return what these terms add to a score at most."""
        return sum(weights[term] for term in terms) * (_K1 + 1)

    def _within_reach(self, scores: dict[int, float], unread: Sequence[str], weights: dict[str, float]) -> int:
        """Return how many documents to complete: those that the rest could lift among the best, within bounds."""
        least = heapq.nlargest(self._limit, scores.values())[-1] - self._most(unread, weights)
        reached = sum(score >= least for score in scores.values())
        return max(_COMPLETED, 2 * self._limit, min(reached, _NEWEST))

    def _add(self, scores: dict[int, float], term: str, weight: float) -> int:
        within = self._within if self._met is None else self._within._replace(ids=None)
        postings = self._index.postings(self._corpus.name, term, within, _MOST_POSTINGS)
        if self._met is not None:
            postings = [posting for posting in postings if posting[0] in self._met]
        most, least, slope = weight * (_K1 + 1), _K1 * (1 - _B), _K1 * self._share
        gains = [(key, most * count / (count + least + slope * length)) for key, count, length in postings]
        if not scores:  # half the time of adding them up
            scores.update(gains)
        else:
            known = scores.get
            for key, gain in gains:
                scores[key] = known(key, 0.0) + gain
        return len(postings)

    def _complete(self, scores: dict[int, float], terms: Sequence[str], weights: dict[str, float]) -> set[int]:
        """Add what the terms count to the scores; return those that have a term that not more than half have."""
        rarer = [place for place, term in enumerate(terms) if weights[term] > _LEAST]
        having: set[int] = set()
        found = self._index.counts(self._corpus.namespace, list(scores), self._corpus.name, terms)
        for key, length, counts in found:
            dampened = _K1 * (1 - _B + self._share * length)
            scores[key] += sum(
                weights[term] * count * (_K1 + 1) / (count + dampened)
                for term, count in zip(terms, counts, strict=True)
            )
            if any(counts[place] for place in rarer):
                having.add(key)
        return having

    def _best(self, scores: dict[int, float]) -> list[Match]:
        # By scores alone first: pairs take five times as long to compare.
        best = heapq.nlargest(self._limit, scores.values())
        least = best[-1] if best else 0.0
        found = [Match(key, score) for key, score in scores.items() if score >= least]
        return sorted(found, key=lambda match: (-match.score, match.key))[: self._limit]
