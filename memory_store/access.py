"""The way to the tiers outside a transaction: the cache first, group commit and batched reads behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn

from memory_store.cache.entries import Space
from memory_store.cache.shard import Shard, Shards
from memory_store.cache.shelf import Shelf
from memory_store.clock import boot_s
from memory_store.codec import Row
from memory_store.config import Freshness, Limits
from memory_store.durable.changes import HeadState
from memory_store.durable.connection import Connection
from memory_store.durable.log import NOTHING, Run, one_state, read_head, read_run
from memory_store.durable.operations import Operation
from memory_store.durable.query import Query, head_in
from memory_store.durable.reader import read_by_id
from memory_store.durable.statements import dialect
from memory_store.durable.writer import Written
from memory_store.errors import DurableError, DurableTimeoutError, DurableUnavailableError, StoreClosedError
from memory_store.records import QueryResult

__all__ = ["TieredAccess"]

# Of a run that a follower outside the cache asks for, perhaps after hours: read in 30 ms. Further behind, it is cheaper
# to derive everything anew.
_MOST_CHANGES = 20_000


class TieredAccess:
    """Both tiers as one namespace of an open store reaches them.

    It belongs to the event loop it was opened on, and says so when it is used from elsewhere: its cache has no lock,
    because a lock would cost more than a hit.
    """

    def __init__(self, namespace: str, limits: Limits, shelf: Shelf) -> None:
        self.namespace, self.limits, self.shelf = namespace, limits, shelf
        self.dialect = dialect()
        self.asks_head_of: int | None = None
        self.shards: Shards | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.unusable = "the store is not open: use `async with MemoryStore(...)` or `await store.open()`"
        """Why it cannot be used, where that is so."""

    @property
    def is_open(self) -> bool:
        """Whether it can be used, on the right loop."""
        return self._loop is not None

    @property
    def position(self) -> int:
        """Position of the newest commit seen, also after it was closed; 0 before it was open."""
        return 0 if self.shards is None else self.coherence.head.position

    def attach(self, shards: Shards, shard: Shard | None = None) -> None:
        """Start to be usable, on the shards' loop; `shard` is that of the namespace unless another one is given."""
        self.shards, self.durable, self.dialect = shards, shards.durable, shards.durable.dialect
        if shard is None:
            shard = shards.of(self.namespace)
            for kind in self.shelf.counters:
                shard.tier.space(kind, self.namespace)
        self.shard, self.cache, self.coherence = shard, shard.tier, shard.coherence
        # Where looking is a round trip, a query brings the head with it.
        self.asks_head_of = shard.number if shards.durable.probe is None else None
        self._loop = shards.loop

    def detach(self, reason: str) -> None:
        """Refuse every further use, saying why."""
        self._loop = None
        self.unusable = reason

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
            return self.shelf.read(space, id_, now)
        except TypeError:
            if not isinstance(id_, str):
                raise TypeError(f"id must be a str, got {type(id_).__name__}") from None
            raise

    async def load(
        self, space: Space, ids: Sequence[str], freshness: Freshness | None = None, at_least: int | None = None
    ) -> list[list[Row]]:
        """Read what the cache did not have, together with whoever else asks for it."""
        through = self.shard.through
        if self.coherence.unsure:
            return await self._load_unsure(space, ids, freshness, at_least)
        if len(ids) == 1:
            return [await through.load(space, ids[0])]
        return await asyncio.gather(*through.load_many(space, ids))

    async def _load_unsure(
        self, space: Space, ids: Sequence[str], freshness: Freshness | None, at_least: int | None
    ) -> list[list[Row]]:
        """Look at the head by way of a lane, then answer from the cache what can be, else read."""
        keys = [space.prefix + id_ for id_ in ids]
        # What is shared, or read from a replica, is believed for having been looked at.
        derived = self.shard.through.shared is not None or self.durable.replica is not None
        if not derived and not any(self.shelf.peek(key) or self.shard.through.is_reading(key) for key in keys):
            # All must be read, from now on: that is a look as well.
            loaded = await asyncio.gather(*self.shard.through.load_many(space, ids))
            self.coherence.require(at_least)
            return loaded
        try:
            await self.coherence.refresh_slowly(at_least)
        except (DurableUnavailableError, DurableTimeoutError):
            if not self.coherence.is_tolerable(boot_s(), freshness, at_least):
                raise
        self.require_usable()  # a look that ended because the store was closed has seen nothing
        through, now = self.shard.through, boot_s()
        entries = [self.shelf.read(space, id_, now) for id_ in ids]
        missing = [id_ for id_, entry in zip(ids, entries, strict=True) if entry is None]
        read = iter(await asyncio.gather(*through.load_many(space, missing)) if missing else ())
        return [next(read) if entry is None else entry[2:] for entry in entries]

    async def rows_by_id(
        self, kind: str, namespace: str, ids: list[str], at_least: int | None = None
    ) -> dict[str, Row]:
        """Read rows by id, past the cache."""
        self.require_usable()
        rows = await self.durable.scan.run(lambda connection: read_by_id(connection, kind, namespace, ids))
        await self.coherence.catch_up(at_least)  # what is read from the cache after this is no older than these rows
        return rows

    def write(self, operation: Operation, shard: Shard | None = None) -> asyncio.Future[Written]:
        """Commit a write with whatever else is waiting, and publish it to the cache.

        Args:
            operation: the write.
            shard: that of its namespace, where this is not the namespace's own access.
        """
        self.require_usable()
        shard = shard or self.shard
        shard.require_no_transaction()
        shard.writes += 1
        return shard.writer.submit(operation)

    def require_writable(self) -> None:
        """Check that a write from here can come to an end.

        Raises:
            ConfigurationError: this task has a transaction open, which the write would wait for, for ever.
        """
        self.require_usable()
        self.shard.require_no_transaction()

    async def query(self, query: Query) -> list[tuple[Any, ...]]:
        """Run a page's query on the lane for long reads."""
        self.require_usable()
        rows: list[tuple[Any, ...]] = await self._query_replica(query)
        if not rows:
            rows = await self.durable.scan.run(lambda connection: connection.execute(*query).fetchall())
        # What is read from the cache after this is no older than these rows.
        if self.asks_head_of is None or not rows or not self.cache.knows(head_in(rows[0])):
            await self.coherence.catch_up()
        return rows

    async def changes_since(self, known: HeadState | None) -> Run:
        """Return what leads from a commit of this namespace's shard, or from nothing, to the newest one.

        What is read after it, by whatever way, is no older than that.
        """
        self.require_usable()
        start = known or NOTHING._replace(shard=self.shard.number)
        run = await self.durable.scan.run(lambda connection: _run_since(connection, start))
        await self.coherence.catch_up()
        return run

    async def _query_replica(self, query: Query) -> list[tuple[Any, ...]]:
        """Run a query on the replica; no rows where there is none, or it is behind, or it cannot be asked."""
        replica = self.durable.replica
        if replica is None:
            return []
        if boot_s() >= self.coherence.fresh_until:
            await self.coherence.catch_up()
        known = self.cache.head
        try:
            rows = await replica.run(lambda connection: connection.execute(*query).fetchall())
        except DurableError:
            return []
        head = head_in(rows[0]) if rows else None
        return rows if head is not None and head[2:] == known[2:] and head.position >= known.position else []

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
            lambda connection: (
                read_head(connection, self.shard.number),
                int(connection.execute(*query).fetchone()[0]),
            )
        )
        await self.coherence.catch_up()  # as in `rows_by_id`
        if watermark <= head.position and self.cache.knows(head):  # else the database was taken back
            self.cache.put_result(reads, QueryResult(id=query.id, total=total), head.position)
        return total

    def _refuse(self) -> NoReturn:
        if self._loop is not None:
            raise StoreClosedError("the store was opened on another event loop: open one store per loop")
        raise StoreClosedError(self.unusable)


def _run_since(connection: Connection, known: HeadState) -> Run:
    with one_state(connection):
        return read_run(connection, known, read_head(connection, known.shard), _MOST_CHANGES)
