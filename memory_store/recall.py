"""`Search`: what `Namespace.search` does, over the index, the vectors and the cache of earlier answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
from memory_store.durable.text_index import text_index
from memory_store.search.asked import Asked
from memory_store.search.fulltext import Corpus, rank_documents
from memory_store.search.results import Hit, Place, SearchResults, ordered, read_cursor, write_cursor

__all__ = ["Search"]

ANSWER_TTL_S = 300.0
_ANSWERS_BYTES = 16 << 20
# Candidates each part gives: what is not among them cannot come into a page.
_DEPTH = 100
# Pieces of what was left behind that a search brings in before it answers without the rest: about 5 ms each.
_MOST_PIECES = 40
# Part of a corpus that may change before it is counted again.
_STALE_SHARE = 0.05

Found = tuple[str, str]
"""Kind and id of a record that was found."""


class _Answer(NamedTuple):
    """Results, the position they are true at, how often the cache had been restarted by then, and their end."""

    results: SearchResults
    as_of: int
    restarts: int
    until: float
    bytes: int


class Search:
    """Searches one namespace of an open store.

    Args:
        namespace: which.
        access: the way to its tiers.
    """

    def __init__(self, namespace: str, access: TieredAccess) -> None:
        self._namespace, self._access = namespace, access
        self._answers: LRUCache[Any, _Answer] = LRUCache(_ANSWERS_BYTES, getsizeof=lambda answer: answer.bytes)
        self._counted: dict[str, tuple[int, int, float]] = {}

    async def search(self, asked: Asked, cursor: str | None) -> SearchResults:
        """Answer from what is known, or by searching."""
        self._access.require_usable()
        known = self._known(asked, cursor)
        if known is not None:
            return known
        place = None if cursor is None else read_cursor(asked.key, cursor)
        await self._access.coherence.catch_up()
        as_of, restarts = self._access.cache.position, self._access.cache.restarts
        results = await self._find(asked, place)
        if results.complete:
            size = 1024 + sum(hit.size for hit in results)
            if size <= _ANSWERS_BYTES // 8:
                answer = _Answer(results, as_of, restarts, boot_s() + ANSWER_TTL_S, size)
                self._answers[asked.key, cursor] = answer
        return results.again()

    def _known(self, asked: Asked, cursor: str | None) -> SearchResults | None:
        """Return what was found before, if nothing that it was found in has changed since."""
        answer = self._answers.get((asked.key, cursor))
        if answer is None:
            return None
        now, coherence, tier = boot_s(), self._access.coherence, self._access.cache
        if now >= coherence.fresh_until and not coherence.refresh(now, None, 0):
            return None
        changed = max(tier.space(kind, self._namespace).changed for kind in asked.reads)
        if changed > answer.as_of or tier.restarts != answer.restarts or now >= answer.until:
            del self._answers[asked.key, cursor]
            return None
        return answer.results.again()

    async def _find(self, asked: Asked, place: Place | None) -> SearchResults:
        depth = max(_DEPTH, 2 * (asked.limit + (0 if place is None else place.count)))
        by_text, complete = await self._by_text(asked, depth)
        scores = {found: {"text": score} for found, score in by_text.items()}
        ranked = ordered([(score, *found) for found, score in by_text.items()])
        return await self._page(asked, ranked, scores, place, complete)

    async def _page(
        self,
        asked: Asked,
        ranked: Sequence[tuple[float, str, str]],
        scores: dict[Found, dict[str, float]],
        place: Place | None,
        complete: bool,
    ) -> SearchResults:
        """Return the hits behind a place."""
        rest = ranked
        if place is not None:
            rest = [one for one in ranked if (-one[0], *one[1:]) > (-place.score, place.kind, place.id)]
        rows = await self._access.durable.scan.run(lambda connection: self._rows(connection, asked, rest))
        hits = [
            Hit(kind, rows[kind, id_], score, scores[kind, id_], asked.sought)
            for score, kind, id_ in rest[: asked.limit]
            if (kind, id_) in rows
        ]
        following = None
        if len(rest) > asked.limit:
            score, kind, id_ = rest[asked.limit - 1]
            count = asked.limit + (0 if place is None else place.count)
            following = write_cursor(asked.key, Place(count, score, kind, id_))
        return SearchResults(tuple(hits), following, complete)

    def _rows(self, connection: Connection, asked: Asked, ranked: Sequence[tuple[float, str, str]]) -> dict[Found, Row]:
        """Read the records of a page, without those that have changed meanwhile into what was not asked for."""
        rows: dict[Found, Row] = {}
        wanted = ranked[: asked.limit]
        with one_state(connection):
            for kind in dict.fromkeys(kind for _, kind, _ in wanted):
                ids = [id_ for _, of, id_ in wanted if of == kind]
                condition = asked.conditions[kind]
                if condition.ids is not None:
                    ids = meeting(connection, condition, ids)
                if ids:
                    found = read_by_id(connection, kind, self._namespace, ids)
                    rows.update({(kind, id_): row for id_, row in found.items()})
        return rows

    async def _by_text(self, asked: Asked, depth: int) -> tuple[dict[Found, float], bool]:
        """Return the scores of the best by text, and whether all that is stored was looked at."""
        run, indexer = self._access.durable.scan.run, self._access.shard.indexer
        for left in reversed(range(_MOST_PIECES)):
            found = await run(lambda connection: self._rank(connection, asked, depth, anyway=not left))  # noqa: B023
            if found is not None:
                break
            await indexer.bring_in(self._namespace)
        assert found is not None
        if left == 0:
            indexer.begin()
        return found, left > 0

    def _rank(self, connection: Connection, asked: Asked, depth: int, *, anyway: bool) -> dict[Found, float] | None:
        """Return the scores; None where something is still to be indexed, unless that shall not matter."""
        found: dict[Found, float] = {}
        with one_state(connection):
            if not anyway and is_behind(connection, self._access.shard.number, self._namespace):
                return None
            index = text_index(connection)
            for kind, condition in asked.conditions.items():
                corpus = self._corpus(connection, kind)
                matches = rank_documents(index, corpus, asked.terms, condition, depth)
                ids = index.ids(self._namespace, [match.key for match in matches])
                found.update({(kind, ids[match.key]): match.score for match in matches})
        return found

    def _corpus(self, connection: Connection, kind: str) -> Corpus:
        """Return a corpus, counted again when a twentieth of it may have changed."""
        changed = self._access.cache.space(kind, self._namespace).changed
        seen, count, average = self._counted.get(kind, (-1, 0, 0.0))
        if seen < 0 or changed < seen or changed - seen > count * _STALE_SHARE:
            count, average = text_index(connection).statistics(self._namespace, kind)
            self._counted[kind] = changed, count, average
        return Corpus(corpus_of(self._namespace, kind), self._namespace, count, average)
