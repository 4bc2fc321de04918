"""The entries: TTL per kind, least recently used out first, one byte budget.

What holds here: an entry equals the database at the position it was made at, and no later commit this process knows of
has touched it. `publish` keeps that for our own commits, `fill` by the fence below; all of it runs on the event loop,
without an await inside, so nobody can look in between.

The fence: a read may return an older state than a commit that was published while it was under way. Whoever reads
opens a `Fence` first; every key published meanwhile is noted in it with its position, and `fill` puts nothing that was
touched after the position the read saw. (The cache whose slow reader puts an old value back is the usual bug.)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache

from memory_store.codec import append_rows, entry_expiry, make_entry, read_entry
from memory_store.durable.changes import PUBLISH_LIMIT, Change, Commit
from memory_store.records import RECORDS

__all__ = ["CacheTier", "Counters", "Fence", "Space"]

# What an entry costs beside key and bytes: its places in cachetools' dict and OrderedDict; tests/unit/test_cache_tier.py
# holds it to what tracemalloc sees.
ENTRY_OVERHEAD_BYTES = 200


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
    """One kind in one namespace: the prefix of its cache keys, its counters, its TTL."""

    __slots__ = ("counters", "kind", "namespace", "prefix", "ttl_s")

    def __init__(self, kind: str, namespace: str, prefix: str, counters: Counters, ttl_s: float) -> None:
        self.kind, self.namespace, self.prefix, self.counters, self.ttl_s = kind, namespace, prefix, counters, ttl_s


class Fence:
    """The keys published while a read is under way, each with its newest position. Use as a context manager."""

    __slots__ = ("_fences", "touched")

    def __init__(self, fences: set[Fence]) -> None:
        self._fences = fences
        self.touched: dict[str, int] = {}

    def __enter__(self) -> Fence:
        self._fences.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._fences.discard(self)


class _Entries(LRUCache[str, bytes]):
    """cachetools' LRU, unbounded by itself: the tier bounds bytes, and cachetools' own size bookkeeping is a third dict."""

    def __init__(self) -> None:
        super().__init__(maxsize=float("inf"))

    def oldest_first(self) -> list[str]:
        """Return the keys, least recently used first; pinned by a test, since cachetools has no public way."""
        return list(self._LRUCache__order)  # type: ignore[attr-defined]

    def peek(self, key: str) -> bytes | None:
        """Return an entry without making it recently used."""
        return self._Cache__data.get(key)  # type: ignore[attr-defined, no-any-return]


class CacheTier:
    """The entries of one store, all namespaces together.

    Args:
        max_bytes: budget, bookkeeping included; 0 caches nothing.
        ttl_s: seconds an entry lives, by kind, where it differs from the kind's own.
    """

    def __init__(self, max_bytes: int, ttl_s: Mapping[str, float]) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.position = 0
        """Newest commit that has been applied here."""
        self.counters = {kind: Counters() for kind in RECORDS}
        self._ttl_s = {kind: float(ttl_s.get(kind, spec.ttl_s)) for kind, spec in RECORDS.items()}
        self._entries = _Entries()
        self._spaces: dict[tuple[str, str], Space] = {}
        self._by_number: list[Space] = []
        self._fences: set[Fence] = set()

    def __len__(self) -> int:
        return len(self._entries)

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

    def read(self, space: Space, id_: str) -> list[Any] | None:
        """Return `[expires_at, as_of, row, ...]`, or None on a miss. Rows missing from it: known to be absent."""
        key = space.prefix + id_
        try:
            entry = self._entries[key]
        except KeyError:
            space.counters.misses += 1
            return None
        rows = read_entry(entry)
        if rows[0] <= time.monotonic():
            self._drop(key)
            space.counters.expiries += 1
            space.counters.misses += 1
            return None
        space.counters.hits += 1
        return rows

    def fence(self) -> Fence:
        """Return a fence for a read that is about to start."""
        return Fence(self._fences)

    def fill(self, space: Space, id_: str, packed: list[bytes], as_of: int, fence: Fence) -> bool:
        """Put rows that were read at position `as_of`, unless a commit after it touched them; return whether it was put."""
        key = space.prefix + id_
        if fence.touched.get(key, -1) > as_of:
            return False
        self._put(key, make_entry(time.monotonic() + space.ttl_s, as_of, packed))
        space.counters.fills += 1
        return True

    def adopt(self, space: Space, id_: str, entry: bytes, fence: Fence) -> bool:
        """Put a saved entry, unless its key is in use or was touched since the fence; return whether it was put.

        Adopted entries are the older ones: they never push out what is there.
        """
        key = space.prefix + id_
        if key in self._entries or key in fence.touched or not self._fits(key, entry):
            return False
        self._put(key, entry)
        return True

    def fill_if_room(self, space: Space, id_: str, packed: list[bytes], as_of: int, fence: Fence) -> bool:
        """As `adopt`, for rows read at position `as_of`."""
        put = self.adopt(space, id_, make_entry(time.monotonic() + space.ttl_s, as_of, packed), fence)
        space.counters.fills += put
        return put

    def _fits(self, key: str, entry: bytes) -> bool:
        return self.used_bytes + _cost(key, entry) <= self.max_bytes

    def is_full(self) -> bool:
        """Return whether nothing more fits without pushing something out."""
        return self.used_bytes + 4 * ENTRY_OVERHEAD_BYTES > self.max_bytes

    def publish(self, commit: Commit) -> None:
        """Apply one of our own commits. On return no reader of this process can see what was before it."""
        if commit.position != self.position + 1:
            self.clear()  # other processes committed in between, and what they changed is not known here
        self.position = commit.position
        if len(commit.changes) > PUBLISH_LIMIT:
            self._invalidate(commit)
            return
        now = time.monotonic()
        for change in commit.changes:
            space = self.space(change.kind, change.namespace)
            if change.parent is None:
                key = space.prefix + (change.key or "")
                self._touch(key, commit.position)
                # A delete is kept as well, as known absence.
                rows = [] if change.body is None else [change.body]
                self._put(key, make_entry(now + space.ttl_s, commit.position, rows))
            else:
                self._publish_part(space, change, commit.position, now)

    def _publish_part(self, space: Space, change: Change, position: int, now: float) -> None:
        """Parts are cached per episode: put one at the end of the episode's entry, or drop the entry."""
        key = space.prefix + (change.parent or "")
        self._touch(key, position)
        if change.body is not None and change.follows is not None:
            entry = self._entries.peek(key) if change.follows else None
            if entry is not None and entry_expiry(entry) > now:
                self._put(key, append_rows(entry, now + space.ttl_s, position, [change.body]))
                return
            if not change.follows:
                self._put(key, make_entry(now + space.ttl_s, position, [change.body]))
                return
        if self._drop(key):
            space.counters.invalidations += 1

    def _invalidate(self, commit: Commit) -> None:
        """Drop what a large commit touched; finding it is one set operation, 4 ms for 100,000 keys."""
        prefixes: dict[tuple[str, str], str] = {}
        keys: set[str] = set()
        for change in commit.changes:
            name = (change.kind, change.namespace)
            prefix = prefixes.get(name) or prefixes.setdefault(name, self.space(*name).prefix)
            keys.add(prefix + (change.parent or change.key or ""))
        for fence in self._fences:
            fence.touched.update(dict.fromkeys(keys, commit.position))
        for key in self._entries.keys() & keys:
            self._drop(key)
            self.space_of(key)[0].counters.invalidations += 1

    def clear(self) -> None:
        """Drop every entry. Reads under way do not bring theirs back."""
        for key in self._entries:
            self._touch(key, sys.maxsize)
        self._entries.clear()
        self.used_bytes = 0

    def snapshot(self) -> Iterator[tuple[Space, str, bytes]]:
        """Yield the live entries, least recently used first, as they are when they are reached.

        An entry newer than the position noted with a snapshot does no harm: whoever loads the snapshot applies the log
        from that position and so drops it.
        """
        for key in self._entries.oldest_first():
            entry = self._entries.peek(key)
            if entry is not None:
                space, id_ = self.space_of(key)
                yield space, id_, entry

    def refresh(self, keys: Iterable[tuple[Space, str]]) -> None:
        """Make entries recently used, the last one most."""
        for space, id_ in keys:
            key = space.prefix + id_
            if key in self._entries:
                self._entries[key]

    def _touch(self, key: str, position: int) -> None:
        for fence in self._fences:
            fence.touched[key] = position

    def _put(self, key: str, entry: bytes) -> None:
        entries = self._entries
        old = entries.peek(key)
        if old is not None:
            self.used_bytes -= _cost(key, old)
        cost = _cost(key, entry)
        if cost > self.max_bytes:
            if old is not None:
                del entries[key]
            return
        self.used_bytes += cost
        entries[key] = entry
        while self.used_bytes > self.max_bytes:
            evicted, value = entries.popitem()
            self.used_bytes -= _cost(evicted, value)
            self.space_of(evicted)[0].counters.evictions += 1

    def _drop(self, key: str) -> bool:
        entry = self._entries.peek(key)
        if entry is None:
            return False
        del self._entries[key]
        self.used_bytes -= _cost(key, entry)
        return True


def _cost(key: str, entry: bytes) -> int:
    return sys.getsizeof(key) + sys.getsizeof(entry) + ENTRY_OVERHEAD_BYTES
