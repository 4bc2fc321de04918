"""The way to the tiers outside a transaction: the cache first, group commit and batched reads behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn

from memory_store.cache.coherence import Coherence
from memory_store.cache.entries import Space
from memory_store.cache.readthrough import ReadThrough
from memory_store.cache.tier import CacheTier
from memory_store.clock import boot_s
from memory_store.codec import Row
from memory_store.config import Freshness, Limits
from memory_store.durable.changes import HeadState
from memory_store.durable.log import Run, look, read_head
from memory_store.durable.operations import Operation
from memory_store.durable.query import Query
from memory_store.durable.reader import read_by_id
from memory_store.durable.tier import Durable
from memory_store.durable.writer import Written
from memory_store.errors import ConfigurationError, StoreClosedError
from memory_store.records import QueryResult

__all__ = ["TieredAccess"]


class TieredAccess:
    """Both tiers of one open store, shared by all its namespaces.

    It belongs to the event loop it was opened on, and says so when it is used from elsewhere: its cache has no lock,
    because a lock would cost more than a hit.
    """

    def __init__(self, limits: Limits, cache: CacheTier, coherence: Coherence) -> None:
        self.limits = limits
        self.cache, self.coherence = cache, coherence
        self.writes = 0
        self.transaction_task: asyncio.Task[Any] | None = None
        """The task whose transaction has the writer now."""
        self.feeds = 0
        """Feeds being followed."""
        self.waiting: set[asyncio.Future[None]] = set()
        """Feeds that wait for a new commit."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unusable = "the store is not open: use `async with MemoryStore(...)` or `await store.open()`"

    @property
    def is_open(self) -> bool:
        """Whether it can be used, on the right loop."""
        return self._loop is not None

    def attach(self, durable: Durable) -> None:
        """Start to be usable, on the running loop."""
        self.durable = durable
        self._through = ReadThrough(self.cache, durable.reader)
        self.coherence.attach(durable.probe, self._slow_look)
        self.coherence.moved = self._wake
        self._loop = asyncio.get_running_loop()

    def detach(self, reason: str) -> None:
        """Refuse every further use, saying why."""
        self._loop = None
        self._unusable = reason
        self.coherence.detach()
        self._wake()

    def _wake(self) -> None:
        for waiting in self.waiting:
            if not waiting.done():
                waiting.set_result(None)

    def require_usable(self) -> None:
        """Check that the store is open and that this is its loop.

        Raises:
            StoreClosedError: it is not.
        """
        if asyncio.get_running_loop() is not self._loop:
            self._refuse()

    def cached(
        self, space: Space, id_: str, freshness: Freshness | None = None, at_least: int | None = None
    ) -> list[Any] | None:
        """Return a live cache entry that is fresh enough, or None.

        Raises:
            PositionLostError: the database has not reached `at_least`.
        """
        if asyncio.get_running_loop() is not self._loop:
            self._refuse()
        now, coherence = boot_s(), self.coherence
        if (now >= coherence.fresh_until or at_least or freshness is not None) and not coherence.refresh(
            now, freshness, at_least
        ):
            return None
        try:
            return self.cache.read(space, id_, now)
        except TypeError:
            if not isinstance(id_, str):
                raise TypeError(f"id must be a str, got {type(id_).__name__}") from None
            raise

    async def load(self, space: Space, ids: Sequence[str], at_least: int | None = None) -> list[list[Row]]:
        """Read what the cache did not have, together with whoever else asks for it."""
        if self.coherence.unsure:
            await self.coherence.refresh_slowly(at_least)
        if len(ids) == 1:
            return [await self._through.load(space, ids[0])]
        return await asyncio.gather(*self._through.load_many(space, ids))

    async def _slow_look(self, known: HeadState) -> Run:
        return await self.durable.scan.run(lambda connection: look(connection, known))

    async def rows_by_id(
        self, kind: str, namespace: str, ids: list[str], at_least: int | None = None
    ) -> dict[str, Row]:
        """Read rows by id, past the cache."""
        self.require_usable()
        rows = await self.durable.scan.run(lambda connection: read_by_id(connection, kind, namespace, ids))
        await self.coherence.catch_up(at_least)  # what is read from the cache after this is no older than these rows
        return rows

    def write(self, operation: Operation) -> asyncio.Future[Written]:
        """Commit a write with whatever else is waiting, and publish it to the cache."""
        self.require_writable()
        self.writes += 1
        return self.durable.writer.submit(operation)

    def require_writable(self) -> None:
        """Check that a write from here can come to an end.

        Raises:
            ConfigurationError: this task has a transaction open, which the write would wait for, for ever.
        """
        self.require_usable()
        if self.transaction_task is not None and self.transaction_task is asyncio.current_task():
            raise ConfigurationError(
                "this task has a transaction open: write through it (tx.episodes.put ...) or after its end"
            )

    async def query(self, query: Query) -> list[tuple[Any, ...]]:
        """Run a query on the lane for long reads."""
        self.require_usable()
        rows = await self.durable.scan.run(lambda connection: connection.execute(*query).fetchall())
        await self.coherence.catch_up()  # as in `rows_by_id`
        return rows

    async def count(self, reads: Space, query: Query, freshness: Freshness | None = None) -> int:
        """Run a query that counts, unless the cache knows its answer and the kind has not changed since."""
        self.require_usable()
        now = boot_s()
        known = None
        if (freshness is None and now < self.coherence.fresh_until) or self.coherence.refresh(now, freshness, 0):
            known = self.cache.read_result(reads, query.id, now)
        if known is not None and known.total is not None:
            return known.total
        watermark = self.cache.position
        # The position is read first: changes that come in between make the result void sooner than needed, never later.
        head, total = await self.durable.scan.run(
            lambda connection: (read_head(connection), int(connection.execute(*query).fetchone()[0]))
        )
        await self.coherence.catch_up()  # as in `rows_by_id`
        if watermark <= head.position and self.cache.knows(head):  # else the database was taken back
            self.cache.put_result(reads, QueryResult(id=query.id, total=total), head.position)
        return total

    def _refuse(self) -> NoReturn:
        if self._loop is not None:
            raise StoreClosedError("the store was opened on another event loop: open one store per loop")
        raise StoreClosedError(self._unusable)
