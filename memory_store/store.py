"""`MemoryStore`: opening, closing, namespaces, statistics."""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import URL

from memory_store.access import TieredAccess
from memory_store.cache.keeper import CacheKeeper, CacheStatus, version_key
from memory_store.cache.shard import Shards
from memory_store.cache.shared import Link
from memory_store.cache.shelf import Shelf
from memory_store.cache.watch import HeadWatch
from memory_store.config import Settings, resolve_settings
from memory_store.durable.documents import count_searched
from memory_store.durable.engine import ServerTarget, parse_url
from memory_store.durable.examine import cache_folder
from memory_store.durable.log import CommitToken
from memory_store.durable.tier import Durable, durable_tier
from memory_store.errors import ConfigurationError, PositionLostError
from memory_store.feed import LoggedChange, follow, follow_shards
from memory_store.namespace import Namespace
from memory_store.recall.models import Models, Reranker
from memory_store.recall.vectors import VectorSpaces
from memory_store.records import RECORDS
from memory_store.statistics import METRICS, StoreStats, collect
from memory_store.telemetry import Telemetry
from memory_store.waiting import wait_out

if TYPE_CHECKING:
    from memory_store.embedders import Embedder

__all__ = ["Cache", "MemoryStore"]


class Cache:
    """What can be done with the cache tier; the store looks after it by itself."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def status(self) -> CacheStatus:
        """Return what it holds and what it is doing."""
        return self._keeper.status()

    async def rebuild(self) -> None:
        """Drop everything and fill it again from the durable tier; returns when it is full.

        The store serves meanwhile; `status` tells how far it is. Cancelling it stops it, what is filled stays.
        """
        await self._keeper.rebuild()

    async def wait(self) -> None:
        """Wait until the load or rebuild that was started on opening has ended."""
        await self._keeper.wait()

    async def clear(self) -> None:
        """Drop every entry, in memory and on disk. Never needed for correctness."""
        await self._keeper.clear()

    async def save(self) -> None:
        """Save it now; it is also saved every `cache_save_interval_s` and on close."""
        await self._keeper.save()

    @property
    def _keeper(self) -> CacheKeeper:
        self._store._access.require_usable()
        assert self._store._keeper is not None
        return self._store._keeper


class MemoryStore(Namespace):
    """A durable store of records behind a write-through cache. Use it as `async with MemoryStore(url) as store`.

    Args:
        url: `sqlite:///agent.db` (relative), `sqlite:////var/agent.db` (absolute), `sqlite:///:memory:`, or
            `postgresql://user@host/database`; as text or as an SQLAlchemy URL, with or without the driver's name. Its
            query parameters are settings; of a server's URL, the others are the driver's (`sslmode`, ...).
        namespace: whose records the collections of this object hold; see `namespace()` for others.
        embed: the model that makes vectors of texts and queries, see `memory_store.embedders`; of several, the first
            makes those of new texts, and what the others have made is still found. They are closed with the store.
        rerank: an async function that is given a query and texts and returns a number for each, the greater the better;
            it puts the best 50 hits of every search in order.
        settings: see `memory_store.Settings` for names, units and defaults.

    Raises:
        ConfigurationError: the URL, namespace or a setting is wrong, or what the URL needs is not installed.
        TypeError: a setting is unknown.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        namespace: str = "default",
        embed: Embedder | Sequence[Embedder] = (),
        rerank: Reranker | None = None,
        **settings: Any,
    ) -> None:
        self._target = parse_url(url)
        resolved = resolve_settings(self._target.parameters, settings)
        unknown = sorted(set(resolved.ttl_s) - set(RECORDS))
        if unknown:
            raise ConfigurationError(f"ttl_s names unknown kind {unknown[0]!r}; known: {', '.join(RECORDS)}")
        self._watch: HeadWatch | None = None
        self._to_shards: list[TieredAccess] = []
        system = self._target.url.get_backend_name()
        telemetry = Telemetry(self._target.name, system) if resolved.telemetry else None
        self._keeper: CacheKeeper | None = None
        self._durable: Durable | None = None
        self._closing: asyncio.Task[None] | None = None
        self._namespaces: dict[str, Namespace] = {}
        self.cache = Cache(self)
        saved = cache_folder(self._target, resolved)
        spaces = VectorSpaces(Path(saved) / "vectors" if saved else None)
        models = Models(list(embed) if isinstance(embed, Sequence) else [embed], rerank, spaces)
        super().__init__(namespace, resolved, Shelf(int(resolved.cache_max_bytes), resolved.ttl_s), telemetry, models)

    @property
    def _shards(self) -> Shards | None:
        return self._access.shards

    async def open(self) -> Self:
        """Open the database, creating or upgrading it as the settings say; the cache loads in the background.

        Raises:
            DurableUnavailableError: the file or its folder cannot be opened, or the server not be reached.
            DurableTimeoutError: another program keeps it locked.
            SchemaMismatchError: it is newer than this library, or older and `migrate="check"`, or something else's.
            ConfigurationError: the store is open already, or was closed.
        """
        if self._durable is not None:
            raise ConfigurationError("a store is opened once: make a new MemoryStore")
        self._durable = durable_tier(self._target, self._settings, self._telemetry)
        opening = asyncio.create_task(self._open(self._durable))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Half-open connections cannot be abandoned: let it finish, then close what it opened.
            await wait_out(opening)
            if not opening.cancelled() and opening.exception() is None:
                await wait_out(asyncio.create_task(self.close()))
            raise
        return self

    async def _open(self, durable: Durable) -> None:
        link = _shared_cache(self._settings)
        try:
            await durable.open()
        except BaseException:
            if link is not None:
                await link.close()
            raise
        if link is not None:
            await link.wait()
        shards = Shards(durable, self._shelf, self._settings, link)
        if durable.probe is None and self._settings.freshness == "bounded" and self._settings.staleness_s:
            self._watch = HeadWatch(shards, self._settings.staleness_s)
        for namespace in (self, *self._namespaces.values()):
            namespace._access.attach(shards)
        self._keeper = CacheKeeper(
            shards,
            cache_folder(self._target, self._settings) or None,
            self._settings.cache_version,
            self._settings.cache_save_interval_s,
            self._telemetry,
        )
        self._keeper.start()
        if self._telemetry is not None:
            own = self._access.shard.number
            self._telemetry.observe(METRICS, lambda: collect(shards, own))
        _OPEN_STORES.add(self)

    async def close(self) -> None:
        """Finish what is queued, save the cache and close every connection. Safe to call twice or when never opened.

        A cancelled close still closes everything before it raises.
        """
        if self._durable is None or not (self._access.is_open or self._closing):
            return
        if self._closing is None:
            assert self._shards is not None
            self._access.require_usable()
            for shard in self._shards:
                shard.require_no_transaction()
            self._detach("the store is closed")
            self._closing = asyncio.create_task(self._close(self._durable))
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            await wait_out(self._closing)
            raise

    async def _close(self, durable: Durable) -> None:
        _OPEN_STORES.discard(self)
        if self._telemetry is not None:
            self._telemetry.close()
        try:
            await self._models.close()
            for shard in self._shards or ():
                await shard.indexer.close()
                await shard.writer.drain()
            if self._keeper is not None:
                await self._keeper.close()
        finally:
            if self._shards is not None:
                await self._shards.close_shared()
            await durable.close()

    def _detach(self, reason: str) -> None:
        for access in (*(one._access for one in (self, *self._namespaces.values())), *self._to_shards):
            access.detach(reason)
        if self._watch is not None:
            self._watch.close()
        if self._shards is not None:
            self._shards.detach()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        access = getattr(self, "_access", None)
        if access is not None and access.is_open:
            warnings.warn(f"{self!r} was not closed: use `async with`", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "open" if self._access.is_open else "closed"
        return f"<MemoryStore {self._target.name} namespace={self.name!r} {state}>"

    def namespace(self, name: str) -> Namespace:
        """Return another namespace of the same store; it sees none of this one's records.

        Raises:
            ConfigurationError: the name is not 1 to 200 characters of `A-Z a-z 0-9 . _ : / -`.
        """
        found = self._namespaces.get(name) if isinstance(name, str) else None
        if found is None:
            found = self._namespaces[name] = Namespace(name, self._settings, self._shelf, self._telemetry, self._models)
            if self._shards is not None:
                found._access.attach(self._shards)
                if not self._access.is_open:
                    found._access.detach(self._access.unusable)
        return found

    def follow_all(self, *, after: str = "end") -> AsyncIterator[LoggedChange]:
        """Yield every change of every namespace, and what concerns the database as a whole; else as `follow`.

        On a server with several heads, the changes of each head come in their order.
        """
        self._access.require_usable()
        assert self._shards is not None
        if len(self._shards) == 1:
            return follow(self._access, after, None)
        return follow_shards(self._ways(self._shards), after)

    def _ways(self, shards: Shards) -> list[TieredAccess]:
        """Return a way to each shard, whichever namespace it is of."""
        while len(self._to_shards) < len(shards):
            access = TieredAccess(self.name, self._settings.limits, self._shelf)
            access.attach(shards, shards[len(self._to_shards)])
            self._to_shards.append(access)
        return self._to_shards

    async def reindex(self, *, on_progress: Callable[[str, int, int], None] | None = None) -> int:
        """Make the full-text index of all namespaces anew from the records, and return how many there are.

        On a server with pgvector the vectors as well, and the graphs of models that have come to 10,000 of them: until
        then a search compares all, which takes longer.

        Needed where that index is damaged, as a search says then. The store, and others, go on meanwhile; searches are
        complete again when it has ended. Interrupted, it is gone on with by the next search or the next call.

        Args:
            on_progress: called with what is done, how many records of how many.

        Raises:
            DurableError: the database cannot be written.
        """
        self._access.require_usable()
        assert self._shards is not None
        assert self._durable is not None
        run = self._durable.scan.run
        total, before = await run(count_searched), 0
        for shard in self._shards:
            done = before
            async for count in shard.indexer.renew():
                done = before + count
                if on_progress is not None:
                    on_progress("indexing", done, max(total, done))
            before = done
        # Searches bring some in as well, writers put others: these are counted nowhere else.
        total = await run(count_searched)
        if on_progress is not None:
            on_progress("indexing", total, total)
        if isinstance(self._target, ServerTarget):
            from memory_store.durable.graphs import build_graphs

            def tell(model: str, count: int) -> None:
                if on_progress is not None:
                    on_progress(f"building the graph of {model}", 0, count)

            await build_graphs(self._target, self._settings, tell)
        return total

    async def resolve(self, token: str) -> bool:
        """Return whether the commit behind a `CommitUnknownError` happened. After False it never will.

        Safe to repeat, in any process that opens the same database.

        Args:
            token: the error's `token`.

        Raises:
            PositionLostError: nobody knows any more: the log was trimmed, or the token is of another database.
            ConfigurationError: it is no token.
        """
        parsed = CommitToken.parse(token)
        self._access.require_usable()
        assert self._shards is not None
        if parsed.shard >= len(self._shards):
            raise PositionLostError("the token belongs to another database", position=parsed.position, head=0)
        shard = self._shards[parsed.shard]
        shard.require_no_transaction()
        return bool((await shard.writer.submit(shard.writer.resolving(token))).result)

    def stats(self) -> StoreStats:
        """Return the counters of this process since the store was opened."""
        self._access.require_usable()
        assert self._shards is not None
        return collect(self._shards, self._access.shard.number)


def _shared_cache(settings: Settings) -> Link | None:
    """Begin to connect to the shared cache level, if there is one."""
    if settings.shared_cache is None:
        return None
    from memory_store.cache.redis import RedisLink

    link = RedisLink(settings.shared_cache, settings.shared_cache_timeout_s, version_key(settings.cache_version))
    link.start()
    return link


_OPEN_STORES: weakref.WeakSet[MemoryStore] = weakref.WeakSet()


def _forget_parent_stores() -> None:
    """In a forked child: its copies of the stores have no threads and must not touch the parent's connections."""
    for store in list(_OPEN_STORES):
        store._detach("the store was opened in another process, before a fork: open one in this process")
    _OPEN_STORES.clear()


os.register_at_fork(after_in_child=_forget_parent_stores)
