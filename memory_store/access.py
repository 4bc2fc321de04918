"""The way to the tiers outside a transaction: the cache first, group commit and batched reads behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn

from memory_store.cache.entries import Space
from memory_store.cache.readthrough import ReadThrough
from memory_store.cache.tier import CacheTier
from memory_store.codec import Row
from memory_store.config import Limits
from memory_store.durable.operations import Operation
from memory_store.durable.query import Query
from memory_store.durable.reader import read_by_id, read_head
from memory_store.durable.tier import Durable
from memory_store.errors import ConfigurationError, StoreClosedError
from memory_store.records import QueryResult

__all__ = ["TieredAccess"]


class TieredAccess:
    """Both tiers of one open store, shared by all its namespaces.

    It belongs to the event loop it was opened on, and says so when it is used from elsewhere: its cache has no lock,
    because a lock would cost more than a hit.
    """

    def __init__(self, limits: Limits, cache: CacheTier) -> None:
        self.limits = limits
        self.cache = cache
        self.writes = 0
        self.transaction_task: asyncio.Task[Any] | None = None
        """The task whose transaction has the writer now."""
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
        self._loop = asyncio.get_running_loop()

    def detach(self, reason: str) -> None:
        """Refuse every further use, saying why."""
        self._loop = None
        self._unusable = reason

    def require_usable(self) -> None:
        """Check that the store is open and that this is its loop.

        Raises:
            StoreClosedError: it is not.
        """
        if asyncio.get_running_loop() is not self._loop:
            self._refuse()

    def cached(self, space: Space, id_: str) -> list[Any] | None:
        """Return a live cache entry, or None."""
        if asyncio.get_running_loop() is not self._loop:
            self._refuse()
        try:
            return self.cache.read(space, id_)
        except TypeError:
            if not isinstance(id_, str):
                raise TypeError(f"id must be a str, got {type(id_).__name__}") from None
            raise

    async def load(self, space: Space, ids: Sequence[str]) -> list[list[Row]]:
        """Read what the cache did not have, together with whoever else asks for it."""
        if len(ids) == 1:
            return [await self._through.load(space, ids[0])]
        return await asyncio.gather(*self._through.load_many(space, ids))

    async def rows_by_id(self, kind: str, namespace: str, ids: list[str]) -> dict[str, Row]:
        """Read rows by id, past the cache."""
        self.require_usable()
        return await self.durable.scan.run(lambda connection: read_by_id(connection, kind, namespace, ids))

    def write(self, operation: Operation) -> asyncio.Future[Any]:
        """Commit a write with whatever else is waiting, and publish it to the cache."""
        self.require_writable()
        self.writes += 1
        return self.durable.writer.submit(operation)

    def forget(self, space: Space, id_: str) -> None:
        """Drop a cache entry that the database has contradicted."""
        self.cache.forget(space, id_)

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
        return await self.durable.scan.run(lambda connection: connection.execute(*query).fetchall())

    async def count(self, reads: Space, query: Query) -> int:
        """Run a query that counts, unless the cache knows its answer and the kind has not changed since."""
        self.require_usable()
        known = self.cache.read_result(reads, query.id)
        if known is not None and known.total is not None:
            return known.total
        # The position is read first: changes that come in between make the result void sooner than needed, never later.
        position, total = await self.durable.scan.run(
            lambda connection: (read_head(connection).position, int(connection.execute(*query).fetchone()[0]))
        )
        self.cache.put_result(reads, QueryResult(id=query.id, total=total), position)
        return total

    def _refuse(self) -> NoReturn:
        if self._loop is not None:
            raise StoreClosedError("the store was opened on another event loop: open one store per loop")
        raise StoreClosedError(self._unusable)
