"""`MemoryStore`: opening, closing, namespaces, transactions, statistics."""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import URL

from memory_store.access import TieredAccess
from memory_store.cache.keeper import CacheKeeper, CacheStatus, version_key
from memory_store.cache.shard import Shards
from memory_store.cache.shelf import Shelf
from memory_store.cache.watch import HeadWatch
from memory_store.collection import Access, Collection, Parts
from memory_store.config import Settings, check_namespace, resolve_settings
from memory_store.durable.engine import parse_url
from memory_store.durable.examine import cache_folder
from memory_store.durable.log import CommitToken
from memory_store.durable.tier import Durable, durable_tier
from memory_store.errors import ConfigurationError, PositionLostError
from memory_store.feed import LoggedChange, follow, follow_shards
from memory_store.records import RECORDS, Embedding, Episode, Pattern, SpatiotemporalEntry, Step
from memory_store.statistics import METRICS, StoreStats, collect
from memory_store.telemetry import Telemetry, spanned
from memory_store.transaction import UnitOfWork
from memory_store.waiting import wait_out

if TYPE_CHECKING:
    from memory_store.cache.redis import RedisLink

__all__ = ["Cache", "MemoryStore", "Namespace", "StoreStats", "Transaction"]


class Collections:
    """The kinds of one namespace, each as a collection."""

    episodes: Collection[Episode]
    steps: Parts[Step]
    patterns: Collection[Pattern]
    embeddings: Parts[Embedding]
    spatiotemporal: Parts[SpatiotemporalEntry]

    def __init__(self, namespace: str, shelf: Shelf, access: Access) -> None:
        self.name = namespace
        made: dict[str, Any] = {}
        for kind, spec in RECORDS.items():
            make: type[Collection[Any]] = Parts if spec.parent else Collection
            made[kind] = make(spec, namespace, shelf.space(kind, namespace), access)
        self._by_kind = made
        self.episodes, self.steps, self.patterns = made["episode"], made["step"], made["pattern"]
        self.embeddings, self.spatiotemporal = made["embedding"], made["spatiotemporal"]

    def collection(self, kind: str) -> Collection[Any]:
        """Return the collection of a kind by its name.

        Raises:
            ConfigurationError: there is no such kind.
        """
        if kind not in self._by_kind:
            raise ConfigurationError(f"unknown kind {kind!r:.80}; known: {', '.join(self._by_kind)}")
        found: Collection[Any] = self._by_kind[kind]
        return found


class Transaction(Collections):
    """The collections inside one transaction: their writes are made together or not at all, their reads see them."""

    def __init__(self, namespace: str, shelf: Shelf, work: UnitOfWork) -> None:
        super().__init__(namespace, shelf, work)
        self._work = work

    @property
    def position(self) -> int | None:
        """Position of the commit, once the block has ended and if it changed anything; see `Record.position`."""
        return self._work.position or None


class Namespace(Collections):
    """One namespace of a store; it shares the store's connections, cache and life."""

    def __init__(self, store: MemoryStore, namespace: str) -> None:
        self._access = TieredAccess(check_namespace(namespace), store._settings.limits, store._shelf)
        super().__init__(namespace, store._shelf, self._access)
        self._store = store
        if store._shards is not None:
            self._access.attach(store._shards)
            if not store._access.is_open:
                self._access.detach(store._access.unusable)

    @property
    def position(self) -> int:
        """Position of the newest commit this process has seen, its own included; see `Record.position`."""
        return 0 if self._store._shards is None else self._access.coherence.head.position

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Make several writes one commit: `async with store.transaction() as tx: await tx.episodes.put(...)`.

        It commits at the end of the block and rolls back on any exception or cancellation. The cache sees it after the
        commit. While it is open no other write of any process goes on (on a server: to namespaces of the same head), so
        keep model calls out of it; after `transaction_timeout_s` it is rolled back. Reading the store itself inside the
        block sees what was before.

        Raises:
            DurableTimeoutError: the database stayed locked, or the block took too long; nothing was written.
            CommitUnknownError: nobody can say whether it was committed.
            ConfigurationError: this task has a transaction open already.
        """
        store, access = self._store, self._access
        access.require_writable()
        settings, shard = store._settings, access.shard
        with spanned(store._telemetry, "memory_store.transaction") as span:
            exclusive = await shard.writer.exclusive()
            work = UnitOfWork(exclusive, access.dialect, settings.limits, settings.transaction_timeout_s)
            await work.begin()
            shard.transaction_task = asyncio.current_task()
            try:
                try:
                    yield Transaction(self.name, store._shelf, work)
                finally:
                    shard.transaction_task = None
            except BaseException:
                await work.roll_back()
                raise
            await work.commit()
            span.set(position=work.position)

    def follow(self, *, after: str = "end") -> AsyncIterator[LoggedChange]:
        """Yield every change of this namespace, in order, at least once: `async for change in store.follow(): ...`.

        It never ends by itself. What is derived from it stays true through crashes if `change.cursor` is kept with it
        and given back as `after`. Changes of this process come at once, those of others within `staleness_s`. A read
        after a change sees it.

        Args:
            after: "end" for what is changed from now on, "start" for all the log holds, or a `cursor`.

        Raises:
            PositionLostError: the log does not lead on from the cursor (it was trimmed, or a backup was restored):
                start again from nothing.
            ConfigurationError: `after` is none of these.
            StoreClosedError: the store was closed.
        """
        return follow(self._access, after, self.name)


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
        settings: see `memory_store.Settings` for names, units and defaults.

    Raises:
        ConfigurationError: the URL, namespace or a setting is wrong, or what the URL needs is not installed.
        TypeError: a setting is unknown.
    """

    def __init__(self, url: str | URL, *, namespace: str = "default", **settings: Any) -> None:
        self._target = parse_url(url)
        self._settings: Settings = resolve_settings(self._target.parameters, settings)
        unknown = sorted(set(self._settings.ttl_s) - set(RECORDS))
        if unknown:
            raise ConfigurationError(f"ttl_s names unknown kind {unknown[0]!r}; known: {', '.join(RECORDS)}")
        self._shelf = Shelf(int(self._settings.cache_max_bytes), self._settings.ttl_s)
        self._shards: Shards | None = None
        self._watch: HeadWatch | None = None
        self._to_shards: list[TieredAccess] = []
        system = self._target.url.get_backend_name()
        self._telemetry = Telemetry(self._target.name, system) if self._settings.telemetry else None
        self._keeper: CacheKeeper | None = None
        self._durable: Durable | None = None
        self._link: RedisLink | None = None
        self._closing: asyncio.Task[None] | None = None
        self._namespaces: dict[str, Namespace] = {}
        self.cache = Cache(self)
        super().__init__(self, namespace)

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
        link = self._shared_cache()
        try:
            await durable.open()
        except BaseException:
            if link is not None:
                await link.close()
            raise
        if link is not None:
            await link.wait()
        self._shards = shards = Shards(durable, self._shelf, self._settings, link)
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

    def _shared_cache(self) -> RedisLink | None:
        """Begin to connect to the shared cache level, if there is one."""
        if self._settings.shared_cache is None:
            return None
        from memory_store.cache.redis import RedisLink

        key = version_key(self._settings.cache_version)
        self._link = RedisLink(self._settings.shared_cache, self._settings.shared_cache_timeout_s, key)
        self._link.start()
        return self._link

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
            for shard in self._shards or ():
                await shard.writer.drain()
            if self._keeper is not None:
                await self._keeper.close()
        finally:
            if self._link is not None and self._shards is not None:
                await self._shards.close_shared()
                await self._link.close()
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
            found = self._namespaces[name] = Namespace(self, name)
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


_OPEN_STORES: weakref.WeakSet[MemoryStore] = weakref.WeakSet()


def _forget_parent_stores() -> None:
    """In a forked child: its copies of the stores have no threads and must not touch the parent's connections."""
    for store in list(_OPEN_STORES):
        store._detach("the store was opened in another process, before a fork: open one in this process")
    _OPEN_STORES.clear()


os.register_at_fork(after_in_child=_forget_parent_stores)
