"""`ByText`: the best records of a namespace by their text, ranked and read in one state of the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

from memory_store.access import TieredAccess
from memory_store.codec import Row
from memory_store.durable.conditions import read_meeting
from memory_store.durable.connection import Connection
from memory_store.durable.documents import corpus_of
from memory_store.durable.log import one_state
from memory_store.durable.reader import read_by_id
from memory_store.durable.text_index import TextIndex, text_index
from memory_store.search.asked import Asked
from memory_store.search.fulltext import Corpus, Match, rank_documents
from memory_store.search.results import ordered
from memory_store.text.queries import Expression

T = TypeVar("T")

__all__ = ["ByText", "Found", "Ranked", "in_order", "rows_of"]

Found: TypeAlias = tuple[str, str]
"""Kind and id of a record that was found."""
Ranked: TypeAlias = Sequence[tuple[float, str, str]]
"""Score, kind and id of what was found, best first."""

# Part of a corpus that may change before it is counted again.
_STALE_SHARE = 0.05


class _Counted(NamedTuple):
    """A corpus as it was counted, after which commit and up to which key."""

    changed: int
    newest: int
    corpus: Corpus


class ByText:
    """Ranks the records of one namespace by their text.

    Args:
        access: the way to the namespace.
    """

    def __init__(self, access: TieredAccess) -> None:
        self._access = access
        self._counted: dict[str, _Counted] = {}

    async def scores(self, asked: Asked, depth: int) -> tuple[dict[Found, float], bool]:
        """Return the scores of the best, so many at most, and whether all that is stored was looked at."""
        (scores, _), complete = await self._run(partial(self._scores, asked=asked, depth=depth))
        return scores, complete

    async def read(
        self, asked: Asked, depth: int, choose: Callable[[Ranked], Ranked]
    ) -> tuple[Ranked, list[tuple[tuple[float, str, str], Row]], bool, int]:
        """Return the best, those that are chosen of them with their rows, and what state of the database they are of.

        In one go: to ask the database a second time takes as long as a rare word.

        Returns:
            The best; those chosen; whether all that is stored was looked at; the position of the newest commit.
        """
        find = partial(self._read, asked=asked, depth=depth, choose=choose)
        (ranked, chosen, position), complete = await self._run(find)
        return ranked, chosen, complete, position

    async def _run(self, find: Callable[[Connection, bool], T | None]) -> tuple[T, bool]:
        access = self._access

        def found(connection: Connection, anyway: bool) -> T | None:
            with one_state(connection):
                return find(connection, anyway)

        return await access.shard.indexer.read(access.durable.scan, access.namespace, found)

    def _read(
        self, connection: Connection, anyway: bool, *, asked: Asked, depth: int, choose: Callable[[Ranked], Ranked]
    ) -> tuple[Ranked, list[tuple[tuple[float, str, str], Row]], int] | None:
        found = self._scores(connection, anyway, asked=asked, depth=depth)
        if found is None:
            return None
        scores, position = found
        ranked = in_order(scores)
        chosen = choose(ranked)
        rows = rows_of(connection, asked, self._access.namespace, chosen, is_ranked_now=True)
        return ranked, [(one, rows[one[1:]]) for one in chosen if one[1:] in rows], position

    def _scores(
        self, connection: Connection, anyway: bool, *, asked: Asked, depth: int
    ) -> tuple[dict[Found, float], int] | None:
        """Return the scores, and the position; None where something is still to be indexed, unless `anyway`."""
        namespace = self._access.namespace
        index = text_index(connection)
        state = index.state(self._access.shard.number, namespace, list(self._sought(asked)))
        if state.is_behind and not anyway:
            return None
        matches: list[tuple[str, Match]] = []
        for kind, condition in asked.conditions.items():
            corpus = self._corpus(index, kind, state.newest)
            if corpus.documents:
                # Documents that are behind their records cannot say what these are like.
                within = condition._replace(keys=None) if anyway else condition
                ranked = rank_documents(index, corpus, asked.terms, within, depth)
                matches += [(kind, match) for match in ranked]
        ids = index.ids(namespace, [match.key for _, match in matches]) if matches else {}
        named = ((ids.get(match.key, ("", "")), kind, match.score) for kind, match in matches)
        return {found: score for found, kind, score in named if found[0] == kind}, state.position

    def _sought(self, asked: Asked) -> Iterator[tuple[str, str]]:
        """Yield the terms whose postings are likely to be read, with their corpora: all but those known as common."""
        if not isinstance(asked.terms, Expression):
            for kind in asked.conditions:
                known = self._counted.get(kind)
                name, common = corpus_of(self._access.namespace, kind), known.corpus.common if known else {}
                yield from ((name, term) for term in dict.fromkeys(asked.terms) if term not in common)

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


def in_order(found: dict[Found, float]) -> Ranked:
    """Return what was found, best first."""
    return ordered([(score, *key) for key, score in found.items()])


def rows_of(
    connection: Connection, asked: Asked, namespace: str, ranked: Ranked, *, is_ranked_now: bool
) -> dict[Found, Row]:
    """Read the records of what was ranked: in this state of the database, or in an earlier one.

    In an earlier one some may have changed meanwhile into what was not asked for; these are left out.
    """
    rows: dict[Found, Row] = {}
    for kind in dict.fromkeys(kind for _, kind, _ in ranked):
        ids = [id_ for _, of, id_ in ranked if of == kind]
        condition = asked.conditions[kind]
        if condition.ids is not None and not is_ranked_now:
            found = read_meeting(connection, kind, condition, ids)
        else:
            found = read_by_id(connection, kind, namespace, ids)
        rows.update({(kind, id_): row for id_, row in found.items()})
    return rows
