"""`Namespace`: the collections of one namespace of a store, its transactions and its feed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from memory_store.access import TieredAccess
from memory_store.cache.shelf import Shelf
from memory_store.collection import Access, Collection, Parts
from memory_store.config import Settings, check_namespace
from memory_store.errors import ConfigurationError
from memory_store.feed import LoggedChange, follow
from memory_store.patterns import Patterns
from memory_store.records import RECORDS, Embedding, Episode, Pattern, SpatiotemporalEntry, Step
from memory_store.telemetry import Telemetry, spanned
from memory_store.transaction import UnitOfWork

__all__ = ["Namespace", "Transaction"]


class Collections:
    """The kinds of one namespace, each as a collection."""

    episodes: Collection[Episode]
    steps: Parts[Step]
    patterns: Patterns
    embeddings: Parts[Embedding]
    spatiotemporal: Parts[SpatiotemporalEntry]

    def __init__(self, namespace: str, shelf: Shelf, access: Access) -> None:
        self.name = namespace
        made: dict[str, Any] = {}
        for kind, spec in RECORDS.items():
            make: type[Collection[Any]] = Parts if spec.parent else Collection
            made[kind] = make(spec, namespace, shelf.space(kind, namespace), access)
        space = shelf.space(Pattern.kind, namespace)
        made[Pattern.kind] = Patterns(namespace, space, access, made[Episode.kind], made[Step.kind])
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

    def __init__(self, namespace: str, settings: Settings, shelf: Shelf, telemetry: Telemetry | None) -> None:
        self._access = TieredAccess(check_namespace(namespace), settings.limits, shelf)
        super().__init__(namespace, shelf, self._access)
        self._settings, self._shelf, self._telemetry = settings, shelf, telemetry

    @property
    def position(self) -> int:
        """Position of the newest commit this process has seen, its own included; see `Record.position`."""
        return self._access.position

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
        access, settings = self._access, self._settings
        access.require_writable()
        shard = access.shard
        with spanned(self._telemetry, "memory_store.transaction") as span:
            exclusive = await shard.writer.exclusive()
            work = UnitOfWork(exclusive, access.dialect, access.limits, settings.transaction_timeout_s)
            await work.begin()
            shard.transaction_task = asyncio.current_task()
            try:
                try:
                    yield Transaction(self.name, self._shelf, work)
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
