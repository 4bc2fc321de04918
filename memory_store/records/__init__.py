"""The kinds of record, one file each, and the one registry that everything else iterates.

Adding a kind is its file, one line in `RECORDS`, one generated migration and one golden sample.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from memory_store.records.base import Record
from memory_store.records.columns import METADATA
from memory_store.records.embedding import EMBEDDING, KNOWN_DIMENSIONS, Embedding
from memory_store.records.episode import EPISODE, Episode, EpisodeStatus, TaskType
from memory_store.records.pattern import PATTERN, Pattern, PatternType
from memory_store.records.query_result import QueryResult
from memory_store.records.spatiotemporal import SPATIOTEMPORAL, SpatiotemporalEntry
from memory_store.records.spec import RecordSpec
from memory_store.records.step import STEP, Step

__all__ = [
    "KNOWN_DIMENSIONS",
    "METADATA",
    "PARTS",
    "RECORDS",
    "Embedding",
    "Episode",
    "EpisodeStatus",
    "Pattern",
    "PatternType",
    "QueryResult",
    "Record",
    "RecordSpec",
    "SpatiotemporalEntry",
    "Step",
    "TaskType",
]

RECORDS: MappingProxyType[str, RecordSpec[Any]] = MappingProxyType(
    {spec.kind: spec for spec in (EPISODE, STEP, PATTERN, EMBEDDING, SPATIOTEMPORAL)}
)
"""Every stored kind by name (`QueryResult`, the sixth, is never stored). A kind comes after the kinds it refers to."""

PARTS: tuple[RecordSpec[Any], ...] = tuple(spec for spec in RECORDS.values() if spec.parent)
"""The kinds that belong to an episode and go with it."""
