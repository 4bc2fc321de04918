"""What the tier is made of: the entries themselves, and the spaces their keys belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import LRUCache

__all__ = ["Counters", "Entries", "Space"]


@dataclass(slots=True)
class Counters:
    """What happened to one kind's entries since the store was opened.

    Args:
        hits: reads answered from the cache.
        misses: reads that had to ask the durable tier.
        fills: rows read there and put here.
        dirty_fills: rows read there and not put here, because they changed while they were read.
        evictions: dropped for space.
        expiries: dropped for age.
        invalidations: dropped because they changed.
    """

    hits: int = 0
    misses: int = 0
    fills: int = 0
    dirty_fills: int = 0
    evictions: int = 0
    expiries: int = 0
    invalidations: int = 0


class Space:
    """One kind in one namespace: the prefix of its cache keys, its counters, its TTL.

    `changed` is the position of its newest change; entries from before `floor` may be wrong and count as absent. Both
    are positions of its namespace's `shard`, which is known once the store is open.
    """

    __slots__ = ("changed", "counters", "floor", "kind", "namespace", "prefix", "shard", "ttl_s")

    def __init__(self, kind: str, namespace: str, prefix: str, counters: Counters, ttl_s: float) -> None:
        self.kind, self.namespace, self.prefix, self.counters, self.ttl_s = kind, namespace, prefix, counters, ttl_s
        self.changed = self.floor = self.shard = 0


class Entries(LRUCache[str, bytes]):
    """cachetools' LRU without its bound: the tier bounds bytes, and cachetools' own sizes would be a third dict.

    What it does not offer reaches into its two dicts, pinned by tests against the installed version.
    """

    def __init__(self) -> None:
        super().__init__(maxsize=float("inf"))

    def oldest_first(self) -> list[str]:
        """Return the keys, least recently used first."""
        return list(self._LRUCache__order)  # type: ignore[attr-defined]

    def peek(self, key: str) -> bytes | None:
        """Return an entry without making it recently used."""
        return self._Cache__data.get(key)  # type: ignore[attr-defined, no-any-return]

    def put_new(self, keys: Sequence[str], entries: Sequence[bytes]) -> None:
        """Put entries whose keys are new, the last one as the most recently used: ten times as fast as one by one."""
        self._Cache__data.update(zip(keys, entries, strict=True))  # type: ignore[attr-defined]
        self._LRUCache__order.update(dict.fromkeys(keys))  # type: ignore[attr-defined]
        self._Cache__currsize += len(keys)  # type: ignore[attr-defined]
