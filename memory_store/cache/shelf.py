"""The shelf: entries by key, TTL per kind, least recently used out first, one byte budget; it knows no commits.

All shards of a store share one, so that the budget goes where the reads are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from memory_store.cache.entries import Counters, Entries, Space
from memory_store.clock import boot_s
from memory_store.codec import entry_as_of, read_entry
from memory_store.records import RECORDS, QueryResult

__all__ = ["ENTRY_OVERHEAD_BYTES", "Shelf", "cost_of"]

# What an entry costs beside key and bytes: its places in cachetools' dict and OrderedDict. A test holds it to what
# tracemalloc sees.
ENTRY_OVERHEAD_BYTES = 120


class Shelf:
    """The entries of one store, all namespaces together.

    Args:
        max_bytes: budget, bookkeeping included; 0 caches nothing.
        ttl_s: seconds an entry lives, by kind, where it differs from the kind's own.
    """

    def __init__(self, max_bytes: int, ttl_s: Mapping[str, float]) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.age_offset_s = 0.0
        """How far the clock of the deadlines is ahead of the boot clock: it goes on where a saved one stood."""
        ttls = {kind: spec.ttl_s for kind, spec in RECORDS.items()} | {QueryResult.kind: QueryResult.ttl_s}
        self.counters = {kind: Counters() for kind in ttls}
        self._ttl_s = {kind: float(ttl_s.get(kind, own)) for kind, own in ttls.items()}
        self.contents = Entries()
        self._spaces: dict[tuple[str, str], Space] = {}
        self._by_number: list[Space] = []
        self.has_floors = False
        """Whether there may be entries below the floor of their space."""

    def __len__(self) -> int:
        return len(self.contents)

    def age_s(self) -> float:
        """Return the clock of the entries' deadlines, which stands still while no process runs."""
        return boot_s() + self.age_offset_s

    def spaces(self) -> list[tuple[str, str]]:
        """Return kind and namespace of every space, by its number."""
        return [(space.kind, space.namespace) for space in self._by_number]

    def space(self, kind: str, namespace: str) -> Space:
        """Return the space of a kind in a namespace; the same one each time."""
        space = self._spaces.get((kind, namespace))
        if space is None:
            # Keys are one short string, "<number>/<id>": a tuple a key would cost 80 bytes more an entry.
            prefix = f"{len(self._by_number):x}/"
            space = Space(kind, namespace, prefix, self.counters[kind], self._ttl_s[kind])
            self._spaces[kind, namespace] = space
            self._by_number.append(space)
        return space

    def space_of(self, key: str) -> tuple[Space, str]:
        """Return the space and the id of a cache key."""
        number, _, id_ = key.partition("/")
        return self._by_number[int(number, 16)], id_

    def read(self, space: Space, id_: str, now: float) -> list[Any] | None:
        """Return `[expires_at, as_of, row, ...]`, or None on a miss. Rows missing from it: known to be absent.

        Args:
            space: kind and namespace.
            id_: the key there.
            now: the boot clock.
        """
        key = space.prefix + id_
        try:
            entry = self.contents[key]
        except KeyError:
            space.counters.misses += 1
            return None
        rows = read_entry(entry)
        if rows[0] <= now + self.age_offset_s or rows[1] < space.floor:
            self.drop(key)
            if rows[1] < space.floor:
                space.counters.invalidations += 1
            else:
                space.counters.expiries += 1
            space.counters.misses += 1
            return None
        space.counters.hits += 1
        return rows

    def is_full(self) -> bool:
        """Return whether nothing more fits without pushing something out."""
        return self.used_bytes + 4 * ENTRY_OVERHEAD_BYTES > self.max_bytes

    def clear(self) -> Entries:
        """Drop every entry, and return them: letting go of 100,000 at once takes 20 ms, which the caller can spread."""
        dropped, self.contents = self.contents, Entries()
        self.used_bytes = 0
        return dropped

    def keys(self) -> list[str]:
        """Return the cache keys, least recently used first."""
        return self.contents.oldest_first()

    def entries(self, keys: Sequence[str], positions: Sequence[int], *, is_now: bool) -> tuple[list[str], list[bytes]]:
        """Return those of the keys that have an entry, and the entries, as they were at some positions, to be saved.

        Args:
            keys: which.
            positions: of each shard, without what is newer.
            is_now: whether nothing can be newer.
        """
        found = list(map(self.contents.peek, keys))
        if is_now and not self.has_floors and None not in found:
            return list(keys), cast("list[bytes]", found)
        kept = []
        for key, entry in zip(keys, found, strict=True):
            if entry is not None:
                space, _ = self.space_of(key)
                if space.floor <= entry_as_of(entry) <= positions[space.shard]:
                    kept.append((key, entry))
        return [key for key, _ in kept], [entry for _, entry in kept]

    def refresh(self, keys: Iterable[tuple[Space, str]]) -> None:
        """Make entries recently used, the last one most."""
        for space, id_ in keys:
            key = space.prefix + id_
            if key in self.contents:
                self.contents[key]

    def put(self, key: str, entry: bytes, old: bytes | None) -> None:
        """Put an entry in place of `old`, the one that is there, and push out what no longer fits."""
        entries = self.contents
        if old is not None:
            self.used_bytes -= cost_of(key, old)
        cost = cost_of(key, entry)
        if cost > self.max_bytes:
            if old is not None:
                del entries[key]
            return
        self.used_bytes += cost
        entries[key] = entry
        while self.used_bytes > self.max_bytes:
            evicted, value = entries.popitem()
            self.used_bytes -= cost_of(evicted, value)
            self.space_of(evicted)[0].counters.evictions += 1

    def peek(self, key: str) -> bytes | None:
        """Return an entry without making it recently used."""
        return self.contents.peek(key)

    def drop(self, key: str) -> bool:
        """Drop an entry; return whether there was one."""
        entry = self.contents.peek(key)
        if entry is None:
            return False
        del self.contents[key]
        self.used_bytes -= cost_of(key, entry)
        return True


def cost_of(key: str, entry: bytes) -> int:
    """Return the bytes an entry takes of the budget."""
    return sys.getsizeof(key) + sys.getsizeof(entry) + ENTRY_OVERHEAD_BYTES
