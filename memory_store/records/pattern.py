"""A pattern: something that was seen to work (or not) more than once."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, Float, Index

from memory_store.records.base import Record, check_json, check_key
from memory_store.records.columns import Json, ShortText, UtcDateTime, record_table
from memory_store.records.spec import RecordSpec

__all__ = ["PATTERN", "Pattern", "PatternType"]

_TABLE = record_table(
    "patterns",
    Column("pattern_type", ShortText(), nullable=False),
    Column("pattern_data", Json(), nullable=False),
    Column("domain", ShortText()),
    Column("success_rate", Float, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("usage_count", BigInteger, nullable=False),
    Column("last_used", UtcDateTime),
    Column("metadata", Json(), nullable=False),
    Index(None, "namespace", "pattern_type", "success_rate"),
    Index(None, "namespace", "usage_count"),
    Index(None, "namespace", "domain"),
)


# Quantile of the standard normal distribution at 97.5 %: of an interval with 95 % between its ends.
_Z = 1.959963984540054


class PatternType(StrEnum):
    """Pattern types known to the store; any other text is accepted."""

    TOOL_SEQUENCE = "tool_sequence"
    ERROR_RESOLUTION = "error_resolution"
    OPTIMIZATION = "optimization"
    TESTING_STRATEGY = "testing_strategy"
    DECISION_POINT = "decision_point"
    CONTEXT_PATTERN = "context_pattern"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern(Record):
    """Something learned from episodes.

    Args:
        id: `pattern_type:hash` when absent, the hash taken of domain and data, so that the same pattern found twice is
            one record.
        pattern_type: see `PatternType`, other words are accepted.
        pattern_data: JSON value: the pattern itself.
        domain: where it holds, or None for everywhere.
        success_rate: share of uses that went well, 0 to 1.
        confidence: how far it can be trusted, 0 to 1: your own number, until the store counts a use and sets it to
            `lower_bound`.
        usage_count: how often it was used.
        last_used: when it was last used, or None.
        metadata: JSON value for the runtime's own bookkeeping.
    """

    kind: ClassVar[str] = "pattern"

    id: str = ""
    pattern_type: str
    pattern_data: Any
    domain: str | None = None
    success_rate: float = 0.0
    confidence: float = 0.0
    usage_count: int = 0
    last_used: datetime | None = None
    metadata: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.id == "":
            check_key(self, "pattern_type", self.pattern_type)
            check_json(self, "pattern_data", self.pattern_data)
            if self.domain is not None:
                check_key(self, "domain", self.domain)
            object.__setattr__(self, "id", f"{self.pattern_type}:{_digest([self.domain, self.pattern_data])}")
        Record.__post_init__(self)
        self._require("success_rate", 0 <= self.success_rate <= 1, "must lie between 0 and 1")
        self._require("confidence", 0 <= self.confidence <= 1, "must lie between 0 and 1")
        self._require("usage_count", self.usage_count >= 0, "must not be negative")

    @property
    def successes(self) -> int:
        """How many of its uses went well: `success_rate` of `usage_count`, rounded to a whole number.

        Exact for what the store has counted, up to 2**51 uses: two roundings of a float are off by less than a half.
        """
        return min(round(self.success_rate * self.usage_count), self.usage_count)

    @property
    def lower_bound(self) -> float:
        """How high its true success rate is at least, with 97.5 % confidence; 0 where it was never used.

        The lower end of the score interval at 95 % (Wilson 1927, doi:10.1080/01621459.1927.10502953), for `successes`
        of `usage_count`: 1 of 1 is 0.21, 90 of 100 is 0.83. Never above the success rate itself.
        """
        return _lower_bound(self.successes, self.usage_count)

    def recounted(self, uses: int, successes: int, last_used: datetime | None) -> Pattern:
        """Return it with these counters and the confidence that follows from them; an earlier last use is kept.

        Raises:
            InvalidRecordError: more uses than an integer of 64 bits holds.
        """
        known = [moment for moment in (self.last_used, last_used) if moment is not None]
        return replace(
            self,
            usage_count=uses,
            success_rate=successes / uses if uses else 0.0,
            confidence=_lower_bound(successes, uses),
            last_used=max(known, default=None),
        )


def _lower_bound(successes: int, uses: int) -> float:
    """Return the lower end of Wilson's interval, in a form without the difference of close numbers."""
    if uses == 0:
        return 0.0
    z2 = _Z * _Z
    root = math.sqrt(z2 + 4 * successes * (uses - successes) / uses)
    return 2 * successes * successes / (uses * (2 * successes + z2 + _Z * root))


def _digest(value: Any) -> str:
    """Return 128 bits of BLAKE2b (RFC 7693) over the value's canonical JSON, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


PATTERN = RecordSpec(
    record=Pattern,
    table=_TABLE,
    ttl_s=1800,
    size_limit="pattern_bytes",
    warm_by="usage_count",
    history=True,
    searched=("pattern_type", "domain", "pattern_data"),
)
