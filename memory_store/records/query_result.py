"""A query result: what a query found, kept in the cache alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["QueryResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """What a query found. It lives in the cache only, and only until a kind the query read changes.

    Args:
        id: hash of the normalised query.
        ids: records it found, best first.
        scores: their scores, in the same order.
        total: how many there are, where it was counted.
    """

    kind: ClassVar[str] = "query_result"
    ttl_s: ClassVar[float] = 300.0

    id: str
    ids: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    total: int | None = None

    def to_row(self) -> list[Any]:
        """Return the values to pack."""
        return [self.id, list(self.ids), list(self.scores), self.total]

    @classmethod
    def from_row(cls, row: list[Any]) -> QueryResult:
        """Return the result of packed values."""
        return cls(id=row[0], ids=tuple(row[1]), scores=tuple(row[2]), total=row[3])
