"""A spatiotemporal entry: where and when an episode belongs, for coarse-to-fine recall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sqlalchemy import Column, Float, Index

from memory_store.records.base import Record
from memory_store.records.columns import ShortText, episode_columns, record_table
from memory_store.records.spec import RecordSpec

__all__ = ["SPATIOTEMPORAL", "SpatiotemporalEntry"]

_TABLE = record_table(
    "spatiotemporal_index",
    *episode_columns(),
    Column("spatial_key", ShortText(), nullable=False),
    Column("temporal_key", ShortText(), nullable=False),
    Column("diversity_score", Float),
    Index(None, "namespace", "episode_id"),
    Index(None, "namespace", "spatial_key", "temporal_key"),
    Index(None, "namespace", "diversity_score"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatiotemporalEntry(Record):
    """Where and when an episode belongs.

    Args:
        episode_id: the episode it places.
        spatial_key: the place, coarse to fine, e.g. "web/debugging".
        temporal_key: the time cluster, e.g. "2026-W47".
        diversity_score: how unlike its neighbours it is, 0 to 1, or None.
    """

    kind: ClassVar[str] = "spatiotemporal"

    episode_id: str
    spatial_key: str
    temporal_key: str
    diversity_score: float | None = None

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        score = self.diversity_score
        self._require("diversity_score", score is None or 0 <= score <= 1, "must lie between 0 and 1")


SPATIOTEMPORAL = RecordSpec(
    record=SpatiotemporalEntry, table=_TABLE, ttl_s=3600, parent="episode_id", order=("created_at", "id")
)
