"""Near-duplicates among patterns: who goes with whom, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory_store.errors import ConflictError
from memory_store.patterns.learning import LEARNED, learned_by
from memory_store.records import Pattern
from memory_store.search.similarity import NearDuplicates, Shingles, jaccard, shingles

__all__ = ["MERGED", "PatternMerge", "combine", "group", "merged_into"]

MERGED = "merged"
"""Key of a pattern's metadata: the ids of those it took the place of."""


@dataclass(frozen=True, slots=True)
class PatternMerge:
    """One pattern that took the place of its near-duplicates.

    Args:
        kept: it, as stored.
        merged: the ids of the others, each with its Jaccard similarity to the one that stays.
    """

    kept: Pattern
    merged: dict[str, float]


@dataclass(slots=True)
class Group:
    """A pattern, and the near-duplicates that are to go with it.

    Args:
        kept: the most used one of them.
        shingles: of it.
        others: by id, each with its similarity to it.
    """

    kept: Pattern
    shingles: Shingles
    others: dict[str, tuple[Pattern, float]]

    @property
    def members(self) -> dict[str, Pattern]:
        """All of them, by id."""
        return {self.kept.id: self.kept} | {id_: pattern for id_, (pattern, _) in self.others.items()}

    @property
    def similarities(self) -> dict[str, float]:
        """Of the others, by id."""
        return {id_: similarity for id_, (_, similarity) in self.others.items()}


def group(patterns: Iterable[Pattern], threshold: float) -> list[Group]:
    """Return the groups of near-duplicates of one type and domain: the most used one, and what is to go with it.

    Each of the others is as similar as the threshold to the one that stays, not only to another one of its group. One
    that could go with several goes with the most similar. Those whose metadata is no JSON object are left alone, since
    there is no place to note a merge.
    """
    places: dict[tuple[str, str | None], tuple[NearDuplicates, dict[str, Group]]] = {}
    for pattern in sorted(patterns, key=lambda pattern: (-pattern.usage_count, -pattern.lower_bound, pattern.id)):
        if not isinstance(pattern.metadata, dict):
            continue
        place = (pattern.pattern_type, pattern.domain)
        if place not in places:
            places[place] = (NearDuplicates(threshold), {})
        near, groups = places[place]
        own = shingles(pattern.pattern_data)
        signature = near.sign(own)
        alike = [(jaccard(groups[id_].shingles, own), id_) for id_ in near.candidates(signature)]
        similarity, id_ = max(alike, default=(0.0, ""))
        if similarity >= threshold:
            groups[id_].others[pattern.id] = (pattern, similarity)
        else:
            near.put(pattern.id, signature)
            groups[pattern.id] = Group(pattern, own, {})
    return [found for _, groups in places.values() for found in groups.values() if found.others]


def combine(seen: Mapping[str, Pattern], kept: Pattern, others: Sequence[Pattern]) -> Pattern:
    """Return what becomes of a pattern that takes the place of others: their counters together, and who they were.

    Args:
        seen: all of them as they were compared.
        kept: the one that stays, as stored.
        others: the others, as stored.

    Raises:
        ConflictError: one of them says something else than when they were compared.
    """
    for stored in (kept, *others):
        if _content(stored) != _content(seen[stored.id]) or not isinstance(stored.metadata, dict):
            raise ConflictError(
                f"pattern {stored.id!r:.300} has been changed since it was found to be a near-duplicate",
                kind=stored.kind,
                key=stored.id,
                expected=seen[stored.id].revision,
                actual=stored.revision,
            )
    every = (kept, *others)
    moments = [pattern.last_used for pattern in every if pattern.last_used is not None]
    counted = kept.recounted(
        sum(pattern.usage_count for pattern in every),
        sum(pattern.successes for pattern in every),
        max(moments, default=None),
    )
    merged = merged_into(kept)
    for pattern in others:
        merged += [pattern.id, *merged_into(pattern)]
    metadata: dict[str, Any] = {**kept.metadata, MERGED: list(dict.fromkeys(merged))}
    learned = [learned_by(pattern.metadata.get(LEARNED)) for pattern in every]
    if any(uses for uses, _ in learned):
        episodes, successes = map(sum, zip(*learned, strict=True))
        metadata[LEARNED] = {"episodes": episodes, "successes": successes}
    return replace(counted, metadata=metadata)


def merged_into(pattern: Pattern) -> list[str]:
    """Return the ids of the patterns that one took the place of."""
    noted = pattern.metadata.get(MERGED) if isinstance(pattern.metadata, dict) else None
    return [id_ for id_ in noted if isinstance(id_, str)] if isinstance(noted, list) else []


def _content(pattern: Pattern) -> tuple[str, str | None, Shingles]:
    return pattern.pattern_type, pattern.domain, shingles(pattern.pattern_data)
