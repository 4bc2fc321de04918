"""`Search`: what `Namespace.search` does, over the index, the vectors and the answers given before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from cachetools import LRUCache

from memory_store.access import TieredAccess
from memory_store.clock import boot_s
from memory_store.codec import Row
from memory_store.durable.conditions import meeting
from memory_store.durable.connection import Connection
from memory_store.durable.documents import corpus_of
from memory_store.durable.indexing import is_behind
from memory_store.durable.log import one_state
from memory_store.durable.reader import read_by_id
from memory_store.durable.text_index import TextIndex, text_index
from memory_store.errors import ConfigurationError
from memory_store.recall.models import Models
from memory_store.recall.selection import Candidate, select
from memory_store.recall.spaces import load_arrays
from memory_store.search.asked import Asked
from memory_store.search.fulltext import Corpus, rank_documents
from memory_store.search.fusion import fuse, vector_weight
from memory_store.search.results import Hit, Place, SearchResults, continued, ordered, read_cursor, write_cursor

__all__ = ["Search"]

ANSWER_TTL_S = 300.0
_ANSWERS_BYTES = 16 << 20
# Candidates that each of two parts gives to be fused, and how many times as many where these are not enough.
_DEPTH, _DEEPER = 100, 4
# Hits that a reranker, or diversity, chooses among, at least.
_POOL = 50
# Part of a corpus that may change before it is counted again.
_STALE_SHARE = 0.05

Found: TypeAlias = tuple[str, str]
"""Kind and id of a record that was found."""
Ranked: TypeAlias = Sequence[tuple[float, str, str]]
"""Score, kind and id of what was found, best first."""


class _Answer(NamedTuple):
    """Results, the position they are true at, how often the cache had been restarted by then, and their end."""

    results: SearchResults
    as_of: int
    restarts: int
    until: float
    bytes: int


class _Counted(NamedTuple):
    """A corpus as it was counted, after which commit and up to which key."""

    changed: int
    newest: int
    corpus: Corpus


class Search:
    """Searches one namespace of an open store.

    Args:
        access: the way to the namespace.
        models: what vectors are made by, and where they are found.
    """

    def __init__(self, access: TieredAccess, models: Models) -> None:
        self._access, self._models = access, models
        self._answers: LRUCache[Any, _Answer] = LRUCache(_ANSWERS_BYTES, getsizeof=lambda answer: answer.bytes)
        self._counted: dict[str, _Counted] = {}

    async def search(self, asked: Asked, cursor: str | None = None) -> SearchResults:
        """Answer from what is known, or by searching."""
        self._access.require_usable()
        known = self._known(asked, cursor)
        if known is not None:
            return known
        place = None if cursor is None else read_cursor(asked.key, cursor)
        await self._access.coherence.catch_up()
        as_of, restarts = self._access.cache.position, self._access.cache.restarts
        results = await self._find(asked, place)
        size = 1024 + sum(hit.size for hit in results)
        if results.complete and size <= _ANSWERS_BYTES // 8:
            self._answers[asked.key, cursor] = _Answer(results, as_of, restarts, boot_s() + ANSWER_TTL_S, size)
        return results.again()

    def _known(self, asked: Asked, cursor: str | None) -> SearchResults | None:
        """Return what was found before, if nothing that it was found in has changed since."""
        answer = self._answers.get((asked.key, cursor))
        if answer is None:
            return None
        now, coherence, tier = boot_s(), self._access.coherence, self._access.cache
        if now >= coherence.fresh_until and not coherence.refresh(now, None, 0):
            return None
        changed = max([tier.space(kind, self._access.namespace).changed for kind in asked.reads])
        if changed > answer.as_of or tier.restarts != answer.restarts or now >= answer.until:
            del self._answers[asked.key, cursor]
            return None
        return answer.results.again()

    async def pool(self, asked: Asked, size: int) -> tuple[list[Hit], bool]:
        """Return the best hits of which some are to be chosen, and whether all that is stored was looked at."""
        ranked, scores, complete = await self._ranked(asked, size)
        return await self._hits(asked, ranked[:size], scores), complete

    async def chosen(self, asked: Asked, pool: Sequence[Hit]) -> tuple[list[Hit], float | None]:
        """Return the hits of a pool that a reranker puts first, or that differ most; and how much they differ."""
        vectors: list[Any] = [None] * len(pool)
        if asked.diversity is not None:
            await load_arrays()
            vectors = await self._models.vectors_of(self._access, asked, pool)
        candidates = [Candidate(hit, vector) for hit, vector in zip(pool, vectors, strict=True)]
        return await select(asked, candidates, self._models.rerank)

    async def _find(self, asked: Asked, place: Place | None) -> SearchResults:
        if asked.diversity is not None or self._models.rerank is not None:
            if place is not None:
                raise ConfigurationError("a search with diversity or a reranker has one page: ask for more by `limit`")
            pool, complete = await self.pool(asked, max(_POOL, 3 * asked.limit))
            hits, diversity = await self.chosen(asked, pool)
            return SearchResults(tuple(hits), None, complete, diversity)
        enough = asked.limit + 1 + (0 if place is None else place.passed)
        ranked, scores, complete = await self._ranked(asked, enough)
        return await self._page(asked, ranked, scores, place, complete)

    async def _ranked(self, asked: Asked, enough: int) -> tuple[Ranked, dict[Found, dict[str, float]], bool]:
        """Return the best, so many where there are, their scores by part, and whether all there is was looked at."""
        if asked.mode == "text" or not (self._models.has_any or asked.vector is not None):
            if asked.mode == "vector":
                raise ConfigurationError(
                    "a search by vector needs a model, MemoryStore(url, embed=...), or the vector itself, vector=..."
                )
            found, complete = await self._by_text(asked, enough)
            return _in_order(found), {key: {"text": score} for key, score in found.items()}, complete
        if asked.mode == "vector":
            found, complete = await self._by_vector(asked, enough)
            return _in_order(found), {key: {"vector": score} for key, score in found.items()}, complete
        return await self._fused(asked, enough)

    async def _fused(self, asked: Asked, enough: int) -> tuple[Ranked, dict[Found, dict[str, float]], bool]:
        """Return as `_ranked` what both parts find.

        Fused ranks depend on how deep the parts go. So all pages go through the same depths, and what a deeper one
        finds comes behind what was there: nothing moves from one page to another.
        """
        weight = vector_weight(self._models.weight(asked.model), len(asked.sought))
        ranked: list[tuple[float, str, str]] = []
        scores: dict[Found, dict[str, float]] = {}
        depth = _DEPTH
        while True:
            (by_text, all_text), (by_vector, all_vectors) = await asyncio.gather(
                self._by_text(asked, depth), self._by_vector(asked, depth)
            )
            fused = fuse(_best_first(by_text), _best_first(by_vector), weight)
            least = ranked[-1][0] if ranked else 1.0
            added = {found: min(score, least) for found, score in fused.items() if found not in scores}
            ranked += _in_order(added)
            for found in added:
                parts = (("text", by_text), ("vector", by_vector))
                scores[found] = {part: of[found] for part, of in parts if found in of}
            if len(ranked) >= enough or not added:
                return ranked, scores, all_text and all_vectors
            depth *= _DEEPER

    async def _by_vector(self, asked: Asked, depth: int) -> tuple[dict[Found, float], bool]:
        """Return the similarities of the nearest embeddings, or of the episodes they belong to, as `_by_text`."""
        if asked.of_vectors is None:
            return {}, True
        if "embedding" in asked.conditions:
            nearest, complete = await self._models.nearest(self._access, asked, depth, asked.of_vectors)
            return {("embedding", id_): score for id_, _, score in nearest}, complete
        # An episode is as near as the nearest of its vectors, of which it may have any number.
        found: dict[Found, float] = {}
        most = max(_DEPTH, 2 * depth)
        while True:
            nearest, complete = await self._models.nearest(self._access, asked, most, asked.of_vectors)
            for _, parent, score in nearest:
                found.setdefault(("episode", parent), score)
            if len(found) >= depth or len(nearest) < most:
                return dict(islice(found.items(), depth)), complete
            most *= _DEEPER

    async def _page(
        self,
        asked: Asked,
        ranked: Ranked,
        scores: dict[Found, dict[str, float]],
        place: Place | None,
        complete: bool,
    ) -> SearchResults:
        """Return the hits behind a place."""
        start = 0 if place is None else continued(ranked, place)
        page = ranked[start : start + asked.limit]
        hits = await self._hits(asked, page, scores)
        following = None
        if len(ranked) > start + asked.limit:
            following = write_cursor(asked.key, Place(start + asked.limit, *page[-1][1:]))
        return SearchResults(tuple(hits), following, complete)

    async def _hits(self, asked: Asked, ranked: Ranked, scores: dict[Found, dict[str, float]]) -> list[Hit]:
        rows = await self._access.durable.scan.run(lambda connection: self._rows(connection, asked, ranked))
        return [
            Hit(kind, rows[kind, id_], score, scores[kind, id_], asked.sought)
            for score, kind, id_ in ranked
            if (kind, id_) in rows
        ]

    def _rows(self, connection: Connection, asked: Asked, ranked: Ranked) -> dict[Found, Row]:
        """Read the records found, without those that have changed meanwhile into what was not asked for."""
        rows: dict[Found, Row] = {}
        with one_state(connection):
            for kind in dict.fromkeys(kind for _, kind, _ in ranked):
                ids = [id_ for _, of, id_ in ranked if of == kind]
                condition = asked.conditions[kind]
                if condition.ids is not None:
                    ids = meeting(connection, condition, ids)
                found = read_by_id(connection, kind, self._access.namespace, ids)
                rows.update({(kind, id_): row for id_, row in found.items()})
        return rows

    async def _by_text(self, asked: Asked, depth: int) -> tuple[dict[Found, float], bool]:
        """Return the scores of the best by text, and whether all that is stored was looked at."""
        access = self._access
        rank = partial(self._rank, asked=asked, depth=depth)
        return await access.shard.indexer.read(access.durable.scan, access.namespace, rank)

    def _rank(self, connection: Connection, anyway: bool, *, asked: Asked, depth: int) -> dict[Found, float] | None:
        """Return the scores; None where something is still to be indexed, unless that shall not matter."""
        found: dict[Found, float] = {}
        namespace = self._access.namespace
        with one_state(connection):
            if not anyway and is_behind(connection, self._access.shard.number, namespace):
                return None
            index = text_index(connection)
            newest = index.newest(namespace)
            for kind, condition in asked.conditions.items():
                corpus = self._corpus(index, kind, newest)
                if corpus.documents:
                    matches = rank_documents(index, corpus, asked.terms, condition, depth)
                    ids = index.ids(namespace, kind, [match.key for match in matches])
                    found.update({(kind, ids[match.key]): match.score for match in matches if match.key in ids})
        return found

    def _corpus(self, index: TextIndex, kind: str, newest: int) -> Corpus:
        """Return a corpus, counted again when a twentieth of it may have changed."""
        namespace = self._access.namespace
        changed = self._access.cache.space(kind, namespace).changed
        known = self._counted.get(kind)
        if known is None or changed < known.changed or _grew(known, changed, newest):
            name = corpus_of(namespace, kind)
            corpus = Corpus(name, namespace, *index.statistics(name, namespace, kind), {})
            known = self._counted[kind] = _Counted(changed, newest, corpus)
        return known.corpus


def _grew(known: _Counted, changed: int, newest: int) -> bool:
    """Return whether so much has changed since: one commit may bring many documents, or change the same one again."""
    return max(changed - known.changed, abs(newest - known.newest)) > known.corpus.documents * _STALE_SHARE


def _in_order(found: dict[Found, float]) -> Ranked:
    return ordered([(score, *key) for key, score in found.items()])


def _best_first(found: dict[Found, float]) -> list[Found]:
    return [(kind, id_) for _, kind, id_ in _in_order(found)]
