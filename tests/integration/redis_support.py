"""Stores that share a Redis, a link to it that loses and delays what it carries, and a register's rule."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from memory_store import MemoryStore
from memory_store.cache import redis as shared_redis
from memory_store.cache.redis import RedisLink
from memory_store.cache.shared import Put, SharedCounters
from memory_store.cache.sharing import SharedShard
from memory_store.errors import CacheError

PATIENT: dict[str, Any] = {"cache_path": "", "shared_cache_timeout_s": 20.0}
"""Settings of a store whose answers come from where the test says, however busy the machine is."""


def level(store: MemoryStore) -> SharedShard:
    """The shared level of a store's own shard."""
    shared = store._access.shard.through.shared
    assert shared is not None
    return shared


def counters(store: MemoryStore) -> SharedCounters:
    """What happened there."""
    return level(store).counters


def link(store: MemoryStore) -> RedisLink:
    """Its connections."""
    assert store._shards is not None
    assert isinstance(store._shards.link, RedisLink)
    return store._shards.link


def forget(store: MemoryStore) -> None:
    """Drop what this process has cached, as eviction would, so that the next read asks further on."""
    store._shelf.clear()


@asynccontextmanager
async def opened(url: str, redis_url: str, **settings: Any) -> AsyncIterator[MemoryStore]:
    """A store with a shared level, and nothing in its own cache."""
    async with MemoryStore(url, namespace="test-agent", shared_cache=redis_url, **PATIENT | settings) as store:
        await store.cache.wait()
        forget(store)
        yield store


async def settled(*stores: MemoryStore) -> None:
    """Wait until these stores have told the shared level all they have to."""
    for store in stores:
        for shard in store._shards or ():
            if shard.through.shared is not None:
                await shard.through.shared.settle()


class WildLink(RedisLink):
    """A link whose requests take some turns of the loop, get lost before or after they are done, or are done late.

    Args:
        rng: decides.
        link: as of `RedisLink`.
    """

    rng: random.Random
    two_steps = False
    """Whether the watermark is set before anything is removed: a mutant of the script."""

    def __init__(self, *link: Any) -> None:
        super().__init__(*link)
        self.late: list[asyncio.Task[Any]] = []

    async def _turns(self) -> None:
        if self.rng.random() < 0.2:
            await asyncio.sleep(self.rng.random() * 0.01)
        for _ in range(int(self.rng.random() ** 2 * 20)):
            await asyncio.sleep(0)

    async def read(self, names: Sequence[bytes], within_s: float) -> list[bytes | None]:
        """Read, some time before it is told."""
        await self._turns()
        values = await super().read(names, within_s)
        await self._turns()
        return values

    async def replace(
        self, mark: bytes, expected: bytes, new: bytes, gone: Sequence[bytes], puts: Sequence[Put]
    ) -> bytes:
        """Replace, or not, or later."""
        await self._turns()
        roll = self.rng.random()
        if roll < 0.1:
            raise CacheError("lost on the way there")
        if roll < 0.2:
            self.late.append(asyncio.create_task(self._later(mark, expected, new, gone, puts)))
            raise CacheError("it takes too long")
        heard = await self._replace(mark, expected, new, gone, puts)
        await self._turns()
        if roll < 0.3:
            raise CacheError("lost on the way back")
        return heard

    async def _replace(
        self, mark: bytes, expected: bytes, new: bytes, gone: Sequence[bytes], puts: Sequence[Put]
    ) -> bytes:
        if not self.two_steps:
            return await super().replace(mark, expected, new, gone, puts)
        heard = await super().replace(mark, expected, new, [], [])
        if heard == new:
            await asyncio.sleep(0.002)
            await super().replace(mark, new, new, gone, puts)
        return heard

    async def _later(self, *request: Any) -> None:
        await asyncio.sleep(self.rng.random() * 0.03)
        await self._replace(*request)

    async def close(self) -> None:
        """Close once all that was late is done."""
        await asyncio.gather(*self.late)
        await super().close()


@asynccontextmanager
async def wild(
    url: str, redis_url: str, count: int, rng: random.Random, monkeypatch: Any
) -> AsyncIterator[list[MemoryStore]]:
    """Some stores on one database, over wild links to one Redis."""
    monkeypatch.setattr(shared_redis, "RedisLink", WildLink)
    WildLink.rng = rng
    stores = [MemoryStore(url, namespace="test-agent", shared_cache=redis_url, **PATIENT) for _ in range(count)]
    try:
        for store in stores:
            await store.open()
            await store.cache.wait()
        yield stores
    finally:
        for store in stores:
            await store.close()


@dataclass
class Register:
    """What was written to one record and when, and which values a read may return.

    A read may return a write's value if the write began before the read's end, and no other write lies wholly between
    the two.
    """

    clock: int = 0
    writes: list[list[Any]] = field(default_factory=lambda: [[0, 0, None]])
    """Begin, end (None: under way) and value."""

    def now(self) -> int:
        """Return a moment later than all before."""
        self.clock += 1
        return self.clock

    def begin(self, value: Any) -> list[Any]:
        """Note the beginning of a write."""
        self.writes.append([self.now(), None, value])
        return self.writes[-1]

    def end(self, write: list[Any]) -> None:
        """Note its end."""
        write[1] = self.now()

    def allows(self, value: Any, began: int, ended: int) -> bool:
        """Return whether a read between two moments may have returned a value."""
        for begin, end, written in self.writes:
            if written != value or begin > ended:
                continue
            after = end if end is not None else ended
            if not any(other[0] > after and other[1] is not None and other[1] < began for other in self.writes):
                return True
        return False
