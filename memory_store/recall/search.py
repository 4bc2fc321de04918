"""`Search`: what `Namespace.search` does, over the index, the vectors and the answers given before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from cachetools import LRUCache

from memory_store.access import TieredAccess
from memory_store.clock import boot_s
from memory_store.codec import Row
from memory_store.durable.connection import Connection
from memory_store.durable.log import one_state
from memory_store.errors import ConfigurationError
from memory_store.recall.by_text import ByText, Found, Ranked, in_order, rows_of
from memory_store.recall.models import Models
from memory_store.recall.moment import Moment
from memory_store.recall.selection import Candidate, are_comparable, select, terms_of_hits
from memory_store.recall.spaces import load_arrays
from memory_store.search.asked import Asked, Asker
from memory_store.search.fusion import fuse, vector_weight
from memory_store.search.results import Hit, Place, SearchResults, continued, read_cursor, write_cursor

__all__ = ["Search"]

_ANSWERS_BYTES = 16 << 20
# Candidates that each of two parts gives to be fused, and how many times as many where these are not enough.
_DEPTH, _DEEPER = 100, 4
# Hits that a reranker, or diversity, chooses among, at least.
_POOL = 50


class _Answer(NamedTuple):
    """Results, when they are true, and their size."""

    results: SearchResults
    moment: Moment
    bytes: int


class Best(NamedTuple):
    """The best, the hits chosen of them, whether all that is stored was looked at, and the position of what was read.

    That is None where it was read in several states of the database.
    """

    ranked: Ranked
    hits: list[Hit]
    complete: bool
    position: int | None


class Search:
    """Searches one namespace of an open store.

    Args:
        access: the way to the namespace.
        models: what vectors are made by, and where they are found.
    """

    def __init__(self, access: TieredAccess, models: Models) -> None:
        self._access, self._models = access, models
        self._asker = Asker(access.namespace)
        self._answers: LRUCache[Any, _Answer] = LRUCache(_ANSWERS_BYTES, getsizeof=lambda answer: answer.bytes)
        self._text = ByText(access)

    def ask(self, query: str, **arguments: Any) -> Asked:
        """Return what is asked in one form; see `search/asked.py`."""
        return self._asker.ask(self._access.dialect, query, **arguments)

    async def search(self, asked: Asked, cursor: str | None = None) -> SearchResults:
        """Answer from what is known, or by searching."""
        self._access.require_usable()
        known = self._known(asked, cursor)
        if known is not None:
            return known
        place = None if cursor is None else read_cursor(asked.key, cursor)
        moment = Moment.of(self._access)
        results, read_at = await self._find(asked, place)
        size = 1024 + sum(hit.size for hit in results)
        if results.complete and size <= _ANSWERS_BYTES // 8:
            moment = moment if read_at is None else moment._replace(position=read_at)
            self._answers[asked.key, cursor] = _Answer(results, moment, size)
        return results.again()

    def _known(self, asked: Asked, cursor: str | None) -> SearchResults | None:
        """Return what was found before, if nothing that it was found in has changed since."""
        answer = self._answers.get((asked.key, cursor))
        if answer is None:
            return None
        now, coherence = boot_s(), self._access.coherence
        if now >= coherence.fresh_until and not coherence.refresh(now, None, 0):
            return None
        if not answer.moment.lasts(self._access, asked.reads, now):
            del self._answers[asked.key, cursor]
            return None
        return answer.results.again()

    async def pool(self, asked: Asked) -> Best:
        """Return the best hits of which some are to be chosen."""
        size = max(_POOL, 3 * asked.limit)
        return await self._found(asked, size, lambda ranked: ranked[:size])

    async def chosen(self, asked: Asked, pool: Sequence[Hit]) -> tuple[list[Hit], float | None]:
        """Return the hits of a pool that a reranker puts first, or that differ most; and how much they differ."""
        candidates = [Candidate(hit) for hit in pool]
        if asked.diversity is not None:
            await load_arrays()
            vectors = await self._models.vectors_of(self._access, asked, pool)
            terms: list[list[str]] = [[] for _ in pool]
            if not are_comparable(vectors):
                read = partial(terms_of_hits, namespace=self._access.namespace, hits=pool)
                terms = await self._access.durable.scan.run(read)
            candidates = [Candidate(*of) for of in zip(pool, vectors, terms, strict=True)]
        return await select(asked, candidates, self._models.rerank)

    async def _find(self, asked: Asked, place: Place | None) -> tuple[SearchResults, int | None]:
        """Return the results, and the position of what was read; see `Best`."""
        if asked.diversity is not None or self._models.rerank is not None:
            if place is not None:
                raise ConfigurationError("a search with diversity or a reranker has one page: ask for more by `limit`")
            found = await self.pool(asked)
            hits, diversity = await self.chosen(asked, found.hits)
            return SearchResults(tuple(hits), None, found.complete, diversity), found.position
        return await self._page(asked, place)

    async def _page(self, asked: Asked, place: Place | None) -> tuple[SearchResults, int | None]:
        """Return the hits behind a place."""

        def page(ranked: Ranked) -> Ranked:
            start = 0 if place is None else continued(ranked, place)
            return ranked[start : start + asked.limit]

        enough = asked.limit + 1 + (0 if place is None else place.passed)
        found = await self._found(asked, enough, page)
        shown, following = page(found.ranked), None
        if shown and shown[-1] is not found.ranked[-1]:
            passed = asked.limit + (0 if place is None else continued(found.ranked, place))
            following = write_cursor(asked.key, Place(passed, *shown[-1][1:]))
        return SearchResults(tuple(found.hits), following, found.complete), found.position

    async def _found(self, asked: Asked, enough: int, choose: Callable[[Ranked], Ranked]) -> Best:
        """Return the best, so many where there are, and the hits chosen of them."""
        if self._models.play_no_part(asked):
            if asked.mode == "vector":
                raise ConfigurationError(
                    "a search by vector needs a model, MemoryStore(url, embed=...), or the vector itself, vector=..."
                )
            ranked, rows, complete, position = await self._text.read(asked, enough, choose)
            hits = [Hit(kind, row, score, {"text": score}, asked.sought) for (score, kind, _), row in rows]
            return Best(ranked, hits, complete, position)
        if asked.mode == "vector":
            found, complete = await self._by_vector(asked, enough)
            ranked, scores = in_order(found), {key: {"vector": score} for key, score in found.items()}
        else:
            ranked, scores, complete = await self._fused(asked, enough)
        return Best(ranked, await self._hits(asked, choose(ranked), scores), complete, None)

    async def _fused(self, asked: Asked, enough: int) -> tuple[Ranked, dict[Found, dict[str, float]], bool]:
        """Return what both parts find, the scores of each, and whether all there is was looked at.

        Fused ranks depend on how deep the parts go. So all pages go through the same depths, and what a deeper one
        finds comes behind what was there: nothing moves from one page to another.
        """
        weight = vector_weight(self._models.weight(asked.model), len(asked.sought))
        ranked: list[tuple[float, str, str]] = []
        scores: dict[Found, dict[str, float]] = {}
        depth = _DEPTH
        while True:
            (by_text, all_text), (by_vector, all_vectors) = await asyncio.gather(
                self._text.scores(asked, depth), self._by_vector(asked, depth)
            )
            fused = fuse(_best_first(by_text), _best_first(by_vector), weight)
            least = ranked[-1][0] if ranked else 1.0
            added = {found: min(score, least) for found, score in fused.items() if found not in scores}
            ranked += in_order(added)
            for found in added:
                parts = (("text", by_text), ("vector", by_vector))
                scores[found] = {part: of[found] for part, of in parts if found in of}
            if len(ranked) >= enough or not added:
                return ranked, scores, all_text and all_vectors
            depth *= _DEEPER

    async def _by_vector(self, asked: Asked, depth: int) -> tuple[dict[Found, float], bool]:
        """Return how near the nearest embeddings are, or the episodes they belong to, and whether of all there are."""
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

    async def _hits(self, asked: Asked, ranked: Ranked, scores: dict[Found, dict[str, float]]) -> list[Hit]:
        rows = await self._access.durable.scan.run(lambda connection: self._rows(connection, asked, ranked))
        return [
            Hit(kind, rows[kind, id_], score, scores[kind, id_], asked.sought)
            for score, kind, id_ in ranked
            if (kind, id_) in rows
        ]

    def _rows(self, connection: Connection, asked: Asked, ranked: Ranked) -> dict[Found, Row]:
        """Read the records found, without those that have changed meanwhile into what was not asked for."""
        # One kind is read by one statement.
        with one_state(connection) if len({kind for _, kind, _ in ranked}) > 1 else nullcontext():
            return rows_of(connection, asked, self._access.namespace, ranked, is_ranked_now=False)


def _best_first(found: dict[Found, float]) -> list[Found]:
    return [(kind, id_) for _, kind, id_ in in_order(found)]
