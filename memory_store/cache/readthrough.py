"""Misses: one read a key however many ask, and nobody is given an answer older than what he has seen.

A caller notes the cache's position when he asks, after it was made as fresh as he wants. He may join a read that is
already under way; its answer is his only if it saw at least that position, else he reads again. Without that check a
joiner could be handed the value from before a write that was acknowledged to him.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from memory_store.cache.entries import Space
from memory_store.cache.fences import NEVER, Watch
from memory_store.cache.sharing import SharedShard
from memory_store.cache.tier import CacheTier
from memory_store.codec import Row, pack_row
from memory_store.durable.changes import HeadState
from memory_store.durable.reader import Key, Reader

__all__ = ["ReadThrough"]

_Waiter = tuple["asyncio.Future[list[Row]]", int]
"""Who waits, and the position his answer must have seen."""


class _Flight(Watch):
    """One read under way for a key, and who waits for it."""

    __slots__ = ("_through", "id", "key", "space", "waiters")

    def __init__(self, through: ReadThrough, space: Space, id_: str, waiters: list[_Waiter]) -> None:
        super().__init__()
        self._through, self.space, self.id, self.waiters = through, space, id_, waiters
        self.key = space.prefix + id_

    def land(self, head: HeadState | None, rows: list[Row], error: BaseException | None) -> None:
        """Take what was read at a commit, or the error."""
        self._through.land(self, head, rows, error)

    def land_shared(self, head: HeadState, rows: list[Row]) -> None:
        """Take what the shared level knew at a commit."""
        self._through.land(self, head, rows, None, shared=True)


class ReadThrough:
    """Reads keys from the durable tier into the cache; from the shared level first, where there is one."""

    def __init__(self, cache: CacheTier, reader: Reader) -> None:
        self._cache, self._reader = cache, reader
        self.shared: SharedShard | None = None
        self._flights: dict[str, _Flight] = {}
        self._loop = asyncio.get_running_loop()

    def is_reading(self, key: str) -> bool:
        """Return whether a read of a cache key is under way, which may have begun long ago."""
        return key in self._flights

    def load(self, space: Space, id_: str, *, start: bool = True) -> asyncio.Future[list[Row]]:
        """Return a future of the key's rows (none: it is absent). Cancelling it leaves the read to the others."""
        future: asyncio.Future[list[Row]] = self._loop.create_future()
        waiter = (future, self._cache.position)
        flight = self._flights.get(space.prefix + id_)
        if flight is None:
            self._take_off(space, id_, [waiter], start)
        else:
            flight.waiters.append(waiter)
        return future

    def load_many(self, space: Space, ids: Sequence[str]) -> list[asyncio.Future[list[Row]]]:
        """Return a future for each id; they are read together."""
        futures = [self.load(space, id_, start=False) for id_ in ids]
        self._reader.start()
        return futures

    def _take_off(self, space: Space, id_: str, waiters: list[_Waiter], start: bool) -> None:
        flight = self._flight(space, id_, waiters)
        if self.shared is None or not self.shared.ask(flight):
            self._reader.request(Key(space.kind, space.namespace, id_), flight.land, start=start)

    def _flight(self, space: Space, id_: str, waiters: list[_Waiter]) -> _Flight:
        flight = _Flight(self, space, id_, waiters)
        self._flights[flight.key] = flight
        self._cache.watch(flight.key, flight)
        return flight

    def pass_on(self, flights: Sequence[_Flight]) -> None:
        """Read what the shared level had no answer for, together."""
        for flight in flights:
            self._reader.request(Key(flight.space.kind, flight.space.namespace, flight.id), flight.land, start=False)
        self._reader.start()

    def land(
        self,
        flight: _Flight,
        head: HeadState | None,
        rows: list[Row],
        error: BaseException | None,
        *,
        shared: bool = False,
    ) -> None:
        """Put what was read into the cache and answer those it may answer; the others read again."""
        del self._flights[flight.key]
        self._cache.unwatch(flight.key)
        if head is None:
            for future, _ in flight.waiters:
                if not future.done():
                    future.set_exception(error or AssertionError("a read ended without rows and without an error"))
            return
        watermark = self._cache.head
        if head == watermark:
            flight.touched = 0  # it saw exactly what the cache stands at, whatever happened to the cache meanwhile
        # After a restart the cache may stand in another past than the one this read saw.
        same_past = flight.touched != NEVER and self._cache.knows(head)
        if same_past:
            filled = self._cache.fill(flight.space, flight.id, [pack_row(row) for row in rows], head.position, flight)
            if filled and self.shared is not None and not shared:
                self.shared.offer(flight.space, flight.id)
        late: list[_Waiter] = []
        for waiter in flight.waiters:
            future, seen = waiter
            if future.done():
                continue
            if same_past and head.position >= min(seen, watermark.position):
                future.set_result(rows)
            else:
                late.append(waiter)
        if late:  # from the database: what is shared may stay behind them
            again = self._flight(flight.space, flight.id, late)
            self._reader.request(Key(flight.space.kind, flight.space.namespace, flight.id), again.land)
