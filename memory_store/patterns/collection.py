"""`Patterns`: the collection of patterns, and what is done with patterns beside storing them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple

from sqlalchemy import and_, or_, true
from sqlalchemy.sql.elements import ColumnElement

from memory_store.cache.entries import Space
from memory_store.clock import to_us, utc_now
from memory_store.collection import Access, Collection, Parts
from memory_store.durable.computed import Compute, Merge
from memory_store.durable.operations import absent
from memory_store.durable.outcomes import UpdateOnce
from memory_store.errors import ConfigurationError, ConflictError, RecordNotFoundError
from memory_store.patterns.index import PatternIndex
from memory_store.patterns.learning import Evidence, Mining, ToolSequence, Trace, closed_sequences, with_evidence
from memory_store.patterns.merging import PatternMerge, combine, group, merged_into
from memory_store.records import RECORDS, Episode, EpisodeStatus, Pattern, PatternType, Step
from memory_store.records.base import check_time
from memory_store.search.similarity import Shingles, check_threshold, jaccard, shingles

__all__ = ["Patterns", "SimilarPattern"]

_MOST = 1000
_RANK_PAGE = 256


class SimilarPattern(NamedTuple):
    """A pattern, and the Jaccard similarity of its content to what was asked for: above 0, up to 1."""

    pattern: Pattern
    similarity: float


class Patterns(Collection[Pattern]):
    """The patterns of one namespace: a `Collection`, and what is done with patterns beside storing them."""

    def __init__(
        self, namespace: str, space: Space, access: Access, episodes: Collection[Episode], steps: Parts[Step]
    ) -> None:
        super().__init__(RECORDS[Pattern.kind], namespace, space, access)
        self._episodes, self._steps = episodes, steps
        self._index = PatternIndex(namespace, access)

    async def record_use(
        self,
        id: str,  # noqa: A002 - the field's own name
        *,
        success: bool,
        at: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Pattern:
        """Count one use of a pattern and return it as stored, durable and visible.

        `usage_count` goes up by one, `success_rate` and `confidence` follow (see `Pattern.lower_bound`). The numbers
        are read and written in one transaction: no use is lost, whoever counts at the same time. The counters a pattern
        was put with count as uses before; a share of them that is no whole number of successes is rounded.

        Args:
            id: the pattern.
            success: whether the use went well.
            at: when, with a timezone; now when absent. `last_used` becomes the latest.
            idempotency_key: as for `put`: the use is counted once however often it is asked for. A retry returns the
                pattern as it is by then. Without a key a retry may count twice.

        Raises:
            RecordNotFoundError: there is no such pattern.
            ConflictError: the key was used for something else.
            CommitUnknownError: nobody can say whether it was counted; with an idempotency key, just ask again, else
                `resolve` finds out.
        """
        self._require_id(id)
        if not isinstance(success, bool):
            raise TypeError(f"success must be True or False, got {type(success).__name__}")
        named = Pattern(id=id, pattern_type="", pattern_data=None)  # carries the id into errors
        moment = utc_now() if at is None else check_time(named, "last_used", at)
        use = Compute(self._spec, self._namespace, id, partial(_used, success, moment), self._access.limits)
        if idempotency_key is None:
            row, position = await self._access.write(use)
        else:
            self._require_key(named, idempotency_key)
            asked = [success, None if at is None else to_us(moment)]
            (row, noted), committed = await self._access.write(UpdateOnce(use, idempotency_key, asked))
            position = noted or committed
        counted: Pattern = self._codec.decode_written(row, position)
        return counted

    async def best(self, *where: ColumnElement[bool], limit: int = 10, at_least_uses: int = 0) -> list[Pattern]:
        """Return the patterns with the highest `lower_bound`, the best first; the more used first among equals.

        So 90 successes of 100 come before 1 of 1. What counts are the counters; a `confidence` of your own does not.

        It reads in the order of `success_rate`, of which the bound is never higher, and stops where the rest cannot be
        among the best: some pages along an index where the conditions name one `pattern_type`
        (`Pattern.c.pattern_type == "tool_sequence"`), else the database sorts what meets them for each page.

        Args:
            where: conditions as for `list`, of which all must hold.
            limit: at most so many, 1 to 1,000.
            at_least_uses: leave out those used less often.

        Raises:
            ConfigurationError: a condition reads another table, or a number is out of range.
        """
        _check_limit(limit)
        if isinstance(at_least_uses, bool) or not isinstance(at_least_uses, int) or at_least_uses < 0:
            raise ConfigurationError(f"at_least_uses must be an integer from 0 on, got {at_least_uses!r:.80}")
        condition = and_(true(), *where, *([Pattern.c.usage_count >= at_least_uses] if at_least_uses else []))
        ranked: list[Pattern] = []
        cursor = None
        while True:
            order = Pattern.c.success_rate.desc()
            page = await self.list(condition, order_by=order, limit=_RANK_PAGE, cursor=cursor)
            # By id: one whose rate went down between two pages comes again, as it is now.
            seen = {pattern.id: pattern for pattern in (*ranked, *page.items)}
            ranked = sorted(seen.values(), key=_rank)[:limit]
            cursor = page.cursor
            full = len(ranked) == limit
            if cursor is None or (full and page.items[-1].success_rate < ranked[-1].lower_bound):
                return ranked

    async def learn(
        self, *episodes: str | Episode, min_support: int = 3, min_length: int = 2, max_length: int = 5
    ) -> list[Pattern]:
        """Learn the tool sequences that several episodes have in common, and return their patterns, the best first.

        From the steps of each episode that is `completed` or `failed` come its tools, in order, those called several
        times in a row taken once, steps without a tool left out. A sequence of them is kept where it occurs in
        `min_support` episodes of one domain, and no longer one holds it and occurs in as many. It is stored as a
        pattern of the type "tool_sequence" with the data `{"tools": [...]}` in that domain; its uses are the episodes
        it occurs in, those that were completed its successes.

        How much of its counters is from episodes is noted in its metadata as `learned`, and replaced when it is learned
        again. So the same episodes never count twice, uses that were recorded stay, and what is learned from more
        episodes replaces what was learned from fewer. A sequence whose pattern was merged into another counts there.
        Patterns learned before and not found now are left as they are.

        Everything is read past the cache, the steps with all they hold: some seconds for 100,000 steps. Each pattern is
        written by itself; called off, it can simply be called again.

        Args:
            episodes: which, as ids or as records; all of the namespace when absent. What counts is what is stored.
            min_support: episodes a sequence must occur in, 1 or more.
            min_length: tools it must have, 1 or more.
            max_length: tools it may have, up to 32.

        Raises:
            RecordNotFoundError: one of the episodes does not exist.
            InvalidRecordError: the metadata of a pattern that is learned again is no JSON object.
            ConfigurationError: a number is out of range.
        """
        mining = Mining(min_support, min_length, max_length).check()
        traces = await self._traces(episodes)
        found = await asyncio.to_thread(closed_sequences, traces, mining)
        initial = {pattern.id: pattern for pattern in map(ToolSequence.pattern, found)}
        taken_over = await self._taken_over()
        evidence: dict[str, Evidence] = {}
        for id_, own in zip(initial, found.values(), strict=True):
            counts_for = taken_over.get(id_, id_)
            known = evidence.get(counts_for)
            evidence[counts_for] = own if known is None else known.plus(own)
        writes = [self._learn(id_, initial.get(id_), own) for id_, own in evidence.items()]
        return sorted((pattern for pattern in await asyncio.gather(*writes) if pattern is not None), key=_rank)

    async def merge_duplicates(self, *where: ColumnElement[bool], threshold: float = 0.8) -> list[PatternMerge]:
        """Merge patterns that say nearly the same, and return what was merged into what.

        Of near-duplicates of one type and domain the most used one stays. It gets the counters of all of them together,
        the latest `last_used`, and in its metadata as `merged` the ids of the others, which are deleted (the change log
        keeps them). Candidates are found by MinHash LSH, 99 in 100 of those at the threshold, and compared exactly:
        nothing is merged that is less similar to the one that stays. Patterns whose metadata is no JSON object are left
        alone.

        Each merge is one commit. What others counted meanwhile is counted; where one of the patterns was deleted or
        says something else by then, the merge is left out, and the next call finds it if it is one. Called off, what
        was merged stays merged.

        All patterns that meet the conditions are held in memory.

        Args:
            where: conditions as for `list`, of which all must hold.
            threshold: Jaccard similarity of the contents from which on they are merged, 0.1 to 1.

        Raises:
            ConfigurationError: the threshold is none, or the extra `similarity` is not installed.
            InvalidRecordError: the merged pattern would be over its limit.
        """
        check_threshold(threshold)
        patterns = [pattern async for pattern in self.stream(and_(true(), *where))]
        merges: list[PatternMerge] = []
        for found in await asyncio.to_thread(group, patterns, threshold):
            kept, others, become = found.kept.id, list(found.others), partial(combine, found.members)
            merge = Merge(self._spec, self._namespace, kept, others, become, self._access.limits)
            try:
                row, position = await self._access.write(merge)
            except (ConflictError, RecordNotFoundError):
                continue
            merges.append(PatternMerge(self._codec.decode_written(row, position), found.similarities))
        return merges

    async def similar(self, to: Pattern | str, *, limit: int = 10, threshold: float = 0.5) -> list[SimilarPattern]:
        """Return the patterns whose content is nearly that of a pattern or a text, the most similar first.

        Contents are compared as sets of pairs of words (characters, in scripts without spaces): the Jaccard similarity
        returned is exact. Of those exactly at the threshold 99 in 100 are found, above it more (MinHash LSH). Types and
        domains do not matter; the pattern itself is left out.

        The first call of a process builds an index in memory from all patterns of the namespace, 0.3 ms and 11 KB each;
        later ones bring it up to date from the change log. A lower threshold than before builds it anew; so does every
        call in a transaction, which is better asked outside.

        Args:
            to: a pattern, stored or not, or text.
            limit: at most so many, 1 to 1,000.
            threshold: the lowest similarity, 0.1 to 1.

        Raises:
            ConfigurationError: a number is out of range, or the extra `similarity` is not installed.
        """
        _check_limit(limit)
        check_threshold(threshold)
        if not isinstance(to, str | Pattern):
            raise TypeError(f"similar takes a Pattern or a str, got {type(to).__name__}")
        content, own = (to, None) if isinstance(to, str) else (to.pattern_data, to.id)
        asked = await asyncio.to_thread(shingles, content)
        candidates = await self._index.candidates(asked, threshold, self.stream)
        found = [pattern for pattern in await self.get_many(candidates) if pattern is not None and pattern.id != own]
        compared = await asyncio.to_thread(_compare, asked, found)
        alike = [each for each in compared if each.similarity >= threshold]
        return sorted(alike, key=lambda each: (-each.similarity, each.pattern.id))[:limit]

    async def _traces(self, episodes: Sequence[str | Episode]) -> list[Trace]:
        """Return what the episodes that have ended called; of all of them where none is named."""
        traces: dict[str, Trace | None] = {}
        if episodes:
            ids = [episode.id if isinstance(episode, Episode) else episode for episode in episodes]
            for id_ in ids:
                if not isinstance(id_, str):
                    raise TypeError(f"learn takes episodes or their ids, got {type(id_).__name__}")
            for id_, episode in zip(ids, await self._episodes.get_many(ids, freshness="linearizable"), strict=True):
                if episode is None:
                    raise absent(RECORDS[Episode.kind], self._namespace, id_)
                traces[id_] = Trace.of(episode)
            conditions = [Step.c.episode_id == id_ for id_ in traces]
        else:
            ended = or_(Episode.c.status == EpisodeStatus.COMPLETED, Episode.c.status == EpisodeStatus.FAILED)
            async for episode in self._episodes.stream(ended):
                traces[episode.id] = Trace.of(episode)
            conditions = [true()]
        for condition in conditions:
            named = and_(condition, Step.c.tool_name.is_not(None))
            async for step in self._steps.stream(named, order_by=[Step.c.episode_id, Step.c.step_number]):
                trace = traces.get(step.episode_id)
                if trace is not None and step.tool_name is not None:
                    trace.tools.append(step.tool_name)
        return [trace for trace in traces.values() if trace is not None]

    async def _taken_over(self) -> dict[str, str]:
        """Return for each tool sequence that was merged into another one the id of that one."""
        sequences = self.stream(Pattern.c.pattern_type == PatternType.TOOL_SEQUENCE)
        return {id_: pattern.id async for pattern in sequences for id_ in merged_into(pattern)}

    async def _learn(self, id_: str, initial: Pattern | None, evidence: Evidence) -> Pattern | None:
        """Write what was learned of a pattern; None where it is one that took others over and was deleted since."""
        compute = partial(with_evidence, evidence)
        learn = Compute(self._spec, self._namespace, id_, compute, self._access.limits, initial=initial)
        try:
            row, position = await self._access.write(learn)
        except RecordNotFoundError:
            return None
        learned: Pattern = self._codec.decode_written(row, position)
        return learned


def _used(success: bool, at: datetime, pattern: Pattern) -> Pattern:
    return pattern.recounted(pattern.usage_count + 1, pattern.successes + success, at)


def _compare(asked: Shingles, patterns: Sequence[Pattern]) -> list[SimilarPattern]:
    return [SimilarPattern(pattern, jaccard(asked, shingles(pattern.pattern_data))) for pattern in patterns]


def _rank(pattern: Pattern) -> tuple[float, int, str]:
    return -pattern.lower_bound, -pattern.usage_count, pattern.id


def _check_limit(limit: int) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MOST:
        raise ConfigurationError(f"limit must be 1 to {_MOST:,}, got {limit!r:.80}")
