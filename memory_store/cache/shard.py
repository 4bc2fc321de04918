"""A shard: one head of the database with everything that follows it in this process.

Positions, watermarks and freshness are a shard's own, and a namespace belongs to one shard: what is promised of the
order of commits is promised within a namespace. SQLite has one shard, since its writers share one lock anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from memory_store.cache.coherence import Coherence
from memory_store.cache.entries import Space
from memory_store.cache.fences import Fence
from memory_store.cache.readthrough import ReadThrough
from memory_store.cache.shared import Link, SharedCounters
from memory_store.cache.sharing import SharedShard
from memory_store.cache.shelf import Shelf
from memory_store.cache.tier import CacheTier
from memory_store.cache.trail import SharingTier
from memory_store.config import Settings
from memory_store.durable.changes import HeadState, shard_of
from memory_store.durable.indexing import Indexer
from memory_store.durable.log import Run, look
from memory_store.durable.tier import Durable
from memory_store.errors import ConfigurationError

__all__ = ["Shard", "Shards"]


class Shard:
    """One shard of one open store.

    Args:
        durable: the open durable tier.
        shelf: where the cache's entries are.
        head: its newest commit when the store was opened.
        settings: of the store.
        link: to the shared level, None for none.
    """

    def __init__(
        self, durable: Durable, shelf: Shelf, head: HeadState, settings: Settings, link: Link | None = None
    ) -> None:
        self.number = head.shard
        self.tier = CacheTier(shelf, head) if link is None else SharingTier(shelf, head)
        self.coherence = Coherence(self.tier, settings.freshness, settings.staleness_s, settings.outage_staleness_s)
        self.writer = durable.writer(self.coherence, head)
        self.indexer = Indexer(self.writer, head.shard)
        self.reader = durable.reader(self.coherence)
        self.through = ReadThrough(self.tier, self.reader)
        if link is not None and isinstance(self.tier, SharingTier):
            self.through.shared = SharedShard(link, self.tier, self._slow_look, self.through.pass_on)
        self.scan = durable.scan
        self.writes = 0
        """Writes asked for, outside transactions."""
        self.transaction_task: asyncio.Task[Any] | None = None
        """The task whose transaction has the writer now."""
        self.feeds = 0
        """Feeds being followed."""
        self.waiting: set[asyncio.Future[None]] = set()
        """Feeds that wait for a new commit."""
        self.coherence.attach(durable.probe, self._slow_look)
        self.coherence.moved = self.wake

    async def _slow_look(self, known: HeadState) -> Run:
        return await self.scan.run(lambda connection: look(connection, known))

    def wake(self) -> None:
        """Wake the feeds that wait."""
        for waiting in self.waiting:
            if not waiting.done():
                waiting.set_result(None)

    def require_no_transaction(self) -> None:
        """Check that a write from here can come to an end.

        Raises:
            ConfigurationError: this task has a transaction open, which the write would wait for, for ever.
        """
        if self.transaction_task is not None and self.transaction_task is asyncio.current_task():
            raise ConfigurationError(
                "this task has a transaction open: write through it (tx.episodes.put ...) or after its end"
            )

    def detach(self) -> None:
        """Look no more, and let nobody wait."""
        self.coherence.detach()
        self.wake()


class Shards(list[Shard]):
    """All shards of one open store, by number, and the shelf they share."""

    def __init__(self, durable: Durable, shelf: Shelf, settings: Settings, link: Link | None = None) -> None:
        super().__init__(Shard(durable, shelf, head, settings, link) for head in durable.heads)
        self.shelf, self.durable, self.link = shelf, durable, link
        self.loop = asyncio.get_running_loop()

    @property
    def heads(self) -> list[HeadState]:
        """The watermark of each."""
        return [shard.tier.head for shard in self]

    @property
    def restarts(self) -> int:
        """How often all entries of one of them were dropped."""
        return sum(shard.tier.restarts for shard in self)

    def shared_counters(self) -> SharedCounters | None:
        """Return what happened at the shared level, of all shards together; None where there is none."""
        counted = [asdict(shard.through.shared.counters) for shard in self if shard.through.shared is not None]
        return SharedCounters(**{name: sum(one[name] for one in counted) for name in counted[0]}) if counted else None

    def shared_state(self) -> str:
        """Return "up", what is wrong with the shared level, or "" where there is none."""
        if self.link is None:
            return ""
        return "up" if self.link.up else self.link.error or "does not answer"

    async def close_shared(self) -> None:
        """End the traffic with the shared level, before the database is closed, which has to answer instead."""
        closing = [shard.through.shared.close() for shard in self if shard.through.shared is not None]
        await asyncio.gather(*closing)
        if self.link is not None:
            await self.link.close()

    def know(self, heads: Sequence[HeadState]) -> bool:
        """Return whether each of these commits, one a shard, was applied here lately."""
        return all(shard.tier.knows(head) for shard, head in zip(self, heads, strict=True))

    def space(self, kind: str, namespace: str) -> Space:
        """Return the space of a kind in a namespace."""
        return self.of(namespace).tier.space(kind, namespace)

    @contextmanager
    def fenced(self) -> Iterator[list[Fence]]:
        """Hold a fence in every shard, for a read of many keys that is about to start."""
        with ExitStack() as stack:
            yield [stack.enter_context(shard.tier.fence()) for shard in self]

    def adopt(self, keys: Sequence[str], entries: Sequence[bytes], fences: Sequence[Fence]) -> None:
        """Put saved entries, as `CacheTier.adopt_many` does; one fence a shard."""
        if len(self) == 1:
            self[0].tier.adopt_many(keys, entries, fences[0])
            return
        for key, entry in zip(keys, entries, strict=True):
            space, id_ = self.shelf.space_of(key)
            self[space.shard].tier.adopt(space, id_, entry, fences[space.shard])

    def detach(self) -> None:
        """Look no more, and let nobody wait."""
        for shard in self:
            shard.detach()

    def of(self, namespace: str) -> Shard:
        """Return the shard of a namespace."""
        return self[shard_of(namespace, len(self))]
