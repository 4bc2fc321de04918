"""Misses: one read a key however many ask, and nobody is given an answer older than what he has seen.

A caller notes the cache's position when he asks. He may join a read that is already under way; its answer is his only
if it saw at least that position, else he reads again. Without that check a joiner could be handed the value from before
a write that was acknowledged to him.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from memory_store.cache.tier import CacheTier, Fence, Space
from memory_store.codec import Row, pack_row
from memory_store.durable.reader import Key, Reader, Snapshot

__all__ = ["ReadThrough"]


class _Waiter(NamedTuple):
    future: asyncio.Future[list[Row]]
    position: int


class _Flight:
    """One read under way for a key, its fence, and who waits for it."""

    __slots__ = ("fence", "waiters")

    def __init__(self, fence: Fence) -> None:
        self.fence = fence
        self.waiters: list[_Waiter] = []


class ReadThrough:
    """Reads keys from the durable tier into the cache."""

    def __init__(self, cache: CacheTier, reader: Reader) -> None:
        self._cache, self._reader = cache, reader
        self._flights: dict[str, _Flight] = {}

    def load(self, space: Space, id_: str) -> asyncio.Future[list[Row]]:
        """Return a future of the key's rows (none: it is absent). Cancelling it leaves the read to the others."""
        future: asyncio.Future[list[Row]] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(future, self._cache.position)
        flight = self._flights.get(space.prefix + id_)
        if flight is None:
            self._take_off(space, id_, [waiter])
        else:
            flight.waiters.append(waiter)
        return future

    def _take_off(self, space: Space, id_: str, waiters: list[_Waiter]) -> None:
        fence = self._cache.fence()
        fence.__enter__()
        flight = self._flights[space.prefix + id_] = _Flight(fence)
        flight.waiters.extend(waiters)
        key = Key(space.kind, space.namespace, id_)
        self._reader.request(key, lambda outcome: self._land(space, key, flight, outcome))

    def _land(self, space: Space, key: Key, flight: _Flight, outcome: Snapshot | BaseException) -> None:
        del self._flights[space.prefix + key.id]
        flight.fence.__exit__()
        waiters = [waiter for waiter in flight.waiters if not waiter.future.done()]
        if isinstance(outcome, BaseException):
            for waiter in waiters:
                waiter.future.set_exception(outcome)
            return
        rows = outcome.rows[key]
        self._cache.fill(space, key.id, [pack_row(row) for row in rows], outcome.position, flight.fence)
        late = []
        for waiter in waiters:
            if outcome.position >= waiter.position:
                waiter.future.set_result(list(rows))
            else:
                late.append(waiter)
        if late:
            self._take_off(space, key.id, late)
