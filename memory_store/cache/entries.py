"""What the tier is made of: the entries themselves, and the spaces their keys belong to."""

from __future__ import annotations

from dataclasses import dataclass

from cachetools import LRUCache

__all__ = ["Counters", "Entries", "Space"]


@dataclass(slots=True)
class Counters:
    """What happened to one kind's entries since the store was opened."""

    hits: int = 0
    misses: int = 0
    fills: int = 0
    evictions: int = 0
    expiries: int = 0
    invalidations: int = 0


class Space:
    """One kind in one namespace: the prefix of its cache keys, its counters, its TTL, its newest change's position."""

    __slots__ = ("changed", "counters", "kind", "namespace", "prefix", "ttl_s")

    def __init__(self, kind: str, namespace: str, prefix: str, counters: Counters, ttl_s: float) -> None:
        self.kind, self.namespace, self.prefix, self.counters, self.ttl_s = kind, namespace, prefix, counters, ttl_s
        self.changed = 0


class Entries(LRUCache[str, bytes]):
    """cachetools' LRU without its bound: the tier bounds bytes, and cachetools' own sizes would be a third dict."""

    def __init__(self) -> None:
        super().__init__(maxsize=float("inf"))

    def oldest_first(self) -> list[str]:
        """Return the keys, least recently used first; pinned by a test, since cachetools has no public way."""
        return list(self._LRUCache__order)  # type: ignore[attr-defined]

    def peek(self, key: str) -> bytes | None:
        """Return an entry without making it recently used."""
        return self._Cache__data.get(key)  # type: ignore[attr-defined, no-any-return]
