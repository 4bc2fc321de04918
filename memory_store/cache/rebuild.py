"""Filling the cache from the durable tier: most used first, then newest, until the budget is full."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memory_store.cache.coherence import Coherence
from memory_store.codec import pack_row
from memory_store.durable.changes import HeadState
from memory_store.durable.lane import Lane
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


async def rebuild(coherence: Coherence, scan: Lane, used: Sequence[PlainKey], progress: Progress) -> None:
    """Fill the cache in the background; the store serves meanwhile, and can be written to.

    Args:
        coherence: of the cache that is filled; entries that are there, or change meanwhile, are left alone.
        scan: the lane for long reads.
        used: keys known to have been used lately, most recent first.
        progress: kept up to date.
    """
    cache = coherence.cache
    limit = cache.max_bytes // _SMALLEST_ENTRY_BYTES
    plan = await scan.run(lambda connection: _without_repeats(used[:limit], newest_keys(connection, limit)))
    progress.total = len(plan)
    filled: list[PlainKey] = []
    for batch in _batches(plan, _READ_AT_ONCE):
        if cache.is_full():
            break
        with cache.fence() as fence:
            # Made before the read: what is published of a space that nobody knows is not noted in the fence.
            spaces = [cache.space(kind, namespace) for kind, namespace, _ in batch]
            snapshot = await scan.run(_reading(batch, cache.head))
            coherence.deliver(snapshot.run)
            as_of = snapshot.run.head.position
            if is_rewind(snapshot.run) or not cache.knows(snapshot.run.head):
                continue  # the database was taken back meanwhile
            for key, space, rows in zip(batch, spaces, snapshot.rows, strict=True):
                packed = [pack_row(row) for row in rows]
                if packed and cache.fill_if_room(space, key[2], packed, as_of, fence):
                    filled.append(key)
        progress.done += len(batch)
    progress.total = progress.done
    # The first ones are worth most, so they must be the last to be pushed out.
    filled.reverse()
    for batch in _batches(filled, _REFRESH_AT_ONCE):
        cache.refresh((cache.space(kind, namespace), id_) for kind, namespace, id_ in batch)
        await asyncio.sleep(0)


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


def _reading(keys: list[PlainKey], known: HeadState) -> Callable[[sqlite3.Connection], Snapshot]:
    return lambda connection: snapshot_of(connection, keys, known)


def _batches(keys: Sequence[PlainKey], size: int) -> Iterator[list[PlainKey]]:
    for start in range(0, len(keys), size):
        yield list(keys[start : start + size])
