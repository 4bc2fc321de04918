"""Filling the cache from the durable tier: most used first, then newest, until the budget is full."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memory_store.cache.shard import Shard, Shards
from memory_store.codec import pack_row
from memory_store.durable.changes import HeadState
from memory_store.durable.connection import Connection
from memory_store.durable.log import is_rewind
from memory_store.durable.reader import PlainKey, Snapshot, newest_keys, snapshot_of

__all__ = ["Progress", "rebuild"]

_READ_AT_ONCE = 64
_REFRESH_AT_ONCE = 512
# An entry of real episodes is rarely smaller; it only bounds how many keys are looked up for a budget.
_SMALLEST_ENTRY_BYTES = 400


@dataclass(slots=True)
class Progress:
    """How far a rebuild is, in cache keys."""

    done: int = 0
    total: int = 0


async def rebuild(shards: Shards, used: Sequence[PlainKey], progress: Progress) -> None:
    """Fill the cache in the background; the store serves meanwhile, and can be written to.

    Args:
        shards: those whose entries are filled; what is there, or changes meanwhile, is left alone.
        used: keys known to have been used lately, most recent first.
        progress: kept up to date.
    """
    shelf, scan = shards.shelf, shards.durable.scan
    limit = shelf.max_bytes // _SMALLEST_ENTRY_BYTES
    plan = await scan.run(lambda connection: _without_repeats(used[:limit], newest_keys(connection, limit)))
    progress.total = len(plan)
    filled: list[PlainKey] = []
    for batch in _batches(plan, _READ_AT_ONCE):
        if shelf.is_full():
            break
        by_shard: defaultdict[int, list[PlainKey]] = defaultdict(list)
        for key in batch:
            by_shard[shards.of(key[1]).number].append(key)
        for number, keys in by_shard.items():
            filled += await _fill(shards[number], keys)
        progress.done += len(batch)
    progress.total = progress.done
    # The first ones are worth most, so they must be the last to be pushed out.
    filled.reverse()
    for batch in _batches(filled, _REFRESH_AT_ONCE):
        shelf.refresh((shards.space(kind, namespace), id_) for kind, namespace, id_ in batch)
        await asyncio.sleep(0)


async def _fill(shard: Shard, keys: list[PlainKey]) -> list[PlainKey]:
    """Read keys of one shard into the cache where there is room; return those that were put."""
    tier = shard.tier
    with tier.fence() as fence:
        # Made before the read: what is published of a space that nobody knows is not noted in the fence.
        spaces = [tier.space(kind, namespace) for kind, namespace, _ in keys]
        snapshot = await shard.scan.run(_reading(keys, tier.head))
        shard.coherence.deliver(snapshot.run)
        if is_rewind(snapshot.run) or not tier.knows(snapshot.run.head):
            return []  # the database was taken back meanwhile
        as_of = snapshot.run.head.position
        filled = []
        for key, space, rows in zip(keys, spaces, snapshot.rows, strict=True):
            packed = [pack_row(row) for row in rows]
            if packed and tier.fill_if_room(space, key[2], packed, as_of, fence):
                filled.append(key)
        return filled


def _without_repeats(*runs: Sequence[PlainKey]) -> list[PlainKey]:
    # A loop of its own and not `dict.fromkeys`, which would keep the interpreter, and so the event loop, for 50 ms.
    seen: set[PlainKey] = set()
    keys: list[PlainKey] = []
    for run in runs:
        for key in run:
            if key not in seen:
                seen.add(key)
                keys.append(key)
    return keys


def _reading(keys: list[PlainKey], known: HeadState) -> Callable[[Connection], Snapshot]:
    return lambda connection: snapshot_of(connection, keys, known)


def _batches(keys: Sequence[PlainKey], size: int) -> Iterator[list[PlainKey]]:
    for start in range(0, len(keys), size):
        yield list(keys[start : start + size])
