"""An episode: one task an agent worked on, from its first step to its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import Column, Float, Index

from memory_store.records.base import Record
from memory_store.records.columns import Json, LongText, ShortText, UtcDateTime, record_table
from memory_store.records.spec import RecordSpec

__all__ = ["EPISODE", "Episode", "EpisodeStatus", "TaskType"]

_TABLE = record_table(
    "episodes",
    Column("task_type", ShortText(), nullable=False),
    Column("domain", ShortText(), nullable=False),
    Column("context", Json(), nullable=False),
    Column("status", ShortText(), nullable=False),
    Column("success_rate", Float),
    Column("reward_score", Float),
    Column("completed_at", UtcDateTime),
    Column("reflection", LongText()),
    Column("metadata", Json(), nullable=False),
    Index(None, "namespace", "domain", "created_at"),
    Index(None, "namespace", "status"),
    Index(None, "namespace", "created_at"),
    Index(None, "namespace", "task_type"),
)


class TaskType(StrEnum):
    """Task types known to the store; any other text is accepted."""

    CODE_GENERATION = "code_generation"
    DEBUGGING = "debugging"
    REFACTORING = "refactoring"
    TESTING = "testing"
    ANALYSIS = "analysis"
    DOCUMENTATION = "documentation"


class EpisodeStatus(StrEnum):
    """Where an episode stands: open, ended well, ended badly, or closed without a verdict."""

    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    ARCHIVED = "archived"


_STATUSES = frozenset(EpisodeStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode(Record):
    """One task an agent worked on.

    Args:
        task_type: what sort of work it was; see `TaskType`, other words are accepted.
        domain: where it happened, e.g. "web".
        context: JSON value: the goal, the inputs, whatever the runtime wants back.
        status: one of `EpisodeStatus`.
        success_rate: share of it that went well, 0 to 1, or None.
        reward_score: the runtime's own score, any finite number, or None.
        completed_at: when it ended, or None.
        reflection: what was learned, in words, or None.
        metadata: JSON value for the runtime's own bookkeeping.
    """

    kind: ClassVar[str] = "episode"

    task_type: str
    domain: str
    context: Any = field(default_factory=dict)
    status: str = EpisodeStatus.ACTIVE.value
    success_rate: float | None = None
    reward_score: float | None = None
    completed_at: datetime | None = None
    reflection: str | None = None
    metadata: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        if self.status not in _STATUSES:
            self._refuse("status", f"must be one of {', '.join(EpisodeStatus)}, got {self.status!r:.80}")
        rate = self.success_rate
        self._require("success_rate", rate is None or 0 <= rate <= 1, "must lie between 0 and 1")


EPISODE = RecordSpec(
    record=Episode,
    table=_TABLE,
    ttl_s=3600,
    size_limit="episode_bytes",
    history=True,
    searched=("task_type", "domain", "context", "reflection"),
)
