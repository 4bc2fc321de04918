"""The entries: TTL per kind, least recently used out first, one byte budget.

What holds here: an entry equals the database at the position it was made at, and no later commit this process knows of
has touched it. `publish` keeps that for our own commits, `fill` by the fence below; all of it runs on the event loop,
without an await inside, so nobody can look in between.

`fill` puts nothing that a `Watch` or `Fence` saw touched after the position it was read at (see fences.py): the cache
whose slow reader puts an old value back is the usual bug.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from memory_store.cache.entries import Counters, Entries, Space
from memory_store.cache.fences import Fence, Watch
from memory_store.codec import append_rows, entry_as_of, entry_expiry, make_entry, pack_row, read_entry
from memory_store.durable.changes import PUBLISH_LIMIT, Change, Commit
from memory_store.records import RECORDS, QueryResult

__all__ = ["CacheTier"]

# What an entry costs beside key and bytes: its places in cachetools' dict and OrderedDict. A test holds it to what
# tracemalloc sees.
ENTRY_OVERHEAD_BYTES = 120


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
        ttls = {kind: spec.ttl_s for kind, spec in RECORDS.items()} | {QueryResult.kind: QueryResult.ttl_s}
        self.failures = 0
        self._floor = 0
        """Position up to which other processes may have changed anything."""
        self._ttl_s = {kind: float(ttl_s.get(kind, own)) for kind, own in ttls.items()}
        self.counters = {kind: Counters() for kind in ttls}
        self._entries = Entries()
        self._spaces: dict[tuple[str, str], Space] = {}
        self._by_number: list[Space] = []
        self._fences: set[Fence] = set()
        self._watched: dict[str, Watch] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def space(self, kind: str, namespace: str) -> Space:
        """Return the space of a kind in a namespace; the same one each time."""
        space = self._spaces.get((kind, namespace))
        if space is None:
            # Keys are one short string, "<number>/<id>": a tuple a key would cost 80 bytes more an entry.
            prefix = f"{len(self._by_number):x}/"
            space = Space(kind, namespace, prefix, self.counters[kind], self._ttl_s[kind])
            space.changed = self._floor
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
        """Return a fence for a read of many keys that is about to start."""
        return Fence(self._fences)

    def watch(self, key: str, watch: Watch) -> None:
        """Note what is published of a key, for a read that is about to start; one watch a key."""
        self._watched[key] = watch

    def unwatch(self, key: str) -> None:
        """End a watch."""
        del self._watched[key]

    def fill(self, space: Space, id_: str, packed: list[bytes], as_of: int, fence: Fence | Watch) -> bool:
        """Put rows read at position `as_of`, unless a commit after it touched them; return whether it was put."""
        key = space.prefix + id_
        if not fence.lets_pass(key, as_of):
            return False
        self._put(key, make_entry(time.monotonic() + space.ttl_s, as_of, packed), self._entries.peek(key))
        space.counters.fills += 1
        return True

    def adopt(self, space: Space, id_: str, entry: bytes, fence: Fence) -> bool:
        """Put a saved entry, unless its key is in use or was touched since the fence; return whether it was put.

        Adopted entries are the older ones: they never push out what is there.
        """
        key = space.prefix + id_
        if key in self._entries or not fence.lets_pass(key, entry_as_of(entry)) or not self._fits(key, entry):
            return False
        self._put(key, entry, None)
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
            self._forget(commit.position - 1)
        self.position = commit.position
        try:
            self._publish(commit)
        except (
            Exception
        ):  # the write is durable and must be answered; an empty cache is right, a half-applied one is not
            self.failures += 1
            self._forget(commit.position)

    def _publish(self, commit: Commit) -> None:
        if len(commit.changes) > PUBLISH_LIMIT:
            self._invalidate(commit)
            return
        # The last change of a record is what counts; the parts of an episode are put together, copying its entry once.
        changed: dict[str, tuple[Space, list[Change]]] = {}
        for change in commit.changes:
            space = self.space(change.kind, change.namespace)
            space.changed = commit.position
            key = space.prefix + (change.parent or change.key or "")
            known = changed.get(key)
            if known is None:
                changed[key] = (space, [change])
            else:
                known[1].append(change)
        now = time.monotonic()
        for key, (space, changes) in changed.items():
            self._touch(key, commit.position)
            old = self._entries.peek(key)
            # An entry may have been read after this commit, in the moment between the commit and its publication.
            if old is None or entry_as_of(old) < commit.position:
                self._apply(key, space, changes, commit.position, now, old)

    def _apply(
        self, key: str, space: Space, changes: list[Change], position: int, now: float, old: bytes | None
    ) -> None:
        """Bring one key to a commit's state: put what is known whole, append what is known to follow, else drop it."""
        last = changes[-1]
        if last.parent is None:
            # A delete is kept as well, as known absence.
            self._put(key, make_entry(now + space.ttl_s, position, () if last.body is None else (last.body,)), old)
            return
        bodies = [change.body for change in changes if change.body is not None and change.follows is not None]
        if len(bodies) == len(changes) and not changes[0].follows:
            self._put(key, make_entry(now + space.ttl_s, position, bodies), old)
        elif len(bodies) == len(changes) and old is not None and entry_expiry(old) > now:
            self._put(key, append_rows(old, now + space.ttl_s, position, bodies), old)
        elif self._drop(key):
            space.counters.invalidations += 1

    def _invalidate(self, commit: Commit) -> None:
        """Drop what a large commit touched; finding it is one set operation, 4 ms for 100,000 keys."""
        prefixes: dict[tuple[str, str], str] = {}
        keys: set[str] = set()
        for change in commit.changes:
            name = (change.kind, change.namespace)
            prefix = prefixes.get(name)
            if prefix is None:
                space = self.space(*name)
                space.changed = commit.position
                prefix = prefixes[name] = space.prefix
            keys.add(prefix + (change.parent or change.key or ""))
        for fence in self._fences:
            fence.touched.update(dict.fromkeys(keys, commit.position))
        for key in self._watched.keys() & keys:
            self._watched[key].touched = commit.position
        for key in self._entries.keys() & keys:
            self._drop(key)
            self.space_of(key)[0].counters.invalidations += 1

    def _forget(self, position: int) -> None:
        """Drop everything: other processes committed up to this position, and what they changed is not known here."""
        self._floor = position
        for fence in self._fences:
            fence.floor = position
        for watch in self._watched.values():
            watch.touched = max(watch.touched, position)
        for space in self._by_number:
            space.changed = max(space.changed, position)
        self.clear()

    def clear(self) -> Entries:
        """Drop every entry, and return them: letting go of 100,000 at once takes 20 ms, which the caller can spread."""
        dropped, self._entries = self._entries, Entries()
        self.used_bytes = 0
        return dropped

    def read_result(self, reads: Space, id_: str) -> QueryResult | None:
        """Return a cached query result, unless the kind it read has changed since."""
        space = self.space(QueryResult.kind, reads.namespace)
        entry = self._entries.peek(space.prefix + id_)
        if entry is not None and entry_as_of(entry) < reads.changed:
            self._drop(space.prefix + id_)
            space.counters.invalidations += 1
        rows = self.read(space, id_)
        return None if rows is None else QueryResult.from_row(rows[2])

    def put_result(self, reads: Space, result: QueryResult, as_of: int) -> None:
        """Put a query result that was read at position `as_of`; later changes of the kind it read make it void."""
        space = self.space(QueryResult.kind, reads.namespace)
        key = space.prefix + result.id
        entry = make_entry(time.monotonic() + space.ttl_s, as_of, [pack_row(result.to_row())])
        self._put(key, entry, self._entries.peek(key))
        space.counters.fills += 1

    def keys(self) -> list[str]:
        """Return the cache keys, least recently used first."""
        return self._entries.oldest_first()

    def entries(self, keys: Iterable[str], position: int) -> list[tuple[Space, str, bytes]]:
        """Return the entries of those keys, to be saved: without newer ones, nor query results, cheap to find again."""
        found: list[tuple[Space, str, bytes]] = []
        for key in keys:
            (space, id_), entry = self.space_of(key), self._entries.peek(key)
            if entry is not None and entry_as_of(entry) <= position and space.kind in RECORDS:
                found.append((space, id_, entry))
        return found

    def forget(self, space: Space, id_: str) -> None:
        """Drop one entry: the database said something else."""
        if self._drop(space.prefix + id_):
            space.counters.invalidations += 1

    def refresh(self, keys: Iterable[tuple[Space, str]]) -> None:
        """Make entries recently used, the last one most."""
        for space, id_ in keys:
            key = space.prefix + id_
            if key in self._entries:
                self._entries[key]

    def _touch(self, key: str, position: int) -> None:
        watch = self._watched.get(key)
        if watch is not None:
            watch.touched = position
        for fence in self._fences:
            fence.touched[key] = position

    def _put(self, key: str, entry: bytes, old: bytes | None) -> None:
        """Put an entry in place of `old`, the one that is there, and push out what no longer fits."""
        entries = self._entries
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
