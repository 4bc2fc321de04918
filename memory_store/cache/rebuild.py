"""Filling the cache from the durable tier: most used first, then newest, until the budget is full."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memory_store.cache.tier import CacheTier
from memory_store.codec import pack_row
from memory_store.durable.lane import Lane
from memory_store.durable.reader import Key, Snapshot, newest_keys, snapshot_of

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


async def rebuild(cache: CacheTier, scan: Lane, used: Sequence[Key], progress: Progress) -> None:
    """Fill the cache in the background; the store serves meanwhile, and can be written to.

    Args:
        cache: what is filled; entries that are there, or change meanwhile, are left alone.
        scan: the lane for long reads.
        used: keys known to have been used lately, most recent first.
        progress: kept up to date.
    """
    limit = cache.max_bytes // _SMALLEST_ENTRY_BYTES
    plan = await scan.run(lambda connection: list(dict.fromkeys([*used[:limit], *newest_keys(connection, limit)])))
    progress.total = len(plan)
    filled: list[Key] = []
    for batch in _batches(plan, _READ_AT_ONCE):
        if cache.is_full():
            break
        with cache.fence() as fence:
            snapshot = await scan.run(_reading(batch))
            for key, rows in zip(batch, snapshot.rows, strict=True):
                space = cache.space(key.kind, key.namespace)
                if rows and cache.fill_if_room(
                    space, key.id, [pack_row(row) for row in rows], snapshot.position, fence
                ):
                    filled.append(key)
        progress.done += len(batch)
    progress.total = progress.done
    # The first ones are worth most, so they must be the last to be pushed out.
    filled.reverse()
    for batch in _batches(filled, _REFRESH_AT_ONCE):
        cache.refresh((cache.space(key.kind, key.namespace), key.id) for key in batch)
        await asyncio.sleep(0)


def _reading(keys: list[Key]) -> Callable[[sqlite3.Connection], Snapshot]:
    return lambda connection: snapshot_of(connection, keys)


def _batches(keys: Sequence[Key], size: int) -> Iterator[list[Key]]:
    for start in range(0, len(keys), size):
        yield list(keys[start : start + size])
