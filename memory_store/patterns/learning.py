"""Tool sequences: which tools were called one after another in several episodes, and how those episodes ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

from memory_store.errors import ConfigurationError, InvalidRecordError
from memory_store.records import Episode, EpisodeStatus, Pattern, PatternType

__all__ = [
    "LEARNED",
    "Evidence",
    "Mining",
    "ToolSequence",
    "Trace",
    "closed_sequences",
    "learned_by",
    "with_evidence",
]

LEARNED = "learned"
"""Key of a pattern's metadata: what its counters owe to the episodes it was last learned from."""

_LONGEST = 32


class Trace(NamedTuple):
    """What one episode called: its domain, whether it went well, when it ended, its tools in the order of its steps."""

    domain: str
    success: bool
    at: datetime
    tools: list[str]

    @classmethod
    def of(cls, episode: Episode) -> Trace | None:
        """Return the trace of an episode, its tools to be filled in; None of one without a verdict."""
        if episode.status not in (EpisodeStatus.COMPLETED, EpisodeStatus.FAILED):
            return None
        success = episode.status == EpisodeStatus.COMPLETED
        return cls(episode.domain, success, episode.completed_at or episode.created_at, [])


class ToolSequence(NamedTuple):
    """Tools called one after another in a domain; a tool called several times in a row is there once."""

    domain: str
    tools: tuple[str, ...]

    def pattern(self) -> Pattern:
        """Return its pattern, without any use."""
        return Pattern(
            pattern_type=PatternType.TOOL_SEQUENCE, pattern_data={"tools": list(self.tools)}, domain=self.domain
        )


class Evidence(NamedTuple):
    """What episodes say of a sequence: how many it occurs in, how many of them went well, when the last one ended."""

    episodes: int
    successes: int
    last: datetime

    def plus(self, other: Evidence) -> Evidence:
        """Return both together."""
        return Evidence(self.episodes + other.episodes, self.successes + other.successes, max(self.last, other.last))


class Mining(NamedTuple):
    """Which sequences are worth keeping: in how many episodes they must occur, how many tools they may have."""

    min_support: int
    min_length: int
    max_length: int

    def check(self) -> Mining:
        """Return it, if it makes sense.

        Raises:
            ConfigurationError: a number is out of its range.
        """
        for name, value in self._asdict().items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be an integer from 1 on, got {value!r:.80}")
        if not self.min_length <= self.max_length <= _LONGEST:
            raise ConfigurationError(
                f"max_length must lie between min_length ({self.min_length}) and {_LONGEST}, got {self.max_length}"
            )
        return self


def closed_sequences(traces: Iterable[Trace], mining: Mining) -> dict[ToolSequence, Evidence]:
    """Return the closed frequent sequences of each domain, with their evidence.

    A sequence occurs in an episode where its tools follow each other in it without another one between, repetitions
    taken together. It is frequent where it occurs in `min_support` episodes of its domain, however often in each, and
    closed where no longer one holds it and occurs in as many (Pasquier et al. 1999): what such a longer one says of the
    same episodes would only be said again. Longer ones than `max_length` are not looked at.
    """
    support: Counter[ToolSequence] = Counter()
    successes: Counter[ToolSequence] = Counter()
    last: dict[ToolSequence, datetime] = {}
    for trace in traces:
        for sequence in _sequences(trace, mining):
            support[sequence] += 1
            successes[sequence] += trace.success
            last[sequence] = max(last.get(sequence, trace.at), trace.at)
    frequent = {sequence: count for sequence, count in support.items() if count >= mining.min_support}
    # Support never grows with length: a longer sequence of the same support comes with one that is one tool longer.
    within = {
        shorter
        for longer, count in frequent.items()
        for shorter in (longer._replace(tools=longer.tools[1:]), longer._replace(tools=longer.tools[:-1]))
        if frequent.get(shorter) == count
    }
    return {
        sequence: Evidence(count, successes[sequence], last[sequence])
        for sequence, count in frequent.items()
        if sequence not in within
    }


def _sequences(trace: Trace, mining: Mining) -> set[ToolSequence]:
    tools = tuple(tool for tool, _ in groupby(trace.tools))
    return {
        ToolSequence(trace.domain, tools[start : start + length])
        for length in range(mining.min_length, min(mining.max_length, len(tools)) + 1)
        for start in range(len(tools) - length + 1)
    }


def with_evidence(evidence: Evidence, pattern: Pattern) -> Pattern:
    """Return a pattern with this evidence in its counters, in place of that of an earlier time; itself if it has it.

    Raises:
        InvalidRecordError: its metadata is no JSON object, so there is no place to note what is from episodes.
    """
    if not isinstance(pattern.metadata, dict):
        raise InvalidRecordError(
            f"pattern.metadata must be an object to learn the pattern, is a {type(pattern.metadata).__name__}",
            kind=pattern.kind,
            key=pattern.id,
            field="metadata",
        )
    noted = {"episodes": evidence.episodes, "successes": evidence.successes}
    before = pattern.metadata.get(LEARNED)
    if before == noted:
        return pattern
    # What else was counted stays, whatever somebody has made of the numbers meanwhile.
    old_uses, old_successes = learned_by(before)
    uses = max(pattern.usage_count - old_uses, 0)
    successes = min(max(pattern.successes - old_successes, 0), uses)
    counted = pattern.recounted(uses + evidence.episodes, successes + evidence.successes, evidence.last)
    return replace(counted, metadata={**pattern.metadata, LEARNED: noted})


def learned_by(noted: object) -> tuple[int, int]:
    """Return the uses and successes that metadata notes as learned; none where it notes something else."""
    if isinstance(noted, Mapping):
        uses, successes = noted.get("episodes"), noted.get("successes")
        if isinstance(uses, int) and isinstance(successes, int) and 0 <= successes <= uses:
            return uses, successes
    return 0, 0
