"""A step: one action of an episode and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from sqlalchemy import BigInteger, Boolean, Column, Index, UniqueConstraint

from memory_store.clock import utc_now
from memory_store.records.base import Record
from memory_store.records.columns import LongText, ShortText, UtcDateTime, episode_columns, record_table
from memory_store.records.spec import RecordSpec

__all__ = ["STEP", "Step"]

_TABLE = record_table(
    "steps",
    *episode_columns(),
    Column("step_number", BigInteger, nullable=False),
    Column("action", LongText(), nullable=False),
    Column("result", LongText()),
    Column("duration_ms", BigInteger),
    Column("success", Boolean(create_constraint=False)),
    Column("timestamp", UtcDateTime),
    Column("tool_name", ShortText()),
    UniqueConstraint("namespace", "episode_id", "step_number"),
    Index(None, "namespace", "timestamp"),
    Index(None, "namespace", "tool_name"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Record):
    """One action of an episode.

    Args:
        episode_id: the episode it belongs to; `steps.append(episode_id, ...)` fills it in.
        step_number: its place in the episode, from 1; the next free number when absent.
        action: what was done, e.g. the command or the call.
        result: what came of it, or None.
        duration_ms: whole milliseconds it took, or None.
        success: whether it worked, or None where nobody knows.
        timestamp: when it was done; now when absent, None where nobody knows.
        tool_name: the tool that did it, or None.
    """

    kind: ClassVar[str] = "step"

    episode_id: str = ""
    step_number: int | None = None
    action: str
    result: str | None = None
    duration_ms: int | None = None
    success: bool | None = None
    timestamp: datetime | None = field(default_factory=utc_now)
    tool_name: str | None = None

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        number, duration = self.step_number, self.duration_ms
        self._require("step_number", number is None or number >= 0, "must not be negative")
        self._require("duration_ms", duration is None or duration >= 0, "must not be negative")


STEP = RecordSpec(
    record=Step,
    table=_TABLE,
    ttl_s=3600,
    field_limits=(("action", "step_bytes"), ("result", "step_bytes")),
    parent="episode_id",
    order=("step_number",),
    number="step_number",
    searched=("tool_name", "action", "result"),
)
