"""The cache tier of one shard: its entries on the shelf stay true by following the change log.

What holds here: every live entry of the shard equals the database at the watermark `head`. `apply` and `publish` keep
that by dropping or replacing what a commit touched, `fill` by the fence below; all of it runs on the event loop without
an await inside, so nobody can look in between. When anything may have changed, a floor makes all older entries count as
absent: dropping 100,000 at once would hold the loop up for 20 ms.

`fill` puts nothing that a `Watch` or `Fence` saw touched after the position it was read at (see fences.py): the cache
whose slow reader puts an old value back is the usual bug.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from memory_store.cache.entries import Space
from memory_store.cache.fences import NEVER, Fence, Watch
from memory_store.cache.shelf import ENTRY_OVERHEAD_BYTES, Shelf, cost_of
from memory_store.codec import append_rows, entry_as_of, entry_expiry, make_entry, pack_row
from memory_store.durable.changes import PUBLISH_LIMIT, Change, HeadState
from memory_store.durable.log import NOTHING, STORE, Commit, Logged
from memory_store.records import QueryResult

__all__ = ["CacheTier"]

# Reads that were overtaken by more commits than this are made again.
_MOST_REMEMBERED = 1024


class CacheTier:
    """The entries of one shard, kept true: a `Follower` that also takes this process's own commits.

    Args:
        shelf: where the entries are.
        head: the commit it begins at.
    """

    def __init__(self, shelf: Shelf, head: HeadState = NOTHING) -> None:
        self.shelf = shelf
        self.head = head
        """The watermark: the newest commit that has been applied here."""
        self._floor = 0
        """Floor of the spaces that are yet to be made."""
        self._spaces: dict[tuple[str, str], Space] = {}
        self.failures = self.restarts = self.applied = 0
        self._fences: set[Fence] = set()
        self._recent: dict[int, int] = {}
        """Nonces of the newest commits that were applied here, by position."""
        self._watched: dict[str, Watch] = {}

    @property
    def position(self) -> int:
        """The watermark's position."""
        return self.head.position

    def knows(self, head: HeadState) -> bool:
        """Return whether a commit was applied here lately: another one may be of a past that is none any more."""
        known = self.head
        return head == known or (self._recent.get(head.position) == head.nonce and head[2:] == known[2:])

    def _move(self, head: HeadState) -> None:
        recent = self._recent
        recent[self.head.position], recent[head.position] = self.head.nonce, head.nonce
        self.head = head
        while len(recent) > _MOST_REMEMBERED:
            del recent[next(iter(recent))]

    def space(self, kind: str, namespace: str) -> Space:
        """Return the space of a kind in a namespace of this shard; the same one each time."""
        space = self._spaces.get((kind, namespace))
        if space is None:
            space = self._spaces[kind, namespace] = self.shelf.space(kind, namespace)
            space.shard = self.head.shard
            space.changed = space.floor = self._floor
        return space

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
            space.counters.dirty_fills += 1
            return False
        self.shelf.put(key, make_entry(self.shelf.age_s() + space.ttl_s, as_of, packed), self.shelf.peek(key))
        space.counters.fills += 1
        return True

    def adopt(self, space: Space, id_: str, entry: bytes, fence: Fence) -> bool:
        """Put a saved entry, unless its key is in use or was touched since the fence; return whether it was put.

        Adopted entries are the older ones: they never push out what is there.
        """
        key, shelf = space.prefix + id_, self.shelf
        if key in shelf.contents or not fence.lets_pass(key, entry_as_of(entry)):
            return False
        cost = cost_of(key, entry)
        if shelf.used_bytes + cost > shelf.max_bytes:
            return False
        shelf.used_bytes += cost
        shelf.contents[key] = entry
        return True

    def fill_if_room(self, space: Space, id_: str, packed: list[bytes], as_of: int, fence: Fence) -> bool:
        """As `adopt`, for rows read at position `as_of`."""
        put = self.adopt(space, id_, make_entry(self.shelf.age_s() + space.ttl_s, as_of, packed), fence)
        space.counters.fills += put
        return put

    def adopt_many(self, keys: Sequence[str], entries: Sequence[bytes], fence: Fence) -> None:
        """As `adopt`, for many; keys as `space` makes them, none twice."""
        cost = sum(map(sys.getsizeof, keys)) + sum(map(sys.getsizeof, entries)) + ENTRY_OVERHEAD_BYTES * len(keys)
        shelf = self.shelf
        fits = shelf.used_bytes + cost <= shelf.max_bytes
        if fence.is_untouched and fits and not any(map(shelf.peek, keys)):
            shelf.used_bytes += cost
            shelf.contents.put_new(keys, entries)
            return
        for key, entry in zip(keys, entries, strict=True):
            self.adopt(*shelf.space_of(key), entry, fence)

    def apply(self, changes: Sequence[Logged], head: HeadState) -> None:
        """Take what others changed between the watermark and `head`: drop it, mark it for the reads under way."""
        for position, nonce, kind, namespace, key, parent in changes:
            self._recent[position] = nonce
            space = self._spaces.get((kind, namespace))
            if space is None:  # nothing of it is cached, or being read, here
                continue
            space.changed = position
            touched = parent or key
            if touched is None:
                self._raise_floor(space, position)
                continue
            name = space.prefix + touched
            self._touch(name, position)
            entry = self.shelf.peek(name)
            # A fill may have come here from a snapshot that is newer than this change.
            if entry is not None and entry_as_of(entry) < position:
                self.shelf.drop(name)
                space.counters.invalidations += 1
        self.applied += len(changes)
        self._move(head)

    def publish(self, commit: Commit) -> None:
        """Take a commit of this process that follows the watermark, or is the watermark.

        On return no reader of this process can see what was before it. A failure costs the cache its entries, never
        the write: it is durable and must be answered.
        """
        self._move(commit.head)
        try:
            self._publish(commit)
        except Exception:  # an empty cache is right, a half-applied one is not
            self.failures += 1
            self.restart(commit.head)

    def restart(self, head: HeadState) -> None:
        """Count everything as absent: between the watermark and `head` anything may have changed.

        Reads under way are refused as well, since `head` may belong to another past than the one they saw.
        """
        self.restarts += 1
        self._recent = {head.position: head.nonce}
        if head.position <= self.head.position:
            self.shelf.clear()  # entries from a past that is none any more may claim positions above the floor
        self.head, self._floor, self.shelf.has_floors = head, head.position, True
        for fence in self._fences:
            fence.floor = NEVER
        for watch in self._watched.values():
            watch.touched = NEVER
        for space in self._spaces.values():
            space.changed = space.floor = head.position

    def _publish(self, commit: Commit) -> None:
        if len(commit.changes) > PUBLISH_LIMIT:
            self._invalidate(commit)
            return
        # The last change of a record is what counts; the parts of an episode are put together, copying its entry once.
        changed: dict[str, tuple[Space, list[Change]]] = {}
        for change in commit.changes:
            if change.kind == STORE:
                continue
            space = self.space(change.kind, change.namespace)
            space.changed = commit.position
            key = space.prefix + (change.parent or change.key or "")
            known = changed.get(key)
            if known is None:
                changed[key] = (space, [change])
            else:
                known[1].append(change)
        now = self.shelf.age_s()
        for key, (space, changes) in changed.items():
            self._touch(key, commit.position)
            old = self.shelf.peek(key)
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
            self.shelf.put(key, make_entry(now + space.ttl_s, position, () if last.body is None else (last.body,)), old)
            return
        bodies = [change.body for change in changes if change.body is not None and change.follows is not None]
        if len(bodies) == len(changes) and not changes[0].follows:
            self.shelf.put(key, make_entry(now + space.ttl_s, position, bodies), old)
        elif (
            len(bodies) == len(changes)
            and old is not None
            and entry_expiry(old) > now
            and entry_as_of(old) >= space.floor
        ):
            self.shelf.put(key, append_rows(old, now + space.ttl_s, position, bodies), old)
        elif self.shelf.drop(key):
            space.counters.invalidations += 1

    def _invalidate(self, commit: Commit) -> None:
        """Drop what a large commit touched; finding it is one set operation, 4 ms for 100,000 keys."""
        prefixes: dict[tuple[str, str], str] = {}
        keys: set[str] = set()
        for change in commit.changes:
            if change.kind == STORE:
                continue
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
            self._watched[key].touched = max(self._watched[key].touched, commit.position)
        for key in self.shelf.contents.keys() & keys:
            self.shelf.drop(key)
            self.shelf.space_of(key)[0].counters.invalidations += 1

    def _raise_floor(self, space: Space, position: int) -> None:
        """Count a whole kind of a namespace as absent."""
        self.shelf.has_floors = True
        space.floor = position
        for fence in self._fences:
            fence.floors[space.prefix] = position
        for key, watch in self._watched.items():
            if key.startswith(space.prefix):
                watch.touched = max(watch.touched, position)

    def read_result(self, reads: Space, id_: str, now: float) -> QueryResult | None:
        """Return a cached query result, unless the kind it read has changed since."""
        space = self.space(QueryResult.kind, reads.namespace)
        entry = self.shelf.peek(space.prefix + id_)
        if entry is not None and entry_as_of(entry) < reads.changed:
            self.shelf.drop(space.prefix + id_)
            space.counters.invalidations += 1
        rows = self.shelf.read(space, id_, now)
        return None if rows is None else QueryResult.from_row(rows[2])

    def put_result(self, reads: Space, result: QueryResult, as_of: int) -> None:
        """Put a query result that was read at position `as_of`; later changes of the kind it read make it void."""
        space = self.space(QueryResult.kind, reads.namespace)
        key = space.prefix + result.id
        entry = make_entry(self.shelf.age_s() + space.ttl_s, as_of, [pack_row(result.to_row())])
        self.shelf.put(key, entry, self.shelf.peek(key))
        space.counters.fills += 1

    def _touch(self, key: str, position: int) -> None:
        watch = self._watched.get(key)
        if watch is not None and watch.touched < position:  # NEVER stays
            watch.touched = position
        for fence in self._fences:
            fence.touched[key] = position
